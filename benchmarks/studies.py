"""The tables of ablations of `respodiff compare`, for docs/method.md.

    respodiff compare --ablation ablation --scale .5 --scale 1 --out runs/ablation
    respodiff compare --ablation drawing --out runs/drawing
    python -m benchmarks.studies runs/ablation runs/drawing       (the folders are called as the ablations are)

Keeps the rows in docs/results/studies.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.main_job import DOCS
from benchmarks.methods_table import about
from benchmarks.tables import fill, table
from respodiff.data.run_folder import write_atomic
from respodiff.experiments.comparison_report import columns_of, text_cell

RESULTS = DOCS / "results" / "studies.json"
SHOWN_IN = ("ablation", "drawing")
"""Studies with a place in docs/method.md; `axes` is measured by `benchmarks.axes`."""

SHOWN = ("devrat", "concept_accuracy", "subject_accuracy", "alignment", "frechet", "drift")


def as_table(run: Mapping[str, Any]) -> str:
    """Every row at every scale, as the plot shows them."""
    heads = {key: columns_of("fairness")[key] for key in SHOWN}
    lines = [
        [row["method"].removeprefix("respodiff:"), f"{row['scale']:g}" if i else "-", *(text_cell(row[key], key) for key in heads)]
        for i, row in enumerate(run["rows"])
    ]
    return about(run, "fairness") + table(["row", "scale", *heads.values()], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="folders of ablations, called as those are")
    arguments = parser.parse_args()
    if wrong := [str(folder) for folder in arguments.runs if folder.name not in SHOWN_IN]:
        parser.error(f"{wrong[0]} is not called as a ablation of docs/method.md; allowed: {', '.join(SHOWN_IN)}")
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for folder in arguments.runs:
        run = json.loads((folder / "compare.json").read_text())
        for row in run["rows"]:
            row.pop("tests", None)
        found[folder.name] = run
    write_atomic(RESULTS, json.dumps(found, indent=1) + "\n")
    for name, run in found.items():
        fill(DOCS / "method.md", f"ablation-{name}", as_table(run))


if __name__ == "__main__":
    main()
