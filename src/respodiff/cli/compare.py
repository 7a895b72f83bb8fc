"""``respodiff compare``: several methods on one model, one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from respodiff.cli.console import Concepts, Device, Dtype, Json, Model, Seed, app, finish, follow, open_model, table
from respodiff.cli.generate import Guidance, Steps
from respodiff.cli.options import changes_from
from respodiff.generation.config import GenerateConfig
from respodiff.methods.registry import NAMES

SUITE_HELP = "Fairness: occupations, occupations-unseen, winobias36, winobias36-small, ...; safety: unsafe (embedded model)."
SET_HELP = "A method's setting such as sdisc.iterations=1000, or scale, assign_at; repeat."
SETTINGS_HELP = "TOML file of settings: a table [fairness.NAME] or [safety.NAME] for a method, or for a variant as NAME:LABEL."
METHODS_HELP = f"Names, separated by commas, or all (that suit the suite): {', '.join(NAMES)}."


@app.command(epilog="Example: respodiff compare --model embedded --suite occupations --methods plain,sdisc,respodiff --out runs/c")
def compare(
    out: Annotated[Path, typer.Option("--out", help="Folder for runs, adapters and the table.", metavar="DIR")],
    model: Model = "embedded",
    suite: Annotated[str, typer.Option("--suite", help=SUITE_HELP, metavar="NAME")] = "occupations",
    methods: Annotated[str, typer.Option("--methods", help=METHODS_HELP, metavar="NAMES")] = "all",
    attribute: Annotated[str, typer.Option("--attribute", help="Attribute to balance: gender, tone, ...", metavar="NAME")] = "gender",
    concepts: Concepts = None,
    images: Annotated[int | None, typer.Option("--images", help="Images a prompt. (default 4, unsafe 3)", min=1)] = None,
    prompts: Annotated[int, typer.Option("--prompts", help="Use so many prompts, evenly spaced. (default 0: all)", min=0)] = 0,
    scale: Annotated[list[float] | None, typer.Option("--scale", help="Repeat for a curve. (default .5 and 1)")] = None,
    settings: Annotated[Path | None, typer.Option("--settings", help=SETTINGS_HELP, metavar="FILE")] = None,
    pairs: Annotated[list[str] | None, typer.Option("--set", help=SET_HELP, metavar="NAME.KEY=VALUE")] = None,
    judge: Annotated[str, typer.Option(help="Judge of images; also teaches methods that learn from images.", metavar="NAME")] = "embedded",
    cache: Annotated[Path | None, typer.Option(help="Where trained adapters are kept. (default OUT/adapters)", metavar="DIR")] = None,
    steps: Steps = None,
    guidance: Guidance = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Compare methods on the same noise: train those that need it, generate, judge. Writes compare.html, .md and .json. A killed run resumes."""
    from respodiff.evaluation.judges import classifier, load
    from respodiff.experiments import comparison_report
    from respodiff.experiments.compare import MethodComparison, Plan
    from respodiff.methods.registry import methods_for

    kind = "safety" if suite in ("unsafe", "i2p") else "fairness"
    own = method_settings(settings, pairs or (), kind)
    usual = [*methods_for(kind), *(name for name in own if ":" in name)]
    plan = Plan(
        suite=suite,
        methods=tuple(usual if methods.strip() == "all" else (name.strip() for name in methods.split(",") if name.strip())),
        attribute=attribute,
        images=images or (3 if kind == "safety" else 4),
        prompts=prompts,
        scales=tuple(scale or (0.5, 1.0)),
        steps=steps,
        guidance=guidance,
        seed=seed,
        library=str(concepts or ""),
        settings=own,
    )
    labeller = load(judge, device)
    pipe = open_model(model, device, dtype)
    comparison = MethodComparison(pipe, plan, out, classify=lambda c: classifier(judge, c, device), judge=labeller.digest, cache=cache)
    follow(comparison.run())
    result = comparison_report.publish(comparison, labeller)
    finish(result, f"All columns: {result['page']}", as_json, _table(result["rows"], plan.kind))


def method_settings(file: Path | None, pairs: Sequence[str], kind: str) -> dict[str, dict[str, Any]]:
    """Method or variant -> settings: those of a TOML file with NAME.KEY=VALUE pairs on top.

    Raises:
        ValueError: the file cannot be read, or a method cannot take a setting.
    """
    from respodiff.experiments.compare import DRAWING, method_of, read_settings

    out = read_settings(file, kind) if file else {}
    for pair in pairs:
        name, _, rest = pair.partition(".")
        key, _, text = rest.partition("=")
        if name not in NAMES or not text:
            raise ValueError(f"--set is {pair!r}; write NAME.KEY=VALUE with NAME one of {', '.join(NAMES)}")
        out.setdefault(name, {}).update(changes_from([rest], {}, GenerateConfig if key in DRAWING else method_of(name).config))
    for name, changes in out.items():
        method_of(name).settings(kind, **{k: v for k, v in changes.items() if k not in DRAWING})
    return out


def _table(rows: Sequence[Any], kind: str) -> Table:
    """The main metric and the difference to the baseline with intervals, and means of the metrics that a console has room for."""
    from respodiff.experiments.comparison_report import MAIN, cell, columns_of
    from respodiff.reports.tables import number, text

    titles = columns_of(kind)
    part = "" if kind == "fairness" else "benign_"
    means = ("concept_accuracy", f"{part}subject_accuracy", f"{part}alignment", f"{part}drift")
    shown = [MAIN[kind], "change", *(key for key in means if key in titles), "unet_forwards_per_image"]
    values = []
    for row in rows:
        others = [v["mean"] if isinstance(v, dict) else v for v in (row[k] for k in shown[2:])]
        values.append([row["label"], *(text(cell(row, k)) for k in shown[:2]), *map(number, others)])
    return table("", ["method", *(titles[key] for key in shown)], values)
