"""Measures the paper's ablation on the embedded model: RAM alone, RAM and SAM over lambda; fills docs/results.md.

    python -m benchmarks.ablations --out runs/ablation     (about 30 minutes on 2 CPU cores; a killed run goes on where it was)
    python -m benchmarks.ablations --tables                (the table anew from the kept rows)

Every row is the preset `neutral` with one thing changed, on the 24 held-out occupations. Rows are kept in docs/results/ablation.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.comparison import about, compared
from benchmarks.provenance import DOCS
from benchmarks.settings import EMBEDDED, HELD_OUT
from benchmarks.tables import fill, table
from respodiff.data.run_folder import write_atomic
from respodiff.experiments.compare import Plan
from respodiff.experiments.comparison_report import cell, columns_of
from respodiff.reports.tables import text

RESULTS = DOCS / "results" / "ablation.json"
BASE = {**EMBEDDED["fairness"]["respodiff:neutral"], "sam_lr": 0.02}
ROWS: dict[str, dict[str, Any]] = {
    "RAM only, lambda 0": {"sam_lr": 0.0, "sam_weight": 0.0},
    "RAM and SAM, lambda 0.5": {"sam_weight": 0.5},
    "RAM and SAM, lambda 1": {"sam_weight": 1.0},
    "RAM and SAM, lambda 2": {"sam_weight": 2.0},
    "RAM and SAM, lambda 4": {"sam_weight": 4.0},
}
"""Row -> settings that differ from `BASE`."""

SHOWN = ("devrat", "concept_accuracy", "subject_accuracy", "alignment", "frechet", "drift")


def plan() -> Plan:
    """All rows at scales 0.5 and 1."""
    settings = {f"respodiff:{label}": {**BASE, **changes} for label, changes in ROWS.items()}
    return Plan(methods=tuple(settings), groups=HELD_OUT, scales=(0.5, 1.0), settings=settings)


def as_table(run: Mapping[str, Any]) -> str:
    heads = {key: columns_of("fairness")[key] for key in SHOWN}
    lines = [
        [row["method"].removeprefix("respodiff:"), f"{row['scale']:g}" if i else "-", *(text(cell(row, key)) for key in heads)]
        for i, row in enumerate(run["rows"])
    ]
    return about(run, "fairness") + table(["row", "scale", *heads.values()], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--tables", action="store_true", help="write the table, run nothing")
    arguments = parser.parse_args()
    if not arguments.tables:
        write_atomic(RESULTS, json.dumps(compared(plan(), arguments.out), indent=1) + "\n")
    fill(DOCS / "results.md", "ablation", as_table(json.loads(RESULTS.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
