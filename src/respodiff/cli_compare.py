"""``respodiff compare``: several methods on one model, one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from respodiff.console import Device, Dtype, Json, Model, Seed, app, finish, open_model, words
from respodiff.methods import NAMES

PROMPTS_HELP = (
    "all, a number (evenly spaced), or untuned: occupations that no setting was chosen on (default for embedded and occupations)."
)
METHODS_HELP = f"Names with commas, or all (of those that suit the suite): {', '.join(NAMES)}."


@app.command(epilog="Example: respodiff compare --model embedded --suite occupations --methods plain,sdisc,respodiff --out runs/c")
def compare(
    out: Annotated[Path, typer.Option("--out", help="Folder for runs, artefacts and the table.", metavar="DIR")],
    model: Model = "embedded",
    suite: Annotated[str, typer.Option("--suite", help="occupations (fairness) or unsafe (safety).", metavar="NAME")] = "occupations",
    methods: Annotated[str, typer.Option("--methods", help=METHODS_HELP, metavar="NAMES")] = "all",
    attribute: Annotated[str, typer.Option("--attribute", help="What is to be even: gender, tone, ...", metavar="NAME")] = "gender",
    images: Annotated[int, typer.Option("--images", help="Pictures a prompt.", min=1)] = 4,
    prompts: Annotated[str, typer.Option("--prompts", help=PROMPTS_HELP, metavar="N")] = "",
    strength: Annotated[list[float] | None, typer.Option("--strength", help="Repeat for a curve. (default 1)")] = None,
    judge: Annotated[
        str, typer.Option("--judge", help="Judge of pictures; also teaches methods that learn from pictures.", metavar="NAME")
    ] = "embedded",
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Where trained artefacts are kept. (default OUT/artefacts)", metavar="DIR")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", help="Sampler steps.", min=1)] = 20,
    guidance: Annotated[float, typer.Option("--guidance", help="Guidance scale (3 embedded, 7.5 others).")] = 3.0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train, draw and judge several methods on the same noise; writes compare.html, compare.md and compare.json. A killed run goes on."""
    from respodiff import contest_page
    from respodiff.cli_methods import classifier
    from respodiff.contest import Contest
    from respodiff.contest_plan import FAIRNESS, SAFETY, TUNED_ON, Plan
    from respodiff.judges import load

    every = SAFETY if suite in ("unsafe", "i2p") else FAIRNESS
    names = every if methods.strip() == "all" else tuple(name.strip() for name in methods.split(",") if name.strip())
    some, groups = _which(prompts or ("untuned" if (model, suite) == ("embedded", "occupations") else "all"), suite, TUNED_ON)
    plan = Plan(
        suite=suite,
        methods=names,
        attribute=attribute,
        images=images,
        prompts=some,
        groups=groups,
        strengths=tuple(strength or (1.0,)),
        steps=steps,
        guidance=guidance,
        seed=seed,
    )
    pipe, eye = open_model(model, device, dtype), load(judge, device)
    contest = Contest(pipe, plan, out, classify=lambda c: classifier(judge, c, device), judge=eye.digest, cache=cache)
    _run(contest)
    result = contest_page.publish(contest, eye)
    finish(result, _shown(out, result["rows"], plan.kind), as_json)


def _which(text: str, suite_name: str, tuned: Sequence[str]) -> tuple[int, tuple[str, ...]]:
    """How many prompts, and of which groups. ValueError for a text that says neither."""
    from respodiff.suites import suite

    if text == "all":
        return 0, ()
    if text == "untuned":
        return 0, tuple(dict.fromkeys(p.group for p in suite(suite_name) if p.group not in tuned))
    if text.isdigit() and int(text):
        return int(text), ()
    raise ValueError(f"--prompts is {text!r}; allowed: all, untuned, or a number of 1 or more")


def _run(contest: Any) -> None:
    """Draw everything, with a bar in UNet sample-forwards that knows the time left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    said = ""
    with Progress(*columns, console=words, transient=True, disable=not words.is_terminal) as bar:
        task = bar.add_task("starting", total=None)
        for step in contest.run():
            bar.update(task, description=step.what, completed=step.done, total=step.total)
            if step.what != said and not words.is_terminal:
                words.print(step.what)
                said = step.what


def _shown(out: Path, rows: Sequence[Any], kind: str) -> str:
    from respodiff.contest_table import markdown

    return f"{markdown(rows, kind)}\n{out / 'compare.html'}"
