"""Measures the default preset on the 24 held-out occupations, by both judges: the first table of README.md and docs/results.md.

    python -m benchmarks.headline --out runs/headline     (about 15 minutes on 2 CPU cores; a killed run goes on where it was)
    python -m benchmarks.headline --tables                (the table anew from the kept rows)

Every row has the same noise: 12 images a prompt, policy `exact`, guidance 3, seed 0. Results are kept in docs/results/headline.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.provenance import DOCS, ROOT, provenance, say
from benchmarks.settings import HELD_OUT
from benchmarks.tables import fill, interval, table
from respodiff.concepts.concept import concept
from respodiff.data.prompt_sets import suite
from respodiff.data.run_folder import write_atomic
from respodiff.evaluation.evaluate import evaluate
from respodiff.evaluation.judges import EMBEDDED, ClipJudge
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate
from respodiff.pipelines.loading import load_pipeline, weights_digest
from respodiff.steering.module import ConceptModule
from respodiff.training.config import TrainConfig
from respodiff.training.respodiff import fit

RESULTS = DOCS / "results" / "headline.json"
SCALES = (1.0, 1.5)
IMAGES = 12


def trained(pipe: Any, name: str, out: Path) -> ConceptModule:
    """The module of a concept by the default preset; trained if ``out`` has none of these settings and weights."""
    chosen = concept(name)
    config = TrainConfig.preset("default", chosen.kind)
    about = json.dumps([asdict(config), asdict(chosen), weights_digest(pipe.unet)], sort_keys=True, default=str)
    path = out / f"{name}-{hashlib.sha256(about.encode()).hexdigest()[:12]}.safetensors"
    if not path.is_file():
        say(f"training {name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        fit(pipe, chosen, config).save(path)
    return ConceptModule.load(path)


def measured(out: Path, images: int = IMAGES, groups: tuple[str, ...] = HELD_OUT) -> dict[str, Any]:
    """Trains, generates and judges what is missing; a row for each scale and judge."""
    pipe = load_pipeline("embedded")
    modules = [trained(pipe, name, out / "modules") for name in ("woman", "man")]
    prompts = [p for p in suite("occupations") if p.group in groups]
    judges = [ClipJudge.load(name) for name in EMBEDDED]
    rows = []
    for label, used, scale in (("unsteered", [], 1.0), *((f"scale {s:g}", modules, s) for s in SCALES)):
        config, folder = GenerateConfig(images=images, policy="exact", scale=scale), out / label.replace(" ", "-")
        drawn = sum(1 for _ in generate(pipe, prompts, used, config, out=folder))
        say(f"{label}: {drawn} new")
        for judge in judges:
            found = evaluate(folder, judge, "gender").to_json()
            row = {
                "row": label,
                "scale": scale if used else None,
                "judge": judge.name,
                "n": found["n"],
                "devrat": found["devrat"]["gender"],
            }
            row |= {"concept_accuracy": found["concept_accuracy"]["gender"], "subject_accuracy": found["subject_accuracy"]}
            rows.append(row | {"alignment": found["alignment"]})
    about: dict[str, Any] = {"model": weights_digest(pipe.unet), "judges": {j.name: j.digest for j in judges}}
    about |= {"modules": {m.name: m.digest for m in modules}, "images": images, "prompts": len(prompts), "seed": GenerateConfig.seed}
    return about | {"rows": rows}


def as_table(result: Mapping[str, Any]) -> str:
    """What was measured, and a row for each scale and judge."""
    heads = ["", "judge", "n", "DevRat", "random", "concept accuracy", "subject accuracy", "alignment"]
    lines = [
        [
            row["row"],
            f"`{row['judge']}`",
            str(row["n"]),
            interval(row["devrat"]),
            f"{row['devrat']['random']:.3f}",
            *(interval(row[key]) for key in ("concept_accuracy", "subject_accuracy", "alignment")),
        ]
        for row in result["rows"]
    ]
    made = (
        f"`{result['command']}` at commit {result['commit']}: {result['prompts']} held-out occupations, {result['images']} images each, seed "
        f"{result['seed']}, model {result['model']}, torch {result['torch']}; brackets hold 95 % intervals over prompts. *random*: DevRat of a "
        "perfect generator that samples concepts at random.\n\n"
    )
    return made + table(heads, lines)


def as_small_table(result: Mapping[str, Any]) -> str:
    """The README's table: what is needed to judge the default at a glance."""
    keys = ("devrat", "subject_accuracy", "alignment")
    lines = [[row["row"], f"`{row['judge']}`", *(interval(row[key]) for key in keys)] for row in result["rows"]]
    made = (
        f"{result['prompts']} held-out occupations, {result['images']} images each (n = {result['rows'][0]['n']} a row), the default preset, the same "
        f"noise in every row, two judges (`{result['command']}`):\n\n"
    )
    return made + table(["", "judge", "DevRat", "subject accuracy", "alignment"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/headline"), help="folder of modules and runs")
    parser.add_argument("--tables", action="store_true", help="write the tables, run nothing")
    arguments = parser.parse_args()
    if not arguments.tables:
        result = provenance("python -m benchmarks.headline") | measured(arguments.out)
        write_atomic(RESULTS, json.dumps(result, indent=1) + "\n")
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    print(as_table(found))
    fill(DOCS / "results.md", "headline", as_table(found))
    fill(ROOT / "README.md", "headline", as_small_table(found))


if __name__ == "__main__":
    main()
