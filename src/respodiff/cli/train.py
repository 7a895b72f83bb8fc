"""``respodiff train``."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

from typer import Option

from respodiff._device import chosen_device
from respodiff.cli.console import app, finish, open_model, peak_mib, progress, words
from respodiff.cli.options import TRAINING, Concepts, Force, Json, changes_from, library, number, takes_model, to_path
from respodiff.concepts.concept import Attribute, Concept, concept, own_concept
from respodiff.concepts.concept import attribute as find_attribute
from respodiff.data.places import lock
from respodiff.methods.registry import NAMES
from respodiff.pipelines.source import ModelSource
from respodiff.training.checkpoint import SAVE_EVERY, Checkpoint
from respodiff.training.config import LAST_SEED, MOST

LOSSES, VERDICT = ("loss_first", "loss_last"), ("effect", "projection", "relative_norm", "reached", "linearity")
METHOD_HELP = f"{', '.join(NAMES)}<methods> (docs/methods.md)."
REPORT_HELP = "tensorboard (a folder beside --out), trackio or wandb: losses, relative norm, images; each needs the extra of its name."
VALIDATION_HELP = "For --report-to: an image now and then, unsteered beside steered; repeat for several."
ATTRIBUTE_HELP = (
    "Train all alternatives of a known attribute in one run, into the folder --out; with --target: attribute of your own concept."
)


def chosen_concepts(known: str, attribute: str, file: Path | None, texts: dict[str, str], lists: dict[str, Sequence[str]]) -> list[Concept]:
    """A known concept, all alternatives of a known attribute, or one concept from prompts; ValueError for a flag that would be ignored."""
    texts = {k: v.strip() for k, v in texts.items()}
    lists = {k: [v.strip() for v in values] for k, values in lists.items()}
    if empty := [k for k, values in lists.items() if not all(values)]:
        raise ValueError(f"--{empty[0]} is empty; give a prompt, or leave it out")
    if (texts["target"] or texts["negative"]) and not known:
        if file:
            raise ValueError(f"--concepts {str(file)!r} is given beside prompts of your own; leave it out, or name one with --concept")
        return [replace(own_concept(**texts, opposite=lists["opposite"], preserve=lists["preserve"]), attribute=attribute)]
    if not known and not attribute:
        raise ValueError("no concept given; use --concept NAME, --attribute NAME, --target TEXT (fairness), or --negative TEXT (safety)")
    if given := [k for k, v in {**texts, **lists, "attribute": attribute if known else ""}.items() if v]:
        chosen = f"--concept {known!r}" if known else f"--attribute {attribute!r}"
        raise ValueError(f"--{given[0]} is given beside {chosen}, which brings its own; leave one out, or describe yours with --target")
    return [concept(known, library(file))] if known else list(find_attribute(attribute, library(file)).concepts)


@app.command(epilog="Example: respodiff train --model embedded --concept woman --out woman.safetensors")
@takes_model(TRAINING, trains=True)
def train(
    out: Annotated[Path, Option(help="Module file to write; with --attribute a folder.", metavar="PATH", parser=to_path)],
    model: ModelSource,
    method: Annotated[str, Option(help=METHOD_HELP, metavar="NAME")] = "respodiff",
    known: Annotated[str, Option("--concept", help="A known concept: woman, man, light, dark, violence, ...", metavar="NAME")] = "",
    target: Annotated[str, Option(help="Prompt to steer towards.", metavar="TEXT")] = "",
    neutral: Annotated[str, Option(help="Prompt that is steered. (default a person; safety: a scene)", metavar="TEXT")] = "",
    candidates: Annotated[str, Option("--neutral-candidates", help="Several, with commas; the best is used.", metavar="TEXTS")] = "",
    negative: Annotated[str, Option(help="Prompt to steer away from; alone it makes a safety concept.", metavar="TEXT")] = "",
    opposite: Annotated[list[str] | None, Option(help="Target prompt of another alternative.", metavar="TEXT")] = None,
    preserve: Annotated[list[str] | None, Option(help="Prompt whose images must not change.", metavar="TEXT")] = None,
    name: Annotated[str, Option(help="Name of your own concept.", metavar="NAME")] = "",
    attribute: Annotated[str, Option(help=ATTRIBUTE_HELP, metavar="NAME")] = "",
    concepts: Concepts = None,
    preset: Annotated[str, Option(help="default, paper, or official (the authors' scripts).", metavar="NAME")] = "default",
    iterations: Annotated[int | None, number(1, MOST, help="Instead of the preset's.")] = None,
    site: Annotated[
        list[str] | None, Option(help="Block to steer at; repeat for several. (default: the family's; respodiff sites)", metavar="NAME")
    ] = None,
    changes: Annotated[list[str] | None, Option("--set", help="Any other setting of the method.", metavar="KEY=VALUE")] = None,
    judge: Annotated[
        str, Option(help="For methods that learn from images: embedded, clip:DIR-OR-ID, siglip: or hf:.", metavar="NAME")
    ] = "",
    report_to: Annotated[str, Option(help=REPORT_HELP, metavar="NAME")] = "",
    validation: Annotated[list[str] | None, Option("--validation-prompt", help=VALIDATION_HELP, metavar="TEXT")] = None,
    validation_every: Annotated[int | None, number(1, MOST, help="Iterations between these images. (default a quarter of all)")] = None,
    resume: Annotated[bool, Option("--resume", help="Go on with an interrupted run.")] = False,
    force: Force = False,
    seed: Annotated[int | None, number(0, LAST_SEED, help="Everything random follows from it. (default 0)")] = None,
    as_json: Json = False,
) -> None:
    """Train concepts from prompts alone: RAM and SAM (--set sam_lr=0 for RAM alone), or another method.

    Give a known concept, an attribute, or prompts of your own: --target "a woman" --neutral "a person".
    """
    from respodiff.evaluation.judges import classifier
    from respodiff.methods.registry import get_method
    from respodiff.training.attribute import not_shared
    from respodiff.training.config import TrainConfig, official_concept
    from respodiff.training.respodiff import train_together

    kind = get_method(method)
    for flag, value, other, needed in (
        ("--validation-every", validation_every, "--validation-prompt", validation),
        ("--validation-prompt", validation, "--report-to", report_to),
    ):
        if value and not needed:
            raise ValueError(f"{flag} is given without {other}; give both, or neither")
    if report_to:
        from respodiff.experiments.tracking import TrainingLog, backend, open_tracker

        backend(report_to)  # a package that is missing is noticed before the model is loaded
    if resume and not kind.resumes:
        raise ValueError(f"--resume is given, but method {method!r} keeps no state to go on from; leave it out")
    if neutral and candidates:
        raise ValueError(f"--neutral {neutral!r} is given beside --neutral-candidates {candidates!r}; give one of them")
    texts = {"target": target, "negative": negative, "name": name, "neutral": neutral}
    lists: dict[str, Sequence[str]] = {"opposite": opposite or (), "preserve": preserve or ()}
    if kind.default_concept and not (known or attribute or "".join(texts.values()).strip()):
        chosen = [kind.default_concept]
    else:
        chosen = chosen_concepts(known, attribute, concepts, texts, lists)
    if preset == "official":
        chosen = [official_concept(c) for c in chosen]
    one = chosen[0].kind in kind.needs_classifier  # one adapter of all alternatives, whichever is named
    chosen = chosen[:1] if one else chosen
    files = outputs(out, [(one and c.attribute) or c.name for c in chosen], whole := bool(attribute and not (target or negative)))
    settings = changes_from(changes or (), {"iterations": iterations, "seed": seed, "site": tuple(site or ()) or None}, kind.config)
    configs = [kind.settings(c, preset=preset, **settings) for c in chosen]
    pipe = open_model(model)
    if candidates:
        chosen = with_best_neutral(pipe, chosen, candidates, configs[0].seed)
    learns_from = judge if chosen[0].kind in kind.needs_classifier else ""
    states = [Checkpoint(file, c, config, pipe, method, learns_from) for file, c, config in zip(files, chosen, configs, strict=True)]
    for state in states:
        state.check_out(resume, force)

    def log_of(concepts: Sequence[Concept], file: Path, seed: int) -> Any:
        """What reports a training of these concepts, if anything does."""
        if not report_to:
            return None
        tracker = partial(open_tracker, report_to, "+".join(c.name for c in concepts), file.with_suffix(".tensorboard"))
        return TrainingLog(tracker, pipe, validation or (), every=validation_every or 0, seed=seed)

    reason = not_shared(chosen, configs) if whole and kind.config is TrainConfig else "methods other than RespoDiff train one at a time"
    with ExitStack() as held:
        for file in files:
            held.enter_context(lock(file))
        if whole and not reason:
            state = Checkpoint(out / attribute.replace("*", "-"), Attribute(attribute, tuple(chosen)), configs[0], pipe, method)
            run = partial(train_together, pipe, chosen, configs[0], method=method)
            log = log_of(chosen, state.out, configs[0].seed)
            runs = [_trained(chosen, files, run, state, resume, force, configs[0].iterations, log)]
        else:
            if len(chosen) > 1:
                words.print(f"one concept after the other: {reason}", soft_wrap=True)
            runs = []
            for c, config, file, state in zip(chosen, configs, files, states, strict=True):
                run = partial(kind.train, pipe, c, config, classify=classifier(judge, c, model.device))
                log = log_of([c], file, getattr(config, "seed", 0))
                runs.append(_trained([c], [file], run, state, resume, force, getattr(config, "iterations", None), log))
    result: dict[str, Any] = {
        "modules": [module for modules, _ in runs for module in modules],
        "method": method,
        "peak_mib": None if (peak := peak_mib(chosen_device(model.device))) is None else round(peak, 1),
    }
    result |= {key: sum(numbers[key] for _, numbers in runs) for key in ("iterations", "seconds", "unet_forwards")}
    for key in LOSSES:
        found = [numbers[key] for _, numbers in runs if key in numbers]
        result[key] = fmean(found) if len(found) == len(runs) else None
    loss = "" if result["loss_last"] is None else f", loss {result['loss_first']:.4f} to {result['loss_last']:.4f}"
    lines = [f"{result['iterations']} iterations, {result['seconds']:.0f} s, {result['unet_forwards']} UNet forwards{loss}"]
    for m in result["modules"]:
        figures = "".join(f", {key.replace('_', ' ')} {m[key]:.2f}" for key in VERDICT if m.get(key) is not None)
        lines.append(f"{m['file']}: {m['concept']!r}{figures}")
    finish(result, "\n".join(lines), as_json)


def outputs(out: Path, names: Sequence[str], folder: bool) -> list[Path]:
    """A module file for each name: ``out`` itself, or files in the folder ``out``; ValueError where it is the other."""
    if not folder and out.is_dir():
        raise ValueError(f"--out is {str(out)!r}, which is a folder; give a file in it, such as {str(out / 'module.safetensors')!r}")
    if folder and (out.is_file() or out.suffix == ".safetensors"):
        raise ValueError(f"--out is the file {str(out)!r}, but --attribute writes a file for each module; give a folder")
    return [out / f"{name.replace('*', '-')}.safetensors" for name in names] if folder else [out]


def with_best_neutral(pipe: Any, chosen: Sequence[Concept], candidates: str, seed: int) -> list[Concept]:
    """The concepts with the best of the neutral prompts for the first of them; prints the score of each."""
    from respodiff.training.diagnostics import choose_neutral

    found = choose_neutral(pipe, chosen[0], [text.strip() for text in candidates.split(",")], seed)
    scores = ", ".join(f"{score.prompt!r} {score.mean:.3f}" for score in found)
    words.print(f"neutral prompt {found[0].prompt!r}: lowest of {scores} (mean of residual and distance)", soft_wrap=True)
    return [replace(c, neutral=found[0].prompt) for c in chosen]


def _trained(
    chosen: Sequence[Concept],
    files: Sequence[Path],
    run: Any,
    checkpoint: Checkpoint,
    resume: bool,
    force: bool,
    total: int | None,
    log: Any = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Train and save the modules of one run: what the JSON line says of each, and the numbers of the run. Its state is saved now and then and
    at the end."""
    import torch

    from respodiff.methods.registry import get_method

    kind, earlier = get_method(checkpoint.method), checkpoint.start(resume)
    losses = {k: float(earlier.pop(k)) for k in LOSSES if k in earlier}
    record: Any = None
    saved = time.monotonic()

    def save() -> None:
        if not checkpoint.path.parent.is_dir():
            warnings.warn(f"{str(checkpoint.path.parent)!r} was deleted or moved meanwhile; it is made anew", stacklevel=2)
        if record is not None and kind.resumes:
            checkpoint.write(record.state.tensors() | {k: torch.tensor(v, dtype=torch.float64) for k, v in losses.items()})

    with progress() as bar:
        what = f"training {', '.join(c.name for c in chosen)}"
        task = bar.add_task(what, total=total)
        try:
            for record in run(resume=earlier or None):
                if math.isfinite(record.loss):  # a finished run that is resumed has none
                    losses = {"loss_first": record.loss, **losses, "loss_last": record.loss}
                bar.update(task, description=f"{what}, loss {record.loss:.4f}", completed=record.iteration, total=record.iterations)
                if log:
                    log(record)
                if time.monotonic() - saved > SAVE_EVERY:
                    save()
                    saved = time.monotonic()
            save()  # if a module cannot be written, --resume makes it from this
        except (KeyboardInterrupt, RuntimeError):
            save()
            raise
        finally:
            if log:
                log.close()
    modules = record.module if isinstance(record.module, dict) else {chosen[0].name: record.module}
    found = []
    for c, file in zip(chosen, files, strict=True):
        (module := modules[c.name]).save(file, force=force)
        about = {"file": str(file), "concept": c.name, "neutral": c.neutral, "digest": module.digest}
        found.append(about | {key: module.header.verdict.get(key) for key in VERDICT})
    checkpoint.path.unlink(missing_ok=True)
    return found, {"iterations": record.iteration, "seconds": round(record.seconds, 2), "unet_forwards": record.unet_forwards, **losses}
