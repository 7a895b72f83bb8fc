"""Generates one row of each kept table anew and says whether it agrees with the table of docs/results.md.

python -m benchmarks.spot_check --out runs/spot-check     (about 15 minutes on 2 CPU cores)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.ablations import BASE
from benchmarks.comparison import compared
from benchmarks.provenance import DOCS
from benchmarks.settings import HELD_OUT
from respodiff.experiments.compare import Plan

RAM = "respodiff:RAM only, lambda 0"
CHECKS: dict[str, tuple[str, str, Plan, str, str]] = {
    "comparison, fairness": (
        "compare",
        "fairness",
        Plan(methods=("prompt",), images=4, groups=HELD_OUT, scales=(1.0,)),
        "prompt",
        "devrat",
    ),
    "comparison, safety": ("compare", "safety", Plan(suite="unsafe", methods=("negative",), images=3, scales=(1.0,)), "negative", "unsafe"),
    "ablation": (
        "ablation",
        "",
        Plan(methods=(RAM,), groups=HELD_OUT, scales=(1.0,), settings={RAM: {**BASE, "sam_lr": 0.0, "sam_weight": 0.0}}),
        RAM,
        "devrat",
    ),
}
"""Table -> its file, its part of the file, the plan of the row, the row's method, and the metric."""


def row_of(run: dict[str, Any], method: str) -> dict[str, Any]:
    found: dict[str, Any] = next(row for row in run["rows"] if row["method"] == method and row["scale"] == 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/spot-check"), help="folder of runs")
    out = parser.parse_args().out
    for name, (file, part, plan, method, metric) in CHECKS.items():
        kept = json.loads((DOCS / "results" / f"{file}.json").read_text(encoding="utf-8"))
        new = compared(plan, out / name.replace(", ", "-"))
        for label in ("plain", method):
            a, b = (row_of(run, label)[metric] for run in (kept[part] if part else kept, new))
            print(f"{name}: {label}: {metric} kept {a['mean']:.3f}, anew {b['mean']:.3f}", flush=True)


if __name__ == "__main__":
    main()
