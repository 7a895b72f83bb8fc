"""``respodiff evaluate``, ``report``, ``calibrate``, ``import`` and ``export``: verbs that need no text-to-image model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from respodiff._device import AUTO
from respodiff.cli.console import app, check_device, finish, follow, words
from respodiff.cli.options import Concepts, Device, Dtype, Force, Json, Seed, library, number
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
from respodiff.concepts.concept import Attribute
from respodiff.concepts.concept import attribute as find_attribute
from respodiff.concepts.intersections import JOIN, factors
from respodiff.data.places import check_out
from respodiff.data.shards import WHOLE

RUNS_HELP = "Run folders, the baseline first; NAME=DIR names one."
TEMPLATE_HELP = "Text of a class: {concept} the target prompt, {name}, {group} the occupation."
REPORT_JUDGES = "Judge to read, and no other; repeat. Runs it has not seen are judged first. (default all that have judged every image)"
JUDGES = "'embedded', clip:DIR-OR-ID, siglip:, hf:, vlm:, nudenet, open-nsfw, q16:DIR, table:FILE<judges>; repeat: labels come from the first that gives any."
EMBEDDED_ALONE = " (default embedded, for images of the embedded model alone)"
Attributes = Annotated[list[str] | None, Option("--attribute", help="gender, tone, ...; repeat for several.", metavar="NAME")]
NBootstrap = Annotated[int, number(100, 100_000, help="Bootstrap samples of the intervals.")]
Confusion = Annotated[Path | None, Option(help="Known errors of the judge, from 'respodiff calibrate'.", metavar="FILE")]
Judges = Annotated[list[str] | None, Option("--judge", help=JUDGES + EMBEDDED_ALONE, metavar="NAME")]
MinMargin = Annotated[
    float, number(0, 200, help="Labels that lead by less (in the judge's unit: 100 x cosine of CLIP) count as unknown.", whole=False)
]


def _attributes(names: Sequence[str] | None, concepts: Path | None) -> list[Attribute]:
    return [find_attribute(name, library(concepts)) for name in names or ["gender"]]


def judges_of(model: str, given: Sequence[str]) -> list[str]:
    """Judges of the images of --model: those of --judge, else the embedded one for the embedded model; ValueError for another model."""
    from respodiff.evaluation.domain import judge_of

    return list(given) or [judge_of(model == "embedded", f"images of --model {model}", "add")]


def load_judges(sources: Sequence[str], device: str, dtype: str) -> list[Any]:
    """Judges by source; ValueError for a device or dtype that they cannot have."""
    from respodiff.evaluation import judges

    if dtype not in (AUTO, "float32"):
        raise ValueError(f"--dtype is {dtype!r}; judges run in float32 alone, so that labels agree between machines")
    check_device(device)
    return [judges.load_judge(source, device) for source in sources]


@app.command(epilog="Example: respodiff evaluate runs/a --judge embedded --attribute gender --attribute tone")
def evaluate(
    run: Annotated[Path, Argument(help="Run folder.", show_default=False)],
    judge: Judges = None,
    attribute: Attributes = None,
    class_template: Annotated[str, Option(help=TEMPLATE_HELP, metavar="TEXT")] = "{concept}",
    min_margin: MinMargin = 0.0,
    confusion: Confusion = None,
    concepts: Concepts = None,
    group_proportions: Annotated[Path | None, Option(help="CSV of wanted proportions. (default the run's)", metavar="FILE")] = None,
    n_bootstrap: NBootstrap = 2000,
    num_shards: NumShards = None,
    shard_index: ShardIndex = None,
    workers: Workers = None,
    engine_name: EngineName = "local",
    ray_address: RayAddress = "",
    gpus: GpusPerWorker = None,
    device: Device = AUTO,
    dtype: Dtype = AUTO,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure a run folder: shares of each attribute as a judge perceives them, DevRat with interval and DevRat of random sampling.

    Shards judge images and keep what they found; the same command without shards then sums up.
    """
    from respodiff.data.run_folder import RunFolder
    from respodiff.data.target_proportions import read_group_proportions
    from respodiff.evaluation.calibration import read_confusion
    from respodiff.evaluation.domain import default_judge
    from respodiff.evaluation.evaluate import evaluate as measure
    from respodiff.evaluation.evaluate import judge_shard
    from respodiff.reports.tables import summary_lines

    shard, device = wanted_shard(num_shards, shard_index, device)
    engine = wanted_engine(workers, engine_name, ray_address, gpus, device, shard)
    chosen = _attributes(attribute, concepts)
    folder = RunFolder(run)
    folder.settings()  # a wrong folder is noticed before the judge is loaded
    options: dict[str, Any] = {"n_bootstrap": n_bootstrap, "seed": seed}
    options["confusion"] = read_confusion(confusion) if confusion else None
    if group_proportions:
        groups = list(dict.fromkeys(r.group for r in folder.records()))
        options["group_proportions"] = read_group_proportions(group_proportions, {a.name: a.names for a in chosen}, groups)
    sources = judge or [default_judge(folder)]
    asked: dict[str, Any] = {"class_template": class_template, "min_margin": min_margin}
    labellers = load_judges(sources, "cpu" if engine else device, dtype)
    if engine:
        from respodiff.experiments.work import Judging, judge_on

        follow(judge_on(engine, Judging((run,), tuple(sources), tuple(chosen), device, asked)))
    if shard != WHOLE:
        judge_shard(folder, labellers, chosen, shard, **asked)
        return finish_shard(shard, {"run": str(run)}, as_json)
    result = measure(folder, labellers, chosen, **options, **asked)
    finish(result.to_json(), "\n".join(summary_lines(result)), as_json)


@app.command(epilog="Example: respodiff report before=runs/a after=runs/b --out report.html")
def report(
    runs: Annotated[list[str], Argument(help=RUNS_HELP, show_default=False)],
    out: Annotated[Path, Option(help="The page; its tables are written beside it.", metavar="FILE")] = Path("report.html"),
    force: Force = False,
    judge: Annotated[list[str] | None, Option(help=REPORT_JUDGES, metavar="NAME")] = None,
    attribute: Attributes = None,
    confusion: Confusion = None,
    concepts: Concepts = None,
    n_bootstrap: NBootstrap = 2000,
    device: Device = AUTO,
    dtype: Dtype = AUTO,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Set runs side by side: one HTML page with figures, intervals, charts and images on the same seeds, and its tables."""
    from respodiff.data.run_folder import RunFolder
    from respodiff.evaluation.calibration import read_confusion
    from respodiff.evaluation.comparison import split_label
    from respodiff.evaluation.domain import default_judge
    from respodiff.evaluation.evaluate import judge_all
    from respodiff.evaluation.scored_run import asked_before, unanswered
    from respodiff.reports.run_report import check_page
    from respodiff.reports.run_report import report as write

    check_page(out, runs, force=force)
    names = [JOIN.join(sorted(factors(name))) for name in attribute or []]  # as intersections are called
    read = dict.fromkeys(judge or ())
    for name in judge or [""]:
        if missing := [run for text in runs if unanswered(run := split_label(text)[1], name, names)]:
            sources = {name or default_judge(RunFolder(run)) for run in missing}
            chosen, labeller = _attributes(attribute, concepts), load_judges([*sources], device, dtype)
            for run in missing:
                words.print(f"judging {Path(run).name} with {labeller[0].name}")
                key = judge_all(run, labeller, chosen, **asked_before(run, labeller[0].name, labeller[0].digest)).primary
                read |= {name: key} if name else {}
    known = read_confusion(confusion) if confusion else None
    result = write(
        runs, out, judge=[key or name for name, key in read.items()], confusion=known, n_bootstrap=n_bootstrap, seed=seed, force=force
    )
    shown = "\n".join([*result["judged"], result["page"], *result["tables"]])
    finish({key: result[key] for key in ("page", "tables", "judged")}, shown, as_json)


@app.command(epilog="Example: respodiff calibrate labels.csv --judge embedded --attribute gender --out confusion.json")
def calibrate(
    table: Annotated[Path, Argument(help="CSV: 'file' and a column per attribute with the true concept.", show_default=False)],
    out: Annotated[Path, Option(help="Confusion file.", metavar="FILE")],
    force: Force = False,
    judge: Annotated[str, Option(help="'embedded', clip:DIR-OR-ID, siglip:, hf: or vlm:.", metavar="NAME")] = "embedded",
    attribute: Attributes = None,
    concepts: Concepts = None,
    device: Device = AUTO,
    dtype: Dtype = AUTO,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Count a judge's errors on labelled images, so that 'evaluate' and 'report' can correct for them."""
    from respodiff.evaluation.calibration import calibrate as measure
    from respodiff.evaluation.calibration import read_confusion, write_confusion

    (labeller,) = load_judges([judge], device, dtype)
    check_out(out, read_confusion, force=force)
    found = measure(table, labeller, _attributes(attribute, concepts))
    write_confusion(out, found, force=force)
    n = {name: entry["n"] for name, entry in found[labeller.digest].items()}
    right = {name: sum(row[i] for i, row in enumerate(entry["matrix"])) / n[name] for name, entry in found[labeller.digest].items()}
    lines = [f"{name}: {share:.3f} right of {n[name]}" for name, share in right.items()]
    finish({"out": str(out), "accuracy": right, "n": n}, "\n".join([*lines, str(out)]), as_json)


@app.command(name="import", epilog="Example: respodiff import images --csv images.csv --out runs/theirs --method theirs")
def import_(
    folder: Annotated[Path, Argument(help="Folder of images made by any tool.", show_default=False)],
    out: Annotated[Path, Option(help="Run folder; images that it already holds are skipped.", metavar="DIR")],
    csv: Annotated[Path | None, Option(help="Table with the columns file and prompt; docs/data.md lists others.", metavar="FILE")] = None,
    suite: Annotated[str, Option(help="coco30k or coco1k, instead of a table: COCO's own images, for FID.", metavar="NAME")] = "",
    suite_path: Annotated[Path | None, Option(help="File of COCO captions; without it, looked for and fetched.", metavar="FILE")] = None,
    method: Annotated[str, Option(help="Name of the method, where the table has none.", metavar="NAME")] = "imported",
    device: Device = AUTO,
    dtype: Dtype = AUTO,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Make a run folder of images from another program, to be measured and reported like any other run."""
    from respodiff.data.import_images import import_captioned, import_folder
    from respodiff.data.prompt_sets import load_suite

    if (csv is None) == (not suite):
        raise ValueError(f"--csv is {str(csv or '')!r} and --suite {suite!r}; give one of them: --csv FILE, or --suite coco30k")
    if suite and not suite.startswith("coco"):
        raise ValueError(f"--suite is {suite!r}; allowed: coco30k, coco1k")
    if csv:
        run = import_folder(folder, csv, out, method=method)
    else:
        run = import_captioned(folder, load_suite(suite, path=suite_path), out, method=method)
    n = len(run.records())
    finish({"run": str(out), "images": n}, f"{out}: {n} images; next: respodiff evaluate {out} --judge clip:DIR-OR-ID", as_json)


@app.command(epilog="Example: respodiff export runs/a --to parquet --out data/a")
def export(
    run: Annotated[Path, Argument(help="Run folder.", show_default=False)],
    to: Annotated[str, Option(help="imagefolder, parquet, or hub (a private data set); the last two need the extra data.", metavar="KIND")],
    out: Annotated[str, Option(help="Folder that is absent or empty; for hub a name.", metavar="DIR|OWNER/NAME")],
    device: Device = AUTO,
    dtype: Dtype = AUTO,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write images with prompts, concepts asked for and what judges perceive, as a data set for the library datasets.

    JSON keys: out, to, images.
    """
    from respodiff.reports.export import export as write

    n = write(run, to, out)
    finish({"out": out, "to": to, "images": n}, f"{out}: {n} images", as_json)
