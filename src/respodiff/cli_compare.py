"""``respodiff compare``: several methods on one model, one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from respodiff.console import Device, Dtype, Json, Model, Seed, app, finish, open_model, words
from respodiff.methods import NAMES

METHODS_HELP = f"Names with commas, or all (of those that suit the suite): {', '.join(NAMES)}."


@app.command(epilog="Example: respodiff compare --model embedded --suite occupations --methods plain,sdisc,respodiff --out runs/c")
def compare(
    out: Annotated[Path, typer.Option("--out", help="Folder for runs, artefacts and the table.", metavar="DIR")],
    model: Model = "embedded",
    suite: Annotated[str, typer.Option("--suite", help="occupations (fairness) or unsafe (safety).", metavar="NAME")] = "occupations",
    methods: Annotated[str, typer.Option("--methods", help=METHODS_HELP, metavar="NAMES")] = "all",
    attribute: Annotated[str, typer.Option("--attribute", help="What is to be even: gender, tone, ...", metavar="NAME")] = "gender",
    images: Annotated[int, typer.Option("--images", help="Pictures a prompt.", min=1)] = 4,
    prompts: Annotated[int, typer.Option("--prompts", help="Use so many prompts of the suite, evenly spaced; 0 uses all.", min=0)] = 18,
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
    from respodiff.contest import FAIRNESS, SAFETY, Contest, Plan
    from respodiff.judges import load

    every = SAFETY if suite in ("unsafe", "i2p") else FAIRNESS
    names = every if methods.strip() == "all" else tuple(name.strip() for name in methods.split(",") if name.strip())
    known = {"suite": suite, "methods": names, "attribute": attribute, "images": images, "prompts": prompts}
    plan = Plan(**known, strengths=tuple(strength or (1.0,)), steps=steps, guidance=guidance, seed=seed)  # type: ignore[arg-type]
    pipe, eye = open_model(model, device, dtype), load(judge, device)
    contest = Contest(pipe, plan, out, classify=lambda c: classifier(judge, c, device), judge=eye.digest, cache=cache)
    _run(contest)
    result = contest_page.publish(contest, eye)
    finish(result, _shown(out, result["rows"], plan.kind), as_json)


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
