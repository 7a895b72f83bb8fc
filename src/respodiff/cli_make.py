"""Verbs that make things: ``train`` and ``generate``."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from respodiff.cli import Concepts, Device, Dtype, Json, Model, Seed, app, finish, open_model, words
from respodiff.concepts import Concept, builtin, concept, load_concepts
from respodiff.config import TrainConfig

SAVE_EVERY = 15.0  # seconds between saves of an unfinished training


def progress() -> Progress:
    """Bar on stderr with time spent and time remaining; silent when stderr is not a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=words, transient=True, disable=not words.is_terminal)


def peak_mib(device: str) -> float:
    """Most memory this process has held, in MiB: of the accelerator if one is used, else resident memory."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def own_concept(name: str, target: str, neutral: str, negative: str, opposite: Sequence[str], preserve: Sequence[str]) -> Concept:
    """A concept from flags: with a target a fairness concept, with a negative prompt alone a safety concept."""
    if not target and not negative:
        raise ValueError("no concept given; use --concept NAME, or --target TEXT (fairness), or --negative TEXT alone (safety)")
    words_ = (target or negative).lower().split()
    name = name or "-".join(w for w in words_ if w not in ("a", "an", "the", "person", "with")) or words_[0]
    if not target:
        neutral = neutral or "a scene"
        return Concept(name, neutral, neutral, negative, "safety", preserve=tuple(preserve) or ("a person",))
    return Concept(name, target, neutral or "a person", negative, "fairness", tuple(opposite), preserve=tuple(preserve))


def settings(preset: str, kind: Any, pairs: Sequence[str], **flags: Any) -> TrainConfig:
    """TrainConfig from a preset, ``--set KEY=VALUE`` pairs and flags (None: not given)."""
    hints = get_type_hints(TrainConfig)
    changes: dict[str, Any] = {k: v for k, v in flags.items() if v is not None}
    for pair in pairs:
        key, _, text = pair.partition("=")
        if key not in {f.name for f in fields(TrainConfig)}:
            raise ValueError(f"--set {pair!r}: setting {key!r} is unknown; allowed: {', '.join(f.name for f in fields(TrainConfig))}")
        hint = hints[key]
        try:
            if hint in (int, float):
                changes[key] = hint(text)
            elif hint is str or "Literal" in str(hint):
                changes[key] = text
            else:
                values = json.loads(text) if text.startswith("[") else text.split(",")
                changes[key] = tuple(float(v) if "float" in str(hint) else str(v).strip() for v in values)
        except ValueError as error:
            raise ValueError(f"--set {pair!r}: {text!r} is not {getattr(hint, '__name__', hint)}; write --set {key}=VALUE") from error
    return TrainConfig.preset(preset, kind, **changes)


class Unfinished:
    """The state of a training run beside its module file, so that a killed run goes on where it was."""

    def __init__(self, out: Path, concept: Concept, config: TrainConfig) -> None:
        self.path = out.with_name(f".{out.name}.unfinished")
        self.about = json.dumps({"concept": asdict(concept), "config": asdict(config)}, sort_keys=True)

    def read(self) -> dict[str, Any] | None:
        """Tensors of an earlier run with the same concept and settings, or None if there is none."""
        from safetensors import SafetensorError, safe_open

        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                about = (file.metadata() or {}).get("about")
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  (not a dict)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"--resume: {str(self.path)!r} cannot be read ({error}); delete it and train again") from error
        if about != self.about:
            raise ValueError(f"--resume: {str(self.path)!r} is of another concept or other settings; give those, or leave --resume out")
        return tensors

    def write(self, tensors: dict[str, Any]) -> None:
        from safetensors.torch import save_file

        partial = self.path.with_suffix(".tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, partial, metadata={"about": self.about})
            partial.replace(self.path)
        except Exception as error:
            raise OSError(f"--out: folder {str(self.path.parent)!r} cannot be written ({error}); choose another") from error

    def delete(self) -> None:
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


@app.command(epilog="Example: respodiff train --model embedded --concept woman --out woman.safetensors")
def train(
    out: Annotated[Path, typer.Option("--out", help="Module file to write.", metavar="FILE")],
    model: Model = "embedded",
    concept_name: Annotated[
        str, typer.Option("--concept", help="A known concept: woman, man, light, dark, violence, ...", metavar="NAME")
    ] = "",
    target: Annotated[str, typer.Option("--target", help="Prompt to steer towards.", metavar="TEXT")] = "",
    neutral: Annotated[
        str, typer.Option("--neutral", help="Prompt that is steered. (default a person; safety: a scene)", metavar="TEXT")
    ] = "",
    negative: Annotated[
        str, typer.Option("--negative", help="Prompt to steer away from; alone it makes a safety concept.", metavar="TEXT")
    ] = "",
    opposite: Annotated[list[str] | None, typer.Option("--opposite", help="Target prompt of another alternative.", metavar="TEXT")] = None,
    preserve: Annotated[
        list[str] | None,
        typer.Option("--preserve", help="Prompt whose pictures must not change. (default a person, for safety)", metavar="TEXT"),
    ] = None,
    name: Annotated[str, typer.Option("--name", help="Name of your own concept.", metavar="NAME")] = "",
    concepts: Concepts = None,
    preset: Annotated[
        str, typer.Option("--preset", help="default, paper, or released (the authors' scripts).", metavar="NAME")
    ] = "default",
    iterations: Annotated[int | None, typer.Option("--iterations", help="Instead of the preset's.", metavar="N")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help="Any other setting of TrainConfig.", metavar="KEY=VALUE")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train one concept: RAM and SAM, two small tensors, from prompts alone.

    Give a known concept, or prompts of your own: --target "a woman" --neutral "a person".
    """
    if concept_name:
        if given := [f for f, v in (("--target", target), ("--negative", negative), ("--name", name)) if v]:
            raise ValueError(f"{given[0]} is given beside --concept {concept_name!r}; use --concept, or prompts of your own")
        chosen = concept(concept_name, {**builtin(), **(load_concepts(concepts) if concepts else {})})
    else:
        chosen = own_concept(name, target, neutral, negative, opposite or (), preserve or ())
    config = settings(preset, chosen.kind, changes or (), iterations=iterations, seed=seed)
    state = Unfinished(out, chosen, config)
    earlier = state.read() if resume else None
    if earlier is None:
        state.write({})  # a folder that cannot be written is noticed before the work, not after
    record, first = _run(open_model(model, device, dtype), chosen, config, earlier, state)
    module = record.module
    module.save(out)
    state.delete()
    result = {
        "module": str(out),
        "digest": module.digest,
        "iterations": record.iteration,
        "seconds": round(record.seconds, 2),
        "unet_forwards": record.unet_forwards,
        "peak_mib": round(peak_mib(device), 1),
        "loss_first": first,
        "loss_last": record.loss_ram,
    }
    text = f"{out}: {chosen.name!r}, {record.iteration} iterations, {record.seconds:.0f} s, {record.unet_forwards} UNet forwards"
    finish(result, text, as_json)


def _run(pipe: Any, chosen: Concept, config: TrainConfig, earlier: dict[str, Any] | None, state: Unfinished) -> tuple[Any, float]:
    from respodiff.training import train as run

    record, first, saved = None, float("nan"), time.monotonic()
    with progress() as bar:
        task = bar.add_task(f"training {chosen.name}", total=config.iterations)
        try:
            for record in run(pipe, chosen, config, resume=earlier or None):
                first = record.loss_ram if first != first else first
                bar.update(task, completed=record.iteration)
                if time.monotonic() - saved > SAVE_EVERY:
                    state.write(record.state.tensors())
                    saved = time.monotonic()
        except KeyboardInterrupt:
            if record is not None:
                state.write(record.state.tensors())
            raise
    if record is None:
        raise ValueError("--resume: this run is already finished; nothing was left to do")
    return record, first


def parse_shares(text: str, modules: Sequence[Any]) -> dict[str, dict[str, float]] | None:
    """``woman=0.5,man=0.5`` grouped by attribute; ValueError for a name of no loaded module or a number that is none."""
    if not text:
        return None
    out: dict[str, dict[str, float]] = {}
    attributes = {m.name: m.header.attribute or "concept" for m in modules}
    for pair in text.split(","):
        name, _, value = (part.strip() for part in pair.partition("="))
        if name not in attributes:
            raise ValueError(f"--shares names {name!r}, which no --module has; loaded: {', '.join(attributes) or 'none'}")
        try:
            out.setdefault(attributes[name], {})[name] = float(value)
        except ValueError as error:
            raise ValueError(f"--shares {pair!r}: {value!r} is not a number; write name=0.5,name=0.5") from error
    return out


def read_prompts(prompts: Sequence[str], file: Path | None, suite_name: str) -> list[Any]:
    """Prompts from --prompt, --prompts and --suite together."""
    found: list[Any] = list(prompts)
    if file:
        try:
            found += [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--prompts: {str(file)!r} cannot be read ({error}); give a text file with one prompt a line") from error
    if suite_name:
        from respodiff.suites import suite

        found += suite(suite_name)
    if not found:
        raise ValueError("no prompts; give --prompt TEXT, --prompts FILE or --suite NAME")
    return found


@app.command(
    epilog='Example: respodiff generate --prompt "a doctor" --images 20 --module woman.safetensors --module man.safetensors --out runs/a'
)
def generate(
    out: Annotated[Path, typer.Option("--out", help="Run folder; pictures that it already holds are skipped.", metavar="DIR")],
    model: Model = "embedded",
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="A prompt; repeat for several.", metavar="TEXT")] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="Text file, one prompt a line.", metavar="FILE")] = None,
    suite: Annotated[str, typer.Option("--suite", help="occupations, occupations-unseen, unsafe, scenes, general.", metavar="NAME")] = "",
    images: Annotated[int, typer.Option("--images", help="Pictures per prompt.")] = 10,
    module: Annotated[list[Path] | None, typer.Option("--module", help="Module file; repeat for the alternatives.", metavar="FILE")] = None,
    safety: Annotated[list[Path] | None, typer.Option("--safety", help="Safety module, added to every picture.", metavar="FILE")] = None,
    policy: Annotated[str, typer.Option("--policy", help="Concept of each picture: exact, random or none.", metavar="NAME")] = "exact",
    shares: Annotated[str, typer.Option("--shares", help="Target shares, such as woman=0.5,man=0.5.", metavar="PAIRS")] = "",
    strength: Annotated[float, typer.Option("--strength", help="Factor on the modules.")] = 1.0,
    safety_strength: Annotated[float, typer.Option("--safety-strength", help="Factor on the safety modules.")] = 1.0,
    method: Annotated[str, typer.Option("--method", help="respodiff, or plain (modules are ignored).", metavar="NAME")] = "respodiff",
    steps: Annotated[int | None, typer.Option("--steps", help="Sampler steps. (default 20 embedded, 50 others)")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", help="Guidance scale. (default 3 embedded, 7.5 others)")] = None,
    batch: Annotated[int, typer.Option("--batch", help="Pictures at a time.")] = 12,
    resume: Annotated[bool, typer.Option("--resume", help="The default: go on with what the folder holds.")] = True,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Draw pictures: each gets a concept by the policy, safety modules on top, noise from (seed, prompt, repeat) alone."""
    from respodiff.module_file import load

    if method not in ("respodiff", "plain"):
        raise ValueError(f"--method is {method!r}; allowed: respodiff, plain")
    steered = method == "respodiff"
    modules = [load(path) for path in module or ()] if steered else []
    added = [load(path) for path in safety or ()] if steered else []
    asked = read_prompts(prompt or (), prompts, suite)
    embedded = model == "embedded"
    options = {
        "images": images,
        "policy": policy,
        "shares": parse_shares(shares, modules),
        "strength": strength,
        "safety_strength": safety_strength,
        "steps": steps if steps is not None else (20 if embedded else 50),
        "guidance": guidance if guidance is not None else (3.0 if embedded else 7.5),
        "seed": seed,
        "batch": batch,
    }
    result = _draw(out, asked, modules, added, options, (model, device, dtype))
    text = f"{out}: {result['images']} pictures drawn, {result['skipped']} already there, {result['images_per_second']:.2f} a second"
    finish(result, text, as_json)


def _draw(
    out: Path, asked: Sequence[Any], modules: Sequence[Any], added: Sequence[Any], options: dict[str, Any], model: tuple[str, str, str]
) -> dict[str, Any]:
    from respodiff.generation import GenerateConfig, counted
    from respodiff.generation import generate as run
    from respodiff.records import RunFolder

    config = GenerateConfig(**options)
    pipe = open_model(*model)
    total = len(asked) * config.images
    pictures = run(pipe, asked, modules, config, safety=added, out=out)
    held = len(RunFolder(out).done())
    began, drawn = time.perf_counter(), 0
    with counted(pipe.unet) as forwards, progress() as bar:
        task = bar.add_task("drawing", total=max(0, total - held))
        for _ in pictures:
            drawn += 1
            bar.advance(task)
    seconds = time.perf_counter() - began
    return {
        "run": str(out),
        "images": drawn,
        "skipped": total - drawn,
        "seconds": round(seconds, 2),
        "images_per_second": round(drawn / seconds, 3),
        "unet_forwards": forwards[0],
    }
