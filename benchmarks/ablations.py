"""Measures RAM alone against RAM with two kinds of SAM, as curves over scale, on the 24 held-out occupations; fills docs/results.md.

    python -m benchmarks.ablations --out runs/ablation     (about 40 minutes on 2 CPU cores; what is done is kept)
    python -m benchmarks.ablations --tables                (the table anew from the kept rows)

Every row is the default preset with batches of 12, a projection of 1, a limit of 10 and another SAM; RAM is the same in all of them, as its loss never
sees SAM. All have the same noise: 12 images a prompt, policy `exact`, seed 0, both judges. Kinds of SAM: (a) ``own``, the paper's: L_sem by an Adam of
its own; (b) ``shared``: its first moment, divided by the root of the mean of RAM's second moments, so that lambda counts. Rates are in units of the RMS
of h, RAM's is .06. "guided target" is the paper's target (w = 1) in place of the contrast.
Results are kept in docs/results/ablation.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.provenance import DOCS, provenance, say
from benchmarks.settings import HELD_OUT
from benchmarks.tables import fill, interval, table
from respodiff.concepts.concept import attribute
from respodiff.data.prompt_sets import suite
from respodiff.data.run_folder import write_atomic
from respodiff.evaluation.comparison import compare
from respodiff.evaluation.evaluate import evaluate
from respodiff.evaluation.judges import EMBEDDED, ClipJudge
from respodiff.evaluation.metrics.estimate import as_json
from respodiff.evaluation.scored_run import load_scored_run
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate
from respodiff.pipelines.identity import weights_digest
from respodiff.pipelines.loading import load_pipeline
from respodiff.reports.tables import p_value
from respodiff.steering.module import ConceptModule
from respodiff.training.attribute import fit_attribute
from respodiff.training.config import TrainConfig

RESULTS = DOCS / "results" / "ablation.json"
IMAGES = 12
ALONE: dict[str, Any] = {"batch": 12, "sam_lr": 0.0, "projection": 1.0, "max_relative_norm": 10.0}
ROWS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "RAM alone": ({}, (0.75, 1.0, 1.5)),
    "RAM alone, guided target": ({"objective": "guided"}, (1.0, 1.5, 2.0)),
    "(a) own, lambda .5": ({"sam": "own", "sam_lr": 0.006, "sam_weight": 0.5}, (0.75, 1.0, 1.5)),
    "(a) own, lambda 4": ({"sam": "own", "sam_lr": 0.006, "sam_weight": 4.0}, (1.0, 1.5)),
    "(a) own, lambda .5, rate .02": ({"sam": "own", "sam_lr": 0.02, "sam_weight": 0.5}, (1.0, 1.5)),
    "(b) shared, lambda .5": ({"sam": "shared", "sam_lr": 0.006, "sam_weight": 0.5}, (0.75, 1.0, 1.5)),
    "(b) shared, lambda 4": ({"sam": "shared", "sam_lr": 0.006, "sam_weight": 4.0}, (1.0, 1.5)),
}
"""Row -> settings that differ from `ALONE`, and scales."""

PAIRED = (("RAM alone", 1.0), ("RAM alone, guided target", 2.0))
"""Rows of about the same DevRat that are compared image by image: the second less the first."""


def folder_of(out: Path, label: str, scale: float, images: int) -> Path:
    """The run folder of a row."""
    return out / f"{label}-{scale:g}-{images}".replace(" ", "-")


def trained(pipe: Any, label: str, changes: Mapping[str, Any], out: Path) -> list[ConceptModule]:
    """The modules of a row; trained where ``out`` has none."""
    files = [out / weights_digest(pipe.unet) / label.replace(" ", "-") / f"{name}.safetensors" for name in attribute("gender").names]
    config = TrainConfig.preset("default", **{**ALONE, **changes})
    wanted = json.loads(json.dumps(asdict(config)))
    if not all(file.is_file() and {"site": []} | dict(ConceptModule.load(file).header.train) == wanted for file in files):
        say(f"training {label}")
        for file, module in zip(files, fit_attribute(pipe, "gender", config).values(), strict=True):
            module.save(file)
    return [ConceptModule.load(file) for file in files]


def measured(out: Path, groups: tuple[str, ...] = HELD_OUT, images: int = IMAGES) -> dict[str, Any]:
    """Trains, generates and judges what is missing; a row for each kind of SAM and scale, with the figures of each judge."""
    pipe, judges = load_pipeline("embedded"), [ClipJudge.load(key) for key in EMBEDDED]
    prompts = [p for p in suite("occupations") if p.group in groups]
    rows = []
    for label, (changes, scales) in {"unsteered": ({}, (1.0,)), **ROWS}.items():
        modules = [] if label == "unsteered" else trained(pipe, label, changes, out)
        shares = [(m.sam.norm() / m.ram.norm()).item() for m in modules]
        for scale in scales:
            folder = folder_of(out, label, scale, images)
            config = GenerateConfig(images=images, policy="exact", scale=scale)
            say(f"{label}, scale {scale:g}: {sum(1 for _ in generate(pipe, prompts, modules, config, out=folder))} new")
            row: dict[str, Any] = {"row": label, "scale": scale if modules else None, "sam_share": shares, "judges": {}}
            for judge in judges:
                found = evaluate(folder, judge, "gender").to_json()
                row["n"] = found["n"]
                row["judges"][judge.name] = {"devrat": found["devrat"]["gender"]} | {k: found[k] for k in ("subject_accuracy", "alignment")}
            rows.append(row)
    paired = {}
    for judge in judges:
        first, second = (load_scored_run(folder_of(out, *row, images), judge=judge.name) for row in PAIRED)
        paired[judge.name] = {t.metric: as_json(t) for t in compare(first, second).tests}
    about: dict[str, Any] = {"model": weights_digest(pipe.unet), "judges": {j.name: j.digest for j in judges}, "prompts": len(prompts)}
    return about | {"rows": rows, "paired": paired}


def as_table(result: Mapping[str, Any]) -> str:
    heads = ["", "scale", r"\|s\| / \|r\|", "DevRat", "second judge", "subject accuracy", "second judge", "alignment", "second judge"]
    lines = []
    for row in result["rows"]:
        a, b = (row["judges"][name] for name in result["judges"])
        share = " ".join(f"{x:.2f}" for x in row["sam_share"]) or "-"
        cells = [interval(judge[key]) for key in ("devrat", "subject_accuracy", "alignment") for judge in (a, b)]
        lines.append([row["row"], "-" if row["scale"] is None else f"{row['scale']:g}", share, *cells])
    made = (
        f"`{result['command']}` at commit {result['commit']}: {result['prompts']} held-out occupations, n = {result['rows'][0]['n']} a row, model "
        f"{result['model']}, torch {result['torch']}, judges {' and '.join(f'`{name}`' for name in result['judges'])}; brackets hold 95 % intervals "
        "over prompts.\n\n"
    )
    names = [f"{label}, scale {scale:g}" for label, scale in PAIRED]
    pairs = [
        [f"`{judge}`", str(found["devrat"]["n"])]
        + [x for metric in ("devrat", "subject_accuracy") for x in (interval(found[metric]), p_value(found[metric]["p"]))]
        for judge, found in result["paired"].items()
    ]
    said = f"\n{names[1]}, less {names[0]}, on the same noise:\n\n"
    return made + table(heads, lines) + said + table(["judge", "pairs", "DevRat", "p", "subject accuracy", "p"], pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--tables", action="store_true", help="write the table, run nothing")
    arguments = parser.parse_args()
    if not arguments.tables:
        found = provenance("python -m benchmarks.ablations") | measured(arguments.out)
        write_atomic(RESULTS, json.dumps(found, indent=1) + "\n")
    fill(DOCS / "results.md", "ablation", as_table(json.loads(RESULTS.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
