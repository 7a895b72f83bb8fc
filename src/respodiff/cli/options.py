"""Flags that verbs share, and what is made of them: paths, settings of methods, adapters from files or concepts."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from typer import BadParameter, Option

from respodiff._device import AUTO
from respodiff.concepts.concept import Attribute, Concept, builtin, concept, load_concepts
from respodiff.data.untrusted import read_json
from respodiff.methods.registry import BASELINE
from respodiff.pipelines.schedulers import SCHEDULERS
from respodiff.pipelines.source import DTYPES, OFFLOADS, QUANTIZATIONS, ModelSource
from respodiff.training.config import LAST_SEED, MOST_AT_ONCE


@dataclass(frozen=True)
class Bounds:
    """Reads a number from a flag, both bounds allowed; anything else is refused before work begins."""

    low: float
    high: float
    whole: bool = True
    __name__ = "number"  # asked for by Typer

    def __call__(self, text: object) -> float:
        try:
            value = int(str(text)) if self.whole else float(str(text))
        except ValueError:
            value = math.nan
        if not self.low <= value <= self.high:
            kind = "a whole number" if self.whole else "a number"
            raise BadParameter(f"it is {str(text)!r}; allowed: {kind} from {self.low:,} to {self.high:,}")
        return value


def number(low: float, high: float, *names: str, help: str, whole: bool = True, metavar: str = "N") -> Any:
    """A flag with a number between two bounds."""
    return Option(*names, help=help, metavar=metavar, parser=Bounds(low, high, whole))


Json = Annotated[bool, Option("--json", help="Last line of stdout is one JSON object; words go to stderr.")]
Device = Annotated[str, Option("--device", help="auto (cuda, then mps, then cpu), cpu, cuda, cuda:1, mps.", metavar="NAME")]
Dtype = Annotated[str, Option("--dtype", help="Judges take float32 alone.", metavar="NAME")]
Seed = Annotated[int, number(0, LAST_SEED, help="Everything random follows from it.")]
Batch = Annotated[int, number(1, MOST_AT_ONCE, help="Images at a time.")]
Steps = Annotated[int | None, number(1, 1000, help="Sampler steps. (default: the model's, 8 embedded, 50 Stable Diffusion)")]
Guidance = Annotated[
    float | None, number(0, 1000, help="Guidance scale. (default: the model's, 3 embedded, 7.5 Stable Diffusion)", whole=False)
]
Force = Annotated[bool, Option("--force", help="Replace a file that is there, whatever it is.")]
Concepts = Annotated[Path | None, Option("--concepts", help="TOML file with concepts of your own.", metavar="FILE")]


MODEL_HELP = "'embedded', a diffusers folder, a .safetensors file, or a hub id (classes: docs/pipelines.md<pipelines>)."
CONFIG_HELP = "For a .safetensors file: folder or hub id of the same base, for its configurations. (default: of its kind, from the hub)"
DTYPE_HELP = f"{', '.join(DTYPES)}. auto: what the files hold; float32 on the cpu."
CHECKER_HELP = "off, or keep: a checker of the model blacks images out, which no judge can measure."


def named(name: str, help: str, default: Any = "", *, metavar: str = "NAME", kind: Any = str) -> tuple[Any, Any]:
    """A flag with words, and its default."""
    return Annotated[kind, Option(*name.split(), help=help, metavar=metavar, rich_help_panel="Model")], default


OFF, KEEP = "off", "keep"
"""What may become of a pipeline's safety checker."""
LOADING: dict[str, tuple[Any, Any]] = {
    "source": named("--model --single-file", MODEL_HELP, "embedded", metavar="MODEL"),
    "config": named("--model-config", CONFIG_HELP, metavar="DIR|ID"),
    "variant": named("--variant", "Variant of the files, such as fp16."),
    "revision": named("--revision", "Branch, tag or commit of the hub; the same as ID@REVISION."),
    "device": named("--device", "auto (cuda, then mps, then cpu), cpu, cuda, cuda:1, mps.", AUTO),
    "dtype": named("--dtype", DTYPE_HELP, AUTO),
    "offload": named("--offload", f"{', '.join(OFFLOADS)}: weights wait on the CPU until they are needed; to generate alone.", "none"),
    "quantize": named("--quantize", f"{', '.join(QUANTIZATIONS)}: linear layers, on the CPU or a CUDA GPU; needs the extra quant."),
    "lora": named("--lora", "A LoRA beside the weights; repeat for several.", None, metavar="ID[:WEIGHT]", kind=list[str] | None),
}
"""Field of `ModelSource` -> its flag and default, for every verb that takes a model."""
DRAWING: dict[str, tuple[Any, Any]] = {
    "scheduler": named("--scheduler", f"Sampler: {', '.join(SCHEDULERS)}. (default: the model's)"),
    "safety_checker": named("--safety-checker", CHECKER_HELP, OFF),
}
TRAINING: dict[str, tuple[Any, Any]] = {
    "gradient_checkpointing": (
        Annotated[
            bool, Option("--gradient-checkpointing", help="Compute activations again: slower, less memory.", rich_help_panel="Model")
        ],
        False,
    )
}


def takes_model(
    more: Mapping[str, tuple[Any, Any]] | None = None, *, trains: bool = False, **defaults: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a verb, in place of its parameter ``model``, the flags of `LOADING` and ``more``; it is called with a `ModelSource`.

    ``trains``: whether it trains on the model. ``defaults`` are in place of those of the flags.
    """
    flags = {name: (kind, defaults.get(name, default)) for name, (kind, default) in {**LOADING, **(more or {})}.items()}

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        def run(**given: Any) -> None:
            found = {name: given.pop(name) for name in flags}
            found |= {"lora": tuple(found["lora"] or ()), "trains": trains}
            if "safety_checker" in found:
                found["safety_checker"] = keeps_checker(found["safety_checker"])
            try:
                source = ModelSource(**found)
            except ValueError as error:  # which begins with the name of the argument
                raise ValueError(f"--{error}") from error
            verb(**given, model=source)

        hints, parameters = get_type_hints(verb, localns={"ModelSource": ModelSource}, include_extras=True), list[Parameter]()
        for p in signature(verb).parameters.values():
            if p.name == "model":
                parameters += [Parameter(n, p.KEYWORD_ONLY, default=default, annotation=kind) for n, (kind, default) in flags.items()]
            else:
                parameters.append(p.replace(kind=p.KEYWORD_ONLY, annotation=hints[p.name]))
        run.__name__, run.__doc__, run.__module__ = verb.__name__, verb.__doc__, verb.__module__
        run.__signature__ = signature(verb).replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def keeps_checker(safety_checker: str) -> bool:
    """Whether --safety-checker says that it stays on; ValueError for anything but off and keep."""
    if safety_checker not in (OFF, KEEP):
        raise ValueError(f"--safety-checker is {safety_checker!r}; allowed: {OFF}, {KEEP}")
    return safety_checker == KEEP


def to_path(text: str | Path) -> Path:
    """A path from a flag, or its default; an empty one would mean the current folder, which nobody asked for."""
    if not str(text).strip():
        raise BadParameter(f"it is {text!r}; give the name of a file or folder")
    return Path(text)


def library(file: Path | None) -> dict[str, Attribute | Concept]:
    """The built-in attributes and concepts, and those of a user's file."""
    return {**builtin(), **(load_concepts(file) if file else {})}


def changes_from(pairs: Sequence[str], flags: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Settings from ``--set KEY=VALUE`` pairs and flags (None: not given); ValueError for one that ``config`` has not or cannot read."""
    hints, names = get_type_hints(config), [f.name for f in fields(config)]
    known, changes = ", ".join(names) or "none", {k: v for k, v in flags.items() if v is not None}
    if unknown := [key for key in changes if key not in names]:
        raise ValueError(f"--{unknown[0]} is given, which this method has not; its settings: {known}")
    for pair in pairs:
        key, _, text = pair.partition("=")
        if key not in names:
            raise ValueError(f"--set {pair!r}: setting {key!r} is unknown; allowed: {known}")
        if flags.get(key) is not None:
            raise ValueError(f"--set {pair!r} is given beside --{key} {flags[key]}; give one of them")
        hint = hints[key]
        try:
            if hint is bool:
                changes[key] = {"true": True, "false": False}[text.lower()]
            elif hint in (int, float):
                changes[key] = hint(text)
            elif hint is str or "Literal" in str(hint):
                changes[key] = text
            else:
                values = read_json(text) if text.startswith("[") else text.split(",")
                changes[key] = tuple(float(v) if "float" in str(hint) else str(v).strip() for v in values)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"--set {pair!r}: {text!r} is not {getattr(hint, '__name__', hint)}; write --set {key}=VALUE") from error
    return changes


def load_entries(
    method: str, alternatives: Sequence[Path], safety: Sequence[Path], names: Sequence[str], file: Path | None, pairs: Sequence[str]
) -> tuple[list[Any], list[Any]]:
    """What a run draws from and what is added to every image: of module files, or of concepts where the method needs no training.

    Raises:
        ValueError: the method is unknown, a file is of another one, or there is nothing that it could act with.
    """
    from respodiff.methods.registry import get_method, load_all, methods
    from respodiff.steering.serialization import Header

    quick = get_method(method) if method and not get_method(method).trains else None
    if (names or pairs) and not quick:
        flag, known = "--concept" if names else "--set", ", ".join(m.name for m in methods() if not m.trains)
        raise ValueError(f"{flag} is for methods that need no training ({known}), --method is {method!r}; give --module FILE")
    if method == BASELINE and not names:
        return [], []
    modules, added = ([m for name in names for m in load_all(name)] for names in (alternatives, safety))
    for m in added:
        if m.header.kind == "fairness":
            warnings.warn(f"--safety is the fairness module {m.name!r}: every image is steered to it", stacklevel=2)
    for m in modules or added:
        if method and m.method != method:
            raise ValueError(f"--method is {method!r}, but module {m.name!r} is of method {m.method!r}; give --method {m.method}")
    if not quick:
        if method and not (modules or added):
            raise ValueError(f"--method {method} needs --module FILE; make one with: respodiff train --method {method} --concept NAME")
        return modules, added
    concepts = [concept(name, library(file)) for name in names]
    if not (concepts or modules or added):
        if quick.default_concept is None:
            raise ValueError(f"--method {method} needs a concept; name one with --concept NAME, or give --module FILE")
        concepts = [quick.default_concept]
    for c in concepts:
        quick.check(c)
        settings = json.loads(json.dumps(asdict(quick.settings(c, **changes_from(pairs, {}, quick.config)))))
        (added if c.kind == "safety" else modules).append(quick.adapter(Header.of(c, method=method, site="", train=settings)))
    return modules, added
