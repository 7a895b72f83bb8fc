"""``respodiff train``."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from respodiff.concepts import Concept, builtin, concept, load_concepts
from respodiff.config import TrainConfig
from respodiff.console import Concepts, Device, Dtype, Json, Model, app, finish, given_path, open_model, progress
from respodiff.unfinished import Unfinished

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


def chosen_concept(known: str, file: Path | None, texts: dict[str, str], lists: dict[str, Sequence[str]]) -> Concept:
    """A known concept by name, or one of the user's own prompts; ValueError for flags of which one would be ignored."""
    texts = {k: v.strip() for k, v in texts.items()}
    lists = {k: [v.strip() for v in values] for k, values in lists.items()}
    if empty := [k for k, values in lists.items() if not all(values)]:
        raise ValueError(f"--{empty[0]} is empty; give a prompt, or leave it out")
    if not known:
        if file and (texts["target"] or texts["negative"]):
            raise ValueError(
                f"--concepts {str(file)!r} is given beside prompts of your own; name a concept of it with --concept, or leave it out"
            )
        prompts = (texts["target"], texts["neutral"], texts["negative"])
        return replace(own_concept(texts["name"], *prompts, lists["opposite"], lists["preserve"]), attribute=texts["attribute"])
    if given := [k for k, v in {**texts, **lists}.items() if v]:
        raise ValueError(
            f"--{given[0]} is given beside --concept {known!r}, which brings its own; use --concept alone, or --target (and --neutral, ...)"
        )
    return concept(known, {**builtin(), **(load_concepts(file) if file else {})})


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
        if flags.get(key) is not None:
            raise ValueError(f"--set {pair!r} is given beside --{key} {flags[key]}; give one of them")
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


Target = Annotated[str, typer.Option("--target", help="Prompt to steer towards.", metavar="TEXT")]
Neutral = Annotated[str, typer.Option("--neutral", help="Prompt that is steered. (default a person; safety: a scene)", metavar="TEXT")]
Negative = Annotated[str, typer.Option("--negative", help="Prompt to steer away from; alone it makes a safety concept.", metavar="TEXT")]
Opposite = Annotated[list[str] | None, typer.Option("--opposite", help="Target prompt of another alternative.", metavar="TEXT")]
PRESERVE_HELP = "Prompt whose pictures must not change. (default a person, for safety)"
Preserve = Annotated[list[str] | None, typer.Option("--preserve", help=PRESERVE_HELP, metavar="TEXT")]
ATTRIBUTE_HELP = "Attribute that your own concept is an alternative of, such as gender."
AttributeName = Annotated[str, typer.Option("--attribute", help=ATTRIBUTE_HELP, metavar="NAME")]
Known = Annotated[str, typer.Option("--concept", help="A known concept: woman, man, light, dark, violence, ...", metavar="NAME")]
Preset = Annotated[str, typer.Option("--preset", help="default, paper, or released (the authors' scripts).", metavar="NAME")]
Changes = Annotated[list[str] | None, typer.Option("--set", help="Any other setting of TrainConfig.", metavar="KEY=VALUE")]
Iterations = Annotated[int | None, typer.Option("--iterations", help="Instead of the preset's.", metavar="N")]


@app.command(epilog="Example: respodiff train --model embedded --concept woman --out woman.safetensors")
def train(
    out: Annotated[Path, typer.Option("--out", help="Module file to write.", metavar="FILE", parser=given_path)],
    model: Model = "embedded",
    concept_name: Known = "",
    target: Target = "",
    neutral: Neutral = "",
    negative: Negative = "",
    opposite: Opposite = None,
    preserve: Preserve = None,
    name: Annotated[str, typer.Option("--name", help="Name of your own concept.", metavar="NAME")] = "",
    attribute: AttributeName = "",
    concepts: Concepts = None,
    preset: Preset = "default",
    iterations: Iterations = None,
    changes: Changes = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Annotated[int | None, typer.Option("--seed", help="Everything random follows from it. (default 0)", min=0)] = None,
    as_json: Json = False,
) -> None:
    """Train one concept from prompts alone: RAM, and SAM where it is switched on (--set sam_lr=0.02, or another preset).

    Give a known concept, or prompts of your own: --target "a woman" --neutral "a person".
    """
    if out.is_dir():
        raise ValueError(f"--out is {str(out)!r}, which is a folder; give a file in it, such as {str(out / 'module.safetensors')!r}")
    texts = {"target": target, "negative": negative, "name": name, "attribute": attribute, "neutral": neutral}
    chosen = chosen_concept(concept_name, concepts, texts, {"opposite": opposite or (), "preserve": preserve or ()})
    config = settings(preset, chosen.kind, changes or (), iterations=iterations, seed=seed)
    pipe = open_model(model, device, dtype)
    finish(*_trained(pipe, chosen, config, Unfinished(out, chosen, config, pipe), resume, device), as_json)


def _trained(pipe: Any, chosen: Concept, config: TrainConfig, state: Unfinished, resume: bool, device: str) -> tuple[dict[str, Any], str]:
    """Train and save the module; what to say of it, as JSON and in words."""
    record, losses = _run(pipe, chosen, config, state.start(resume), state)
    record.module.save(state.out)
    state.delete()
    result = {
        "module": str(state.out),
        "digest": record.module.digest,
        "iterations": record.iteration,
        "seconds": round(record.seconds, 2),
        "unet_forwards": record.unet_forwards,
        "peak_mib": round(peak_mib(device), 1),
        **losses,
    }
    done = f"{record.iteration} iterations, {record.seconds:.0f} s, {record.unet_forwards} UNet forwards"
    return result, f"{state.out}: {chosen.name!r}, {done}"


def _run(pipe: Any, chosen: Concept, config: TrainConfig, earlier: dict[str, Any], state: Unfinished) -> tuple[Any, dict[str, float]]:
    """Last record and the first and last loss of a training with a progress bar, its state saved now and then and at the end."""
    import torch

    from respodiff.training import train as run

    record, saved = None, time.monotonic()
    losses = {k: float(earlier.pop(k, "nan")) for k in ("loss_first", "loss_last")}

    def save() -> None:
        if record is not None:
            state.write(record.state.tensors() | {k: torch.tensor(v, dtype=torch.float64) for k, v in losses.items()})

    with progress() as bar:
        task = bar.add_task(f"training {chosen.name}", total=config.iterations)
        try:
            for record in run(pipe, chosen, config, resume=earlier or None):
                if math.isfinite(record.loss_ram):  # a finished run that is resumed has none
                    losses = {"loss_first": losses["loss_first"], "loss_last": record.loss_ram}
                if math.isnan(losses["loss_first"]):
                    losses["loss_first"] = losses["loss_last"]
                bar.update(task, completed=record.iteration)
                if time.monotonic() - saved > SAVE_EVERY:
                    save()
                    saved = time.monotonic()
            save()  # if the module cannot be written, --resume makes it from this
        except KeyboardInterrupt:
            save()
            raise
        finally:
            if record is None:
                state.clear_away()
    return record, losses
