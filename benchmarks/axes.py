"""The three axes of training compared on the embedded model: the tables of docs/training.md, "Three axes".

    python -m benchmarks.axes --out runs/axes           (10 rows, an hour on 2 CPU cores; a killed run goes on where it was)

Every row trains woman and man, then draws 12 of the 36 occupations with exact counts on the same noise. RAM beside SAM and its lambdas are
rows of ``respodiff compare --ablation ablation``, contexts those of ``--ablation drawing``. Writes docs/results/axes.json and the tables. Rows that
the file already holds for the same settings are kept; ``--again`` measures them anew.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.main_job import DOCS, intervals_anew
from benchmarks.sweep import Sweep
from benchmarks.tables import fill, interval, table
from respodiff.data.prompt_sets import suite
from respodiff.experiments.plan import TUNED_ON

RESULTS = DOCS / "results" / "axes.json"
IMAGES = 4
RAW = {"train_scale": 1.0, "max_relative_norm": 0.0, "objective": "guided"}
PER_STEP = {"rollouts": 1, "rollout_batch": 1, "batch": 1, "timesteps": "last", "rollout_prompts": "neutral", "refresh_every": 1}
AXES: dict[str, dict[str, dict[str, Any]]] = {
    "parameterisation": {
        "constant, as in neutral": {},
        "channel": {"form": "channel"},
        "binned, 4 bins": {"form": "binned"},
        "lowrank, rank 4": {"form": "lowrank"},
    },
    "objective": {
        "guided at 1": {**RAW, "target_guidance": 1.0},
        "guided at 2": {**RAW, "target_guidance": 2.0},
        "guided at 4": {**RAW, "target_guidance": 4.0},
        "guided at 4, blend .5": {**RAW, "target_guidance": 4.0, "blend": 0.5},
    },
    "rollout": {
        "replay of 4 pools, one every 25 updates": {"refresh_every": 25, "replay": 4},
        "a rollout a step, 300 steps": {**PER_STEP, "iterations": 300, "ram_lr": 0.1},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/axes"))
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--only", choices=list(AXES), help="one axis; the tables of the others stay")
    arguments = parser.parse_args()
    sweep = Sweep(arguments.out, arguments.again, RESULTS, "python -m benchmarks.axes")
    tuning = [p for p in suite("occupations") if p.group in TUNED_ON]
    for axis, variants in AXES.items():
        if arguments.only not in (None, axis):
            continue
        rows = sweep.rows(axis, variants, ("woman", "man"), {"result": (tuning, IMAGES)})
        intervals_anew(rows)
        fill(DOCS / "training.md", f"axis-{axis}", as_table(rows))


def as_table(rows: dict[str, Any]) -> str:
    """Cost, DevRat, concept accuracy and subjects kept of every row, with 95 % intervals."""
    plain, lines = rows["plain model"]["result"], []
    for name, row in rows.items():
        r = row["result"]
        cost = [str(row["forwards"]), ", ".join(map(str, row["norms"]))] if "norms" in row else ["-", "-"]
        kept = f"{interval(r['subject_accuracy'])} ({r['subject_accuracy']['mean'] / plain['subject_accuracy']['mean']:.2f})"
        lines.append([name, *cost, interval(r["devrat"]["gender"]), interval((r["concept_accuracy"] or {}).get("gender")), kept])
    head = ["setting", "UNet forwards", "norm (woman, man)", "DevRat", "concept_accuracy", "kept"]
    random_level = plain["devrat"]["gender"]["random"]
    return (
        f"n = {plain['n']} a row (12 occupations x {IMAGES}, exact counts, scale 1), 95 % intervals over prompts; DevRat of random sampling {random_level:.3f}.\n\n"
        + table(head, lines)
    )


if __name__ == "__main__":
    main()
