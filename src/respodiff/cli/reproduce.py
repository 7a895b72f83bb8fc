"""``respodiff reproduce``: the tables of the paper."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from respodiff.cli.console import app, finish, follow, open_model, table, words
from respodiff.cli.evaluate import Judges, NBootstrap, judges_of, load_judges
from respodiff.cli.options import DRAWING, Json, Seed, number, takes_model, to_path
from respodiff.cli.workers import (
    EngineName,
    GpusPerWorker,
    NumShards,
    RayAddress,
    ShardIndex,
    Workers,
    finish_shard,
    wanted_engine,
    wanted_shard,
)
from respodiff.data.shards import WHOLE
from respodiff.pipelines.source import ModelSource

if TYPE_CHECKING:
    from rich.table import Table

NAMES = ("gender", "race", "safety", "ablation", "composition", "sdxl-gender", "sdxl-race")


@app.command(epilog="Example: respodiff reproduce gender --model DIR --judge clip:DIR --device cuda --out runs/gender")
@takes_model(DRAWING, trains=True)
def reproduce(
    model: ModelSource,
    name: Annotated[str, Argument(help=f"Table: {', '.join(NAMES)}.", metavar="TABLE", show_default=False)],
    out: Annotated[
        Path | None, Option(help="Folder for adapters, runs and the page; what it holds is kept.", metavar="DIR", parser=to_path)
    ] = None,
    judge: Judges = None,
    real: Annotated[
        Path | None, Option(help="Run folder of COCO's own images, for the FID; from 'respodiff import'.", metavar="RUN")
    ] = None,
    i2p: Annotated[Path | None, Option(help="File of I2P; without it, looked for and fetched.", metavar="FILE")] = None,
    coco: Annotated[Path | None, Option(help="File of COCO captions; the same.", metavar="FILE")] = None,
    fraction: Annotated[
        float, number(0, 1, help="Part of prompts, images, rollouts and iterations: .01 is a smoke run.", whole=False)
    ] = 1.0,
    dry_run: Annotated[bool, Option("--dry-run", help="Say how many images and forwards it takes, and run nothing.")] = False,
    images_per_second: Annotated[float, number(0, 1e6, help="For --dry-run: of this model on your GPU.", whole=False, metavar="X")] = 0.0,
    n_bootstrap: NBootstrap = 2000,
    num_shards: NumShards = None,
    shard_index: ShardIndex = None,
    workers: Workers = None,
    engine_name: EngineName = "local",
    ray_address: RayAddress = "",
    gpus: GpusPerWorker = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Run a table of the paper: train, draw, judge; writes measured figures beside the published ones. A killed run goes on.

    With --model embedded its twin runs in minutes, on other prompts and budgets.
    """
    from respodiff.evaluation.evaluate import judge_shard
    from respodiff.evaluation.judges import classifier
    from respodiff.experiments.paper_tables import tables
    from respodiff.experiments.reproduce import Reproduction, cost, counts_of, publish, published
    from respodiff.experiments.work import Judging, judge_on
    from respodiff.pipelines.loading import EMBEDDED_SAMPLING
    from respodiff.pipelines.registry import SD

    if name not in NAMES:
        raise ValueError(f"TABLE is {name!r}; allowed: {', '.join(NAMES)}")
    plan = tables(embedded=model.source == "embedded", fraction=fraction)[name]
    model = replace(model, scheduler=model.scheduler or plan.scheduler)
    paths = {"i2p": str(i2p or ""), "coco30k": str(coco or "")}
    if images_per_second and not dry_run:
        raise ValueError(f"--images-per-second is {images_per_second:g}, which estimates hours; give --dry-run with it, or leave it out")
    if dry_run:
        found = cost(plan, counts_of(plan, paths), plan.steps or (EMBEDDED_SAMPLING[0] if model.source == "embedded" else SD.steps))
        result = {
            "table": plan.title,
            "rows": [{"name": row.name, "measured": None, "published": published(row, plan)} for row in plan.rows],
            "judges": list(plan.judges),
            **found,
        }
        result |= {"unet_forwards": (found["training_forwards"] or 0) + found["drawing_forwards"]}
        return finish(result, _estimate(result, images_per_second), as_json)
    if out is None:
        raise ValueError("--out is missing; give a folder, or --dry-run for the counts alone")
    shard, device = wanted_shard(num_shards, shard_index, model.device)
    engine, model = wanted_engine(workers, engine_name, ray_address, gpus, device, shard), replace(model, device=device)
    judge = judges_of(model.source, judge or [])
    here = "cpu" if engine else device  # workers have the GPUs
    labellers = load_judges(judge, here, "float32")
    pipe = open_model(replace(model, device=here, offload="none", quantize="") if engine else model)
    asked: dict[str, Any] = {"seed": seed, "paths": paths, "judge": labellers[0].digest}
    made = Reproduction(pipe, plan, out, classify=lambda c: classifier(judge[0], c, device), **asked)
    follow(made.run_on(engine, model, judge[0]) if engine else made.run(shard))
    runs = tuple(run.out for run in made.runs())
    if engine:
        follow(judge_on(engine, Judging(runs, tuple(judge), tuple(made.asked), device)))
    if shard != WHOLE:
        for run in runs:
            judge_shard(run, labellers, made.asked, shard)
        return finish_shard(shard, {"out": str(out)}, as_json)
    words.print("judging")
    done = publish(made, labellers, real=real, n_bootstrap=n_bootstrap)
    finish(done, "\n".join([*(f"note: {note}" for note in done["notes"]), done["page"]]), as_json, _table(done, plan.figures))


def _estimate(found: dict[str, Any], rate: float) -> str:
    """The counts in words; with images a second also hours, training counted as the images that its forwards would draw."""
    lines = [f"{found['table']}: {len(found['rows'])} rows, {found['images']:,} images"]
    training, drawing = found["training_forwards"], found["drawing_forwards"]
    known = "unknown" if training is None else f"{training:,} by the authors' loops"
    lines += [f"forwards of the model, without backward passes: {drawing:,} for drawing; for training {known}"]
    lines += [f"judges of the published figures: {', '.join(found['judges'])}"] * bool(found["judges"])
    if rate:
        hours = found["images"] / rate / 3600 * (1 + (training or 0) / max(1, drawing))
        without = "training" if training is None else "backward passes"
        lines.append(f"about {hours:,.1f} hours at {rate:g} images a second, {without} not counted")
    else:
        lines.append("give --images-per-second X for hours")
    return "\n".join(lines)


def _table(kept: dict[str, Any], figures: tuple[str, ...]) -> Table:
    from respodiff.experiments.reproduce import cells
    from respodiff.reports.tables import text

    rows = cells(kept, figures)
    return table(str(kept["table"]), [*rows[0]], [[text(cell) for cell in row.values()] for row in rows])
