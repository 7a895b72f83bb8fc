"""The least scale that reaches a concept accuracy, chosen on 12 occupations and checked on the other 24. Fills docs/using.md.

python -m benchmarks.strength --out runs/scale          (about 25 minutes on 2 cores; needs the modules of benchmarks.beyond)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import respodiff
from benchmarks.main_job import DOCS, say
from benchmarks.tables import fill, interval, table
from respodiff.cli.strength import lines_of, result_of
from respodiff.data.prompt_sets import suite
from respodiff.evaluation.evaluate import evaluate
from respodiff.evaluation.judges import ClipJudge, Vocabulary
from respodiff.experiments.plan import TUNED_ON
from respodiff.experiments.tuning import tune
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate
from respodiff.pipelines.loading import load_pipeline
from respodiff.steering.module import load

RESULTS = DOCS / "results" / "strength.json"
IMAGES = 4
ASKED = {"gender": (("woman", "man"), 0.95), "tone": (("light", "medium", "dark"), 0.85)}
"""Attribute -> modules, and the concept accuracy to reach."""


def chosen(modules: Path, out: Path, attributes: Sequence[str]) -> dict[str, Any]:
    """Attribute -> the choice, and what the other occupations show at that scale and at 1."""
    pipe, judge, words = load_pipeline("embedded"), ClipJudge.load("embedded"), Vocabulary.embedded()
    tuned = [p for p in suite("occupations") if p.group in TUNED_ON]
    others = [p for p in suite("occupations") if p.group not in TUNED_ON]
    loaded = {name: [load(modules / f"{c}.safetensors") for c in concepts] for name, (concepts, _) in ASKED.items() if name in attributes}
    found = {}
    for name, used in loaded.items():
        reach = ASKED[name][1]
        row: dict[str, Any] = {"modules": [m.digest for m in used], "prompts": len(tuned)}
        try:
            choice = tune(pipe, used, tuned, judge, GenerateConfig(images=IMAGES), vocabulary=words, out=out / name, reach=reach)
        except ValueError as error:
            if not str(error).startswith("no scale"):
                raise
            found[name] = row | {"reach": reach, "refused": str(error).partition(";")[0]}
            say(f"{name}: {error}")
            continue
        say("\n".join([name, *lines_of(choice, reach)]))
        row |= result_of(choice, reach) | {"others": []}
        for scale in dict.fromkeys((choice.scale, 1.0)):
            folder = out / f"{name}-others-{scale:g}"
            for _ in generate(pipe, others, used, GenerateConfig(images=IMAGES, scale=scale), out=folder):
                pass
            seen = evaluate(folder, judge, [name])
            row["others"].append(
                {"scale": scale, "n": seen["n"], "concept_accuracy": seen["concept_accuracy"][name], "kept": seen["subject_accuracy"]}
            )
        found[name] = row
    return found


def rows_of(name: str, r: Mapping[str, Any]) -> list[list[str]]:
    """Rows of the table: the scale that was chosen and, for comparison, 1."""
    if "refused" in r:
        return [[name, f"{r['reach']:g}", r["refused"], "-", "-", "-", "-"]]
    high = "above all drawn" if r["high"] is None else f"{r['high']:.2f}"
    others, tuned = {o["scale"]: o for o in r["others"]}, {p["scale"]: p["concept_accuracy"] for p in r["points"]}
    rows = []
    for scale, shown in {1.0: "1, for comparison", r["scale"]: f"{r['scale']:g} [{r['low']:.2f}, {high}]"}.items():
        own = others[scale]
        statistics = (tuned.get(scale), own["concept_accuracy"], own["kept"])
        rows.append([name, f"{r['reach']:g}", shown, *map(interval, statistics), str(own["n"])])
    return rows[::-1]


def publish(found: dict[str, Any]) -> None:
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    head = [
        "attribute",
        "asked for",
        "scale chosen",
        "concept accuracy, tuning prompts",
        "concept accuracy, other occupations",
        "kept, other occupations",
        "n, others",
    ]
    fill(DOCS / "using.md", "scale", table(head, [row for name, r in found["chosen"].items() for row in rows_of(name, r)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", type=Path, default=Path("runs/beyond/modules"))
    parser.add_argument("--out", type=Path, default=Path("runs/scale"))
    parser.add_argument("--only", choices=list(ASKED), help="one attribute; rows of others stay as kept")
    arguments = parser.parse_args()
    result = {"command": "python -m benchmarks.strength", "library": respodiff.__version__}
    held = json.loads(RESULTS.read_text())["chosen"] if arguments.only and RESULTS.is_file() else {}
    found = chosen(arguments.modules, arguments.out, [arguments.only] if arguments.only else list(ASKED))
    publish(result | {"chosen": held | found})


if __name__ == "__main__":
    main()
