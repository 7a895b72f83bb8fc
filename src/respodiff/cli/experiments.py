"""``respodiff compare`` and ``audit``: many images of one model, by several methods or for many attributes."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table
from typer import Option

from respodiff._device import AUTO
from respodiff.cli.console import app, finish, follow, open_model, table, words
from respodiff.cli.evaluate import Judges, MinMargin, NBootstrap, judges_of, load_judges
from respodiff.cli.generate import PromptFile, Prompts, SuiteName, SuitePath, TruncatePrompts, UseDatasetSettings, read_prompts
from respodiff.cli.options import (
    DRAWING,
    KEEP,
    Batch,
    Concepts,
    Guidance,
    Json,
    Seed,
    Steps,
    changes_from,
    library,
    number,
    takes_model,
    to_path,
)
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
from respodiff.concepts.concept import Attribute, Concept, attribute, load_concepts
from respodiff.data.shards import WHOLE
from respodiff.generation.config import GenerateConfig
from respodiff.methods.registry import NAMES, names
from respodiff.pipelines.source import ModelSource
from respodiff.training.config import MOST

SUITE_HELP = (
    "Fairness: occupations, occupations-unseen, winobias36, winobias36-small, ...; safety: unsafe (embedded model), i2p, i2p-700<suites>."
)
SET_HELP = "A method's setting such as sdisc.iterations=1000, or scale, assign_at; repeat."
SETTINGS_HELP = r"TOML file of settings: a table \[fairness.NAME] or \[safety.NAME] for a method, or for a variant as NAME:LABEL."
METHODS_HELP = f"Names, separated by commas, or all (that suit the suite): {', '.join(NAMES)}<methods>."
ATTRIBUTES_HELP = "Names, separated by commas, such as age,gender*tone. (default gender,tone and those of --concepts)"
CHECK_HELP = "Images of every concept's own prompt, to measure the validity of the judge; 0 leaves it out."


@app.command(epilog="Example: respodiff compare --model embedded --suite occupations --methods plain,sdisc,respodiff --out runs/c")
@takes_model(DRAWING, trains=True)
def compare(
    model: ModelSource,
    out: Annotated[Path, Option(help="Folder for runs, adapters and the table.", metavar="DIR")],
    suite: Annotated[str, Option(help=SUITE_HELP, metavar="NAME")] = "occupations",
    methods: Annotated[str, Option(help=METHODS_HELP, metavar="NAMES")] = "all",
    attribute: Annotated[str, Option(help="Attribute to balance: gender, tone, ...", metavar="NAME")] = "gender",
    concepts: Concepts = None,
    images: Annotated[int | None, number(1, MOST, help="Images a prompt. (default 4, unsafe 3)")] = None,
    prompts: Annotated[int, number(0, MOST, help="Use so many prompts, evenly spaced. (default 0: all)")] = 0,
    suite_path: SuitePath = None,
    use_dataset_settings: UseDatasetSettings = False,
    truncate_prompts: TruncatePrompts = False,
    scale: Annotated[list[float] | None, number(0, 10, help="Repeat for a curve. (default .5 and 1)", whole=False)] = None,
    settings: Annotated[Path | None, Option(help=SETTINGS_HELP, metavar="FILE")] = None,
    pairs: Annotated[list[str] | None, Option("--set", help=SET_HELP, metavar="NAME.KEY=VALUE")] = None,
    judge: Judges = None,
    cache: Annotated[Path | None, Option(help="Where trained adapters are kept. (default OUT/adapters)", metavar="DIR")] = None,
    steps: Steps = None,
    guidance: Guidance = None,
    num_shards: NumShards = None,
    shard_index: ShardIndex = None,
    workers: Workers = None,
    engine_name: EngineName = "local",
    ray_address: RayAddress = "",
    gpus: GpusPerWorker = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Compare methods on the same noise: train those that need it, generate, judge. Writes compare.html, .md and .json. A killed run resumes."""
    from respodiff.evaluation.evaluate import judge_shard
    from respodiff.evaluation.judges import classifier
    from respodiff.experiments import comparison_report
    from respodiff.experiments.compare import MethodComparison, Plan, kind_of, method_of
    from respodiff.experiments.work import Judging, judge_on
    from respodiff.methods.registry import methods_for

    shard, device = wanted_shard(num_shards, shard_index, model.device)
    engine, model = wanted_engine(workers, engine_name, ray_address, gpus, device, shard), replace(model, device=device)
    kind = kind_of(suite)
    about: dict[str, Any] = {"suite": suite, "attribute": attribute, "library": str(concepts or "")}
    own = method_settings(settings, pairs or (), kind, Plan(**about, methods=methods_for(kind)).concepts)
    chosen = [name.strip() for name in methods.split(",") if name.strip()]
    if whole := chosen == ["all"]:
        chosen = [*methods_for(kind), *(name for name in own if ":" in name)]
    if idle := next((pair for pair in pairs or () if pair.partition(".")[0] not in chosen), None):
        raise ValueError(f"--set is {idle!r}, and --methods has no {idle.partition('.')[0]!r}; add it there, or leave the setting out")
    drawn: dict[str, Any] = {"images": images or (3 if kind == "safety" else 4), "steps": steps, "guidance": guidance, "seed": seed}
    drawn |= {"prompts": prompts, "scales": tuple(scale or (0.5, 1.0)), "suite_path": str(suite_path or "")}
    drawn |= {"use_dataset_settings": use_dataset_settings, "truncate_prompts": truncate_prompts}
    plan = Plan(**about, methods=tuple(chosen), settings=own, **drawn)
    judge = judges_of(model.source, judge or [])
    here = "cpu" if engine else device  # workers have the GPUs
    labellers = load_judges(judge, here, "float32")
    if engine:  # what names adapters must be the same here, without an accelerator, and there
        model = replace(model, dtype="float32") if model.dtype == AUTO else model
    pipe = open_model(replace(model, device=here, offload="none", quantize="") if engine else model)
    if refused := {name: reason for name in chosen if (reason := method_of(name).refuses(pipe))}:
        if not whole:
            raise ValueError(next(iter(refused.values())))
        words.print("\n".join(f"left out: {name}: {reason}" for name, reason in refused.items()), soft_wrap=True)
        plan = replace(plan, methods=tuple(name for name in chosen if name not in refused))
    comparison = MethodComparison(
        pipe, plan, out, classify=lambda c: classifier(judge[0], c, device), judge=labellers[0].digest, cache=cache
    )
    follow(comparison.run_on(engine, model, judge[0]) if engine else comparison.run(shard))
    runs, attributes = tuple(run.out for run in comparison.runs()), (plan.equal,) if kind == "fairness" else ()
    if engine:
        follow(judge_on(engine, Judging(runs, tuple(judge), attributes, device)))
    if shard != WHOLE:
        for run in runs:
            judge_shard(run, labellers, attributes, shard)
        return finish_shard(shard, {"out": str(out)}, as_json)
    result = comparison_report.publish(comparison, labellers)
    notes = [f"note: {row['label']}: {line}" for row in result["rows"] for line in row["problems"]]
    finish(result, "\n".join([*notes, f"All columns: {result['page']}"]), as_json, _table(result["rows"], plan.kind))


def method_settings(file: Path | None, pairs: Sequence[str], kind: str, concepts: Sequence[Concept] = ()) -> dict[str, dict[str, Any]]:
    """Method or variant -> settings: those of a TOML file with NAME.KEY=VALUE pairs on top.

    Raises:
        ValueError: the file cannot be read, or a method cannot take a setting for one of the concepts, or for the kind where none is given.
    """
    from respodiff.experiments.compare import DRAWING, method_of, read_settings

    out = read_settings(file, kind) if file else {}
    for pair in pairs:
        name, _, rest = pair.partition(".")
        key, _, text = rest.partition("=")
        if name not in names() or not text:
            raise ValueError(f"--set is {pair!r}; write NAME.KEY=VALUE with NAME one of {', '.join(names())}")
        out.setdefault(name, {}).update(changes_from([rest], {}, GenerateConfig if key in DRAWING else method_of(name).config))
    for name, changes in out.items():
        for concept in concepts or (kind,):
            method_of(name).settings(concept, **{k: v for k, v in changes.items() if k not in DRAWING})
    return out


def _table(rows: Sequence[Any], kind: str) -> Table:
    """The main metric and the difference to the baseline with intervals, and means of the metrics that a console has room for."""
    from respodiff.experiments.comparison_report import MAIN, cell, columns_of
    from respodiff.reports.tables import number, text

    titles, main, part = columns_of(kind), MAIN[kind], "" if kind == "fairness" else "benign_"
    means = ["concept_accuracy", f"{part}subject_accuracy", f"{part}alignment", f"{part}drift", "unet_forwards_per_image"]
    means = [key for key in means if key in titles]
    values = []
    for row in rows:
        others = [v["mean"] if isinstance(v, dict) else v for v in (row[key] for key in means)]
        values.append([row["label"], text(cell(row, main)), text(cell(row, "change")), *map(number, others)])
    return table("", ["method", *(titles[key] for key in (main, "change", *means))], values)


@app.command(epilog="Example: respodiff audit --model embedded --suite occupations --attributes gender,tone --out runs/audit")
@takes_model(DRAWING)
def audit(
    model: ModelSource,
    out: Annotated[
        Path, Option(help="Folder for images, audit.json and audit.html; images in it are kept.", metavar="DIR", parser=to_path)
    ] = Path("audit"),
    suite: SuiteName = "",
    suite_path: SuitePath = None,
    truncate_prompts: TruncatePrompts = False,
    prompt: Prompts = None,
    prompts: PromptFile = None,
    attributes: Annotated[str, Option(help=ATTRIBUTES_HELP, metavar="NAMES")] = "",
    concepts: Concepts = None,
    images: Annotated[int, number(2, MOST, help="Images a prompt.")] = 16,
    check: Annotated[int, number(0, MOST, "--validation-images", help=CHECK_HELP)] = 8,
    judge: Judges = None,
    min_margin: MinMargin = 0.0,
    steps: Steps = None,
    guidance: Guidance = None,
    batch: Batch = GenerateConfig.batch,
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
    """Find out which attributes are biased on which prompts, how sure that is, and which modules to train. A killed audit resumes."""
    from respodiff.data.run_folder import write_atomic
    from respodiff.evaluation.evaluate import judge_shard
    from respodiff.experiments.audit import audit_runs, judge_audit, labels_from_texts, suggested
    from respodiff.experiments.work import Judging, draw, draw_on, judge_on
    from respodiff.pipelines.loading import sampling_settings
    from respodiff.reports import audit_report

    shard, device = wanted_shard(num_shards, shard_index, model.device)
    engine, model = wanted_engine(workers, engine_name, ray_address, gpus, device, shard), replace(model, device=device)
    chosen = chosen_attributes(attributes, concepts)
    suite, judge = suite or ("" if prompt or prompts else "occupations"), judges_of(model.source, judge or [])
    asked, listed = read_prompts(prompt or (), prompts, suite, suite_path)
    config = GenerateConfig(
        images=images, policy="none", steps=steps, guidance=guidance, seed=seed, batch=batch, truncate_prompts=truncate_prompts
    )
    here = "cpu" if engine else device  # workers have the GPUs
    labellers = load_judges(judge, here, "float32")
    check = check if labels_from_texts(labellers) else 0
    pipe = open_model(replace(model, device=here, offload="none", quantize="") if engine else model)
    steps, guidance = sampling_settings(pipe, steps, guidance)
    config = replace(config, steps=steps, guidance=guidance)
    runs = audit_runs(asked, chosen, config, out, validation_images=check, suite_digest=listed.digest if listed else "")
    if engine:
        follow(draw_on(engine, model, runs))
        more = {"min_margin": min_margin}
        follow(judge_on(engine, Judging(tuple(run.out for run in runs), tuple(judge), tuple(chosen), device, more)))
    else:
        for each in runs:
            follow(draw(pipe, each, shard))
    words.print("judging")
    if shard != WHOLE:
        for each in runs:
            judge_shard(each.out, labellers, chosen, shard, min_margin=min_margin)
        return finish_shard(shard, {"out": str(out)}, as_json)
    found, run = judge_audit(out, labellers, chosen, config, validation_images=check, min_margin=min_margin, n_bootstrap=n_bootstrap)
    where = {"suite": suite, "suite_path": suite_path, "prompt": prompt, "prompts": prompts, "scheduler": model.scheduler}
    where |= {"safety_checker": KEEP} if model.safety_checker else {}
    suggest = suggested(found, out, config, where, model=model, concepts=concepts, judge=judge)
    found = replace(found, suggest=tuple(suggest), command=shlex.join(["respodiff", *sys.argv[1:]]))
    result, page = found.to_json(), out / "audit.html"
    write_atomic(out / "audit.json", json.dumps(result, indent=1) + "\n")
    audit_report.write(page, found, run)
    finish({**result, "page": str(page)}, "\n".join([*audit_report.lines(found), str(page)]), as_json)


def chosen_attributes(names: str, file: Path | None) -> list[Attribute]:
    """Attributes by name; ValueError for one that is not known or given twice."""
    own = [n for n, entry in (load_concepts(file) if file else {}).items() if isinstance(entry, Attribute)]
    given = [name.strip() for name in names.split(",") if name.strip()] or list(dict.fromkeys(["gender", "tone", *own]))
    found = [attribute(name, library(file)) for name in given]
    if twice := [a.name for a in found if [b.name for b in found].count(a.name) > 1]:
        raise ValueError(f"--attributes has {twice[0]!r} twice; give each attribute once")
    return found
