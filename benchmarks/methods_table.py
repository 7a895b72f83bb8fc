"""The tables of `respodiff compare` on the embedded model, for README.md and docs/methods.md.

    respodiff compare --model embedded --suite occupations --methods all --out runs/compare
    respodiff compare --model embedded --suite unsafe --methods all --out runs/compare-safety
    python -m benchmarks.methods_table runs/compare runs/compare-safety
    python -m benchmarks.methods_table --add runs/compare-own       (rows of another run of fairness, with the same plan and the same plain model's row)

Keeps the rows of both runs in docs/results/compare.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.main_job import DOCS
from benchmarks.tables import fill, table
from respodiff.experiments.comparison_report import columns_of, markdown, text_cell, unchanged

RESULTS = DOCS / "results" / "compare.json"
SHORT = {
    "fairness": (
        "devrat",
        "concept_accuracy",
        "subject_accuracy",
        "alignment",
        "frechet",
        "explicit_prompt_accuracy",
        "train_unet_forwards",
        "unet_forwards_per_image",
    ),
    "safety": ("unsafe", "benign_subject_accuracy", "benign_alignment", "benign_frechet", "train_unet_forwards", "unet_forwards_per_image"),
}
"""Columns of the README; docs/methods.md has all of them."""


def short(rows: Sequence[Mapping[str, Any]], kind: str) -> str:
    """The rows at full scale, some columns."""
    heads = {key: columns_of(kind)[key] for key in SHORT[kind]}
    lines = [[row["label"], *(text_cell(row[key], key) for key in heads)] for row in rows if row["scale"] == 1]
    return table(["method", *heads.values()], lines)


def about(run: Mapping[str, Any], kind: str) -> str:
    """What was drawn, the plain model's own spread, and who did not move."""
    rows, plan = run["rows"], run["plan"]
    half = next(r["split_half" if kind == "fairness" else "benign_split_half"] for r in rows[1:])
    still = unchanged(rows)
    names = ", ".join(f"`{name}`" for name in still)
    return (
        f"n = {rows[0]['n']} images a row, {plan['images']} a prompt, {plan['steps']} steps, guidance {plan['guidance']:g}, seed {plan['seed']}, "
        f"judge {run['judge']['name']} {run['judge']['digest']}, respodiff {run['library']}. "
        f"The plain model's own split halves are {text_cell(half, 'split_half')} apart (Frechet). "
        + (f"Not moved beyond the interval: {names}." if still else "Every method moves its figure beyond the interval.")
        + "\n\n"
    )


SAME = ("devrat", "subject_accuracy", "alignment")
"""Figures of the plain model that must be equal, to a thousandth, for rows of two runs to stand in one table: the last digits of images differ
from machine to machine."""


def with_rows(found: dict[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The run of fairness with the rows of another one in place of those of the same labels, or after them.

    Raises:
        ValueError: the plain model's rows differ.
    """
    run = found["fairness"]
    for key in SAME:
        a, b = run["rows"][0][key], other["rows"][0][key]
        if a["n"] != b["n"] or abs(a["mean"] - b["mean"]) >= 0.001:
            raise ValueError(f"the plain model's {key} is {a} in one run and {b} in the other: no one table")
    new = {row["label"]: {k: v for k, v in row.items() if k != "tests"} for row in other["rows"][1:]}
    rows = [new.pop(row["label"], row) for row in run["rows"]]
    return {**found, "fairness": {**run, "rows": [*rows, *new.values()]}}


def publish(found: Mapping[str, Any]) -> None:
    for kind, run in found.items():
        fill(DOCS.parent / "README.md", f"compare-{kind}", about(run, kind) + short(run["rows"], kind))
        fill(DOCS / "methods.md", f"compare-{kind}", about(run, kind) + markdown(run["rows"], kind))
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="DIR", help="the run of fairness, the run of safety")
    parser.add_argument("--add", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    if arguments.add:
        publish(with_rows(json.loads(RESULTS.read_text()), json.loads((arguments.add / "compare.json").read_text())))
        return
    found = {}
    for kind, folder in zip(("fairness", "safety"), arguments.runs, strict=True):
        run = json.loads((folder / "compare.json").read_text())
        for row in run["rows"]:
            row.pop("tests", None)
        found[kind] = run
    publish(found)


if __name__ == "__main__":
    main()
