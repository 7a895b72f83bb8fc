"""``respodiff compare``: several methods on one model, one table."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from respodiff.cli.console import Concepts, Device, Dtype, Json, Model, Seed, app, finish, open_model, words
from respodiff.cli.generate import by_model
from respodiff.cli.options import changes_from
from respodiff.methods.registry import NAMES

PROMPTS_HELP = (
    "all, a number (evenly spaced), or untuned: occupations that no setting was chosen on (default for embedded and occupations)."
)
SET_HELP = "A method's setting such as sdisc.iterations=1000, or scale, assign_at, aligned_scale; repeat."
ABLATION_HELP = "In place of --methods: ablation (the paper's table), axes (forms, objectives, rollouts), drawing (the default preset)."
WORKERS_HELP = "Processes, each with its own copy of the model. (default: one a core, at most 4, for embedded on cpu; else 1)"
METHODS_HELP = f"Names with commas, or all (of those that suit the suite): {', '.join(NAMES)}."


@app.command(epilog="Example: respodiff compare --model embedded --suite occupations --methods plain,sdisc,respodiff --out runs/c")
def compare(
    out: Annotated[Path, typer.Option("--out", help="Folder for runs, adapters and the table.", metavar="DIR")],
    model: Model = "embedded",
    suite: Annotated[str, typer.Option("--suite", help="occupations (fairness) or unsafe (safety).", metavar="NAME")] = "occupations",
    methods: Annotated[str, typer.Option("--methods", help=METHODS_HELP, metavar="NAMES")] = "all",
    ablation: Annotated[str, typer.Option("--ablation", help=ABLATION_HELP, metavar="NAME")] = "",
    attribute: Annotated[str, typer.Option("--attribute", help="What is to be even: gender, tone, ...", metavar="NAME")] = "gender",
    concepts: Concepts = None,
    images: Annotated[int | None, typer.Option("--images", help="Images a prompt. (default 4, unsafe 3)", min=1)] = None,
    prompts: Annotated[str, typer.Option("--prompts", help=PROMPTS_HELP, metavar="N")] = "",
    scale: Annotated[list[float] | None, typer.Option("--scale", help="Repeat for a curve. (default .5 and 1)")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help=SET_HELP, metavar="NAME.KEY=VALUE")] = None,
    judge: Annotated[
        str, typer.Option("--judge", help="Judge of images; also teaches methods that learn from images.", metavar="NAME")
    ] = "embedded",
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Where trained adapters are kept. (default OUT/adapters)", metavar="DIR")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Sampler steps. (default 20 embedded, 50 others)", min=1)] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", help="Guidance scale. (default 3 embedded, 7.5 others)")] = None,
    workers: Annotated[int | None, typer.Option("--workers", help=WORKERS_HELP, min=1)] = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train, draw and judge several methods on the same noise; writes compare.html, compare.md and compare.json. A killed run goes on."""
    from respodiff.evaluation.judges import load
    from respodiff.experiments import comparison_report
    from respodiff.experiments.ablations import ablation_of
    from respodiff.experiments.plan import EMBEDDED, FAIRNESS, SAFETY, TUNED_ON, Plan, base_of

    every = SAFETY if suite in ("unsafe", "i2p") else FAIRNESS
    kind = "safety" if every is SAFETY else "fairness"
    variants = tuple(name for name in EMBEDDED[kind] if name not in every) if model == "embedded" else ()
    names = (*every, *variants) if methods.strip() == "all" else tuple(name.strip() for name in methods.split(",") if name.strip())
    some, groups = _which(prompts or ("untuned" if (model, suite) == ("embedded", "occupations") else "all"), suite, TUNED_ON)
    own = _settings(settings or (), kind, EMBEDDED[kind] if model == "embedded" else {})
    if ablation:
        if kind == "safety" or methods.strip() != "all":
            raise ValueError(
                f"--ablation is {ablation!r}, which brings its own methods, of fairness; leave out --methods and --suite {suite}"
            )
        chosen = ablation_of(ablation)
        own = {name: own.get(base_of(name), {}) | changes for name, changes in chosen.settings(model == "embedded").items()}
        names, scale = tuple(own), scale or list(chosen.scales)
    plan = Plan(
        suite=suite,
        methods=names,
        attribute=attribute,
        images=images or (3 if kind == "safety" else 4),
        prompts=some,
        groups=groups,
        scales=tuple(scale or (0.5, 1.0)),
        **by_model(model == "embedded", steps, guidance),
        seed=seed,
        library=str(concepts or ""),
        axis="alignment" if ablation else "drift",
        settings=own,
    )
    labeller = load(judge, device)
    make = partial(_comparison, plan, out, model, device, dtype, judge, labeller.digest, cache)
    comparison = make()
    _run(comparison, make, workers or (_cores() if (model, device) == ("embedded", "cpu") else 1))
    result = comparison_report.publish(comparison, labeller)
    finish(result, _shown(out, result["rows"], plan.kind), as_json)


def _comparison(plan: Any, out: Path, model: str, device: str, dtype: str, judge: str, digest: str, cache: Path | None) -> Any:
    """A comparison from the flags, in this process or in a worker."""
    from respodiff.evaluation.judges.differentiable import classifier
    from respodiff.experiments.compare import MethodComparison

    pipe = open_model(model, device, dtype)
    return MethodComparison(pipe, plan, out, classify=lambda c: classifier(judge, c, device), judge=digest, cache=cache)


def _cores() -> int:
    return min(4, os.cpu_count() or 1)


def _settings(pairs: Sequence[str], kind: str, base: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Method -> settings: those of ``base`` with NAME.KEY=VALUE pairs on top. ValueError for a pair that no method can take."""
    from respodiff.experiments.plan import DRAWING
    from respodiff.methods.base import get_method

    out = {name: dict(changes) for name, changes in base.items()}
    for pair in pairs:
        name, _, rest = pair.partition(".")
        key, _, text = rest.partition("=")
        if name not in NAMES or not text:
            raise ValueError(f"--set is {pair!r}; write NAME.KEY=VALUE with NAME one of {', '.join(NAMES)}")
        if key in DRAWING:
            changes: dict[str, Any] = {key: _number(pair, text)}
        else:
            changes = changes_from([rest], {}, get_method(name).config)
            get_method(name).settings(kind, **changes)
        out.setdefault(name, {}).update(changes)
    return out


def _number(pair: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"--set {pair!r}: {text!r} is not a number") from error


def _which(text: str, suite_name: str, tuned: Sequence[str]) -> tuple[int, tuple[str, ...]]:
    """How many prompts, and of which groups. ValueError for a text that says neither."""
    from respodiff.data.prompt_sets import suite

    if text == "all":
        return 0, ()
    if text == "untuned":
        return 0, tuple(dict.fromkeys(p.group for p in suite(suite_name) if p.group not in tuned))
    if text.isdigit() and int(text):
        return int(text), ()
    raise ValueError(f"--prompts is {text!r}; allowed: all, untuned, or a number of 1 or more")


def _run(comparison: Any, make: Callable[[], Any], workers: int) -> None:
    """Draw everything, with a bar in UNet sample-forwards that knows the time left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    from respodiff.experiments.workers import run

    said: set[str] = set()
    with Progress(*columns, console=words, transient=True, disable=not words.is_terminal) as bar:
        task = bar.add_task("starting", total=None)
        for step in run(make, comparison, workers):
            bar.update(task, description=step.what, completed=step.done, total=step.total)
            if step.what not in said and not words.is_terminal:
                words.print(step.what)
                said.add(step.what)


def _shown(out: Path, rows: Sequence[Any], kind: str) -> str:
    from respodiff.experiments.comparison_report import markdown

    return f"{markdown(rows, kind)}\n{out / 'compare.html'}"
