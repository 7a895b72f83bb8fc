"""``respodiff train``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from respodiff.concepts import Concept, builtin, concept, load_concepts
from respodiff.config import TrainConfig
from respodiff.console import Concepts, Device, Dtype, Json, Model, Seed, app, finish, open_model, progress

SAVE_EVERY = 15.0  # seconds between saves of an unfinished training


def peak_mib(device: str) -> float:
    """Most memory this process has held, in MiB: of the accelerator if one is used, else resident memory."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return float("nan")
    import resource

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
        except (ValueError, TypeError) as error:
            raise ValueError(f"--set {pair!r}: {text!r} is not {getattr(hint, '__name__', hint)}; write --set {key}=VALUE") from error
    return TrainConfig.preset(preset, kind, **changes)


class Unfinished:
    """The state of a training run beside its module file, so that a killed run goes on where it was."""

    def __init__(self, out: Path, concept: Concept, config: TrainConfig, pipe: Any) -> None:
        from respodiff.adapters import backbone
        from respodiff.pipelines import weights_digest

        model = backbone(pipe)
        self.path = out.with_name(f".{out.name}.unfinished")
        about = {"concept": asdict(concept), "config": asdict(config), "model": weights_digest(model), "dtype": str(model.dtype)}
        self.about = json.dumps(about, sort_keys=True)

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
            raise ValueError(
                f"--resume: {str(self.path)!r} is of another concept, model or other settings; give those, or leave --resume out"
            )
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
    attribute: Annotated[
        str, typer.Option("--attribute", help="Attribute that your own concept is an alternative of, such as gender.", metavar="NAME")
    ] = "",
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
        if given := [f for f, v in (("--target", target), ("--negative", negative), ("--name", name), ("--attribute", attribute)) if v]:
            raise ValueError(f"{given[0]} is given beside --concept {concept_name!r}; use --concept, or prompts of your own")
        chosen = concept(concept_name, {**builtin(), **(load_concepts(concepts) if concepts else {})})
    else:
        chosen = replace(own_concept(name, target, neutral, negative, opposite or (), preserve or ()), attribute=attribute)
    config = settings(preset, chosen.kind, changes or (), iterations=iterations, seed=seed)
    pipe = open_model(model, device, dtype)
    state = Unfinished(out, chosen, config, pipe)
    earlier = state.read() if resume else None
    if earlier is None:
        state.write({})  # a folder that cannot be written is noticed before the work, not after
    record, first = _run(pipe, chosen, config, earlier or {}, state)
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


def _run(pipe: Any, chosen: Concept, config: TrainConfig, earlier: dict[str, Any], state: Unfinished) -> tuple[Any, float]:
    """Last record and first loss of a training with a progress bar, its state saved now and then."""
    import torch

    from respodiff.training import train as run

    record, saved = None, time.monotonic()
    first = float(earlier.pop("loss_first", "nan"))

    def save() -> None:
        if record is not None:
            state.write(record.state.tensors() | {"loss_first": torch.tensor(first, dtype=torch.float64)})

    with progress() as bar:
        task = bar.add_task(f"training {chosen.name}", total=config.iterations)
        try:
            for record in run(pipe, chosen, config, resume=earlier or None):
                first = record.loss_ram if first != first else first
                bar.update(task, completed=record.iteration)
                if time.monotonic() - saved > SAVE_EVERY:
                    save()
                    saved = time.monotonic()
        except KeyboardInterrupt:
            save()
            raise
    if record is None:
        raise ValueError("--resume: this run is already finished; nothing was left to do")
    return record, first
