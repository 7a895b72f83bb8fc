"""``respodiff train``."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from respodiff.cli.console import Concepts, Device, Dtype, Json, Model, app, finish, given_path, open_model, progress, words
from respodiff.cli.options import METHOD_HELP, changes_from
from respodiff.concepts.concept import Concept, builtin, concept, load_concepts
from respodiff.evaluation.judges.differentiable import classifier
from respodiff.methods.registry import NAMES
from respodiff.training.checkpoint import Checkpoint
from respodiff.training.config import TrainConfig

SAVE_EVERY = 15.0  # seconds between saves of a checkpoint


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
    return TrainConfig.preset(preset, kind, **changes_from(pairs, flags, TrainConfig))


def method_settings(name: str, preset: str, kind: Any, pairs: Sequence[str], **flags: Any) -> Any:
    """Settings of any method; presets are RespoDiff's alone."""
    if name == "respodiff":
        return settings(preset, kind, pairs, **flags)
    from respodiff.methods.registry import get_method

    if preset != "default":
        raise ValueError(f"--preset {preset!r} is given beside --method {name!r}; presets are for --method respodiff")
    found = get_method(name)
    return found.settings(kind, **changes_from(pairs, flags, found.config))


Target = Annotated[str, typer.Option("--target", help="Prompt to steer towards.", metavar="TEXT")]
Neutral = Annotated[str, typer.Option("--neutral", help="Prompt that is steered. (default a person; safety: a scene)", metavar="TEXT")]
CANDIDATES_HELP = "Neutral prompts with commas; the one that stands best for the alternatives is trained on."
Candidates = Annotated[str, typer.Option("--neutral-candidates", help=CANDIDATES_HELP, metavar="TEXTS")]
Negative = Annotated[str, typer.Option("--negative", help="Prompt to steer away from; alone it makes a safety concept.", metavar="TEXT")]
Opposite = Annotated[list[str] | None, typer.Option("--opposite", help="Target prompt of another alternative.", metavar="TEXT")]
PRESERVE_HELP = "Prompt whose images must not change. (default a person, for safety)"
Preserve = Annotated[list[str] | None, typer.Option("--preserve", help=PRESERVE_HELP, metavar="TEXT")]
ATTRIBUTE_HELP = "Attribute that your own concept is an alternative of, such as gender."
AttributeName = Annotated[str, typer.Option("--attribute", help=ATTRIBUTE_HELP, metavar="NAME")]
Known = Annotated[str, typer.Option("--concept", help="A known concept: woman, man, light, dark, violence, ...", metavar="NAME")]
Preset = Annotated[str, typer.Option("--preset", help="default, neutral, paper, or released (the authors' scripts).", metavar="NAME")]
Changes = Annotated[list[str] | None, typer.Option("--set", help="Any other setting of the method.", metavar="KEY=VALUE")]
MethodName = Annotated[str, typer.Option("--method", help=f"{METHOD_HELP} (docs/methods.md).", metavar="NAME")]
JUDGE_HELP = "Judge that sorts images, for methods that learn from images: embedded, or clip:DIR-OR-ID."
JudgeName = Annotated[str, typer.Option("--judge", help=JUDGE_HELP, metavar="NAME")]
Iterations = Annotated[int | None, typer.Option("--iterations", help="Instead of the preset's.", metavar="N")]


@app.command(epilog="Example: respodiff train --model embedded --concept woman --out woman.safetensors")
def train(
    out: Annotated[Path, typer.Option("--out", help="Module file to write.", metavar="FILE", parser=given_path)],
    model: Model = "embedded",
    method: MethodName = "respodiff",
    concept_name: Known = "",
    target: Target = "",
    neutral: Neutral = "",
    neutral_candidates: Candidates = "",
    negative: Negative = "",
    opposite: Opposite = None,
    preserve: Preserve = None,
    name: Annotated[str, typer.Option("--name", help="Name of your own concept.", metavar="NAME")] = "",
    attribute: AttributeName = "",
    concepts: Concepts = None,
    preset: Preset = "default",
    iterations: Iterations = None,
    changes: Changes = None,
    judge: JudgeName = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Annotated[int | None, typer.Option("--seed", help="Everything random follows from it. (default 0)", min=0)] = None,
    as_json: Json = False,
) -> None:
    """Train one concept from prompts alone: RAM, and SAM where it is switched on (--set sam_lr=0.02, or another preset); or another method.

    Give a known concept, or prompts of your own: --target "a woman" --neutral "a person".
    """
    check_method(method, resume)
    if neutral and neutral_candidates:
        raise ValueError(f"--neutral {neutral!r} is given beside --neutral-candidates {neutral_candidates!r}; give one of them")
    if out.is_dir():
        raise ValueError(f"--out is {str(out)!r}, which is a folder; give a file in it, such as {str(out / 'module.safetensors')!r}")
    texts = {"target": target, "negative": negative, "name": name, "attribute": attribute, "neutral": neutral}
    lists: dict[str, Sequence[str]] = {"opposite": opposite or (), "preserve": preserve or ()}
    chosen = default_concept(method, concept_name, texts) or chosen_concept(concept_name, concepts, texts, lists)
    config = method_settings(method, preset, chosen.kind, changes or (), iterations=iterations, seed=seed)
    pipe = open_model(model, device, dtype)
    if neutral_candidates:
        chosen = with_best_neutral(pipe, chosen, neutral_candidates, config.seed)
    state = Checkpoint(out, chosen, config, pipe, method)
    finish(*_trained(pipe, chosen, config, state, resume, device, classifier(judge, chosen, device)), as_json)


def with_best_neutral(pipe: Any, chosen: Concept, candidates: str, seed: int) -> Concept:
    """The concept with the best of the neutral prompts between commas; says the score of each."""
    from respodiff.training.neutral_prompt import choose_neutral

    found = choose_neutral(pipe, chosen, [text.strip() for text in candidates.split(",")], seed)
    scores = ", ".join(f"{score.prompt!r} {score.mean:.3f}" for score in found)
    words.print(f"neutral prompt {found[0].prompt!r}: lowest of {scores} (mean of residual and distance)", markup=False, soft_wrap=True)
    return replace(chosen, neutral=found[0].prompt)


def check_method(name: str, resume: bool) -> None:
    """ValueError for an unknown method, and for resuming one that cannot be."""
    if name not in NAMES:
        raise ValueError(f"--method is {name!r}; allowed: {METHOD_HELP}")
    if resume and name != "respodiff":
        from respodiff.methods.registry import get_method

        if not get_method(name).resumes:
            raise ValueError(f"--resume is given, but method {name!r} keeps no state to go on from; leave it out")


def default_concept(method: str, known: str, texts: dict[str, str]) -> Concept | None:
    """The method's own concept where none is given."""
    if known or any(v.strip() for v in texts.values()):
        return None
    from respodiff.methods.registry import get_method

    return get_method(method).default_concept


def _trained(
    pipe: Any, chosen: Concept, config: Any, state: Checkpoint, resume: bool, device: str, classify: Any
) -> tuple[dict[str, Any], str]:
    """Train and save the module; what to say of it, as JSON and in words."""
    record, losses = _run(pipe, chosen, config, state.start(resume), state, classify)
    record.module.save(state.out)
    state.delete()
    result = {
        "module": str(state.out),
        "method": state.method,
        "neutral": chosen.neutral,
        "digest": record.module.digest,
        "iterations": record.iteration,
        "seconds": round(record.seconds, 2),
        "unet_forwards": record.unet_forwards,
        "peak_mib": round(peak_mib(device), 1),
        **losses,
    }
    done = f"{record.iteration} iterations, {record.seconds:.0f} s, {record.unet_forwards} UNet forwards"
    return result, f"{state.out}: {chosen.name!r}, {done}"


def _run(
    pipe: Any, chosen: Concept, config: Any, earlier: dict[str, Any], state: Checkpoint, classify: Any
) -> tuple[Any, dict[str, float]]:
    """Last record and the first and last loss of a training with a progress bar, its state saved now and then and at the end."""
    import torch

    from respodiff.methods.registry import get_method

    kind = get_method(state.method)
    record, saved = None, time.monotonic()
    losses = {k: float(earlier.pop(k, "nan")) for k in ("loss_first", "loss_last")}

    def save() -> None:
        if record is not None and kind.resumes:
            state.write(record.state.tensors() | {k: torch.tensor(v, dtype=torch.float64) for k, v in losses.items()})

    with progress() as bar:
        task = bar.add_task(f"training {chosen.name}", total=getattr(config, "iterations", None))
        try:
            for record in kind.train(pipe, chosen, config, classify=classify, resume=earlier or None):
                if math.isfinite(record.loss):  # a finished run that is resumed has none
                    losses = {"loss_first": losses["loss_first"], "loss_last": record.loss}
                if math.isnan(losses["loss_first"]):
                    losses["loss_first"] = losses["loss_last"]
                bar.update(task, completed=record.iteration, total=record.iterations)
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
