"""Generates one row of each kept table anew and says whether it agrees with the table of docs/results.md.

python -m benchmarks.spot_check --out runs/spot-check     (about 25 minutes on 2 CPU cores)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import respodiff
from benchmarks.ablations import BASE
from benchmarks.comparison import compared
from benchmarks.known_truth import KINDS, known_truth
from benchmarks.main_job import Bench
from benchmarks.provenance import DOCS
from benchmarks.settings import HELD_OUT
from respodiff.data.prompt_sets import suite
from respodiff.evaluation.judges import ClipJudge
from respodiff.experiments.compare import Plan
from respodiff.training.config import TrainConfig

RAM = "respodiff:RAM only, lambda 0"
COMPARED: dict[str, tuple[str, str, Plan, str, str]] = {
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
MIXTURE = "gender woman 0.90, man 0.10, n = 60"


def row_of(run: dict[str, Any], method: str) -> dict[str, Any]:
    found: dict[str, Any] = next(row for row in run["rows"] if row["method"] == method and row["scale"] == 1)
    return found


def kept(file: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DOCS / "results" / f"{file}.json").read_text(encoding="utf-8"))
    return found


def say(table: str, row: str, metric: str, before: float, now: float) -> None:
    print(f"{table}: {row}: {metric} kept {before:.3f}, anew {now:.3f}", flush=True)


def main_job(out: Path) -> None:
    """Trains both genders with the preset ``neutral`` and generates the row "exact, scale 1.0" of 36 occupations, n = 432."""
    bench = Bench(out)
    modules = [respodiff.fit(bench.pipe, name, TrainConfig.preset("neutral")) for name in ("woman", "man")]
    before, now = kept("main_job")["fairness"]["exact"]["1.0"], bench.run("gender-exact-1.0", suite("occupations"), modules, scale=1.0)
    say("preset neutral", "exact, scale 1.0", "DevRat", before["devrat"]["gender"]["mean"], now["devrat"]["gender"]["mean"])


def truth() -> None:
    """Takes one known mixture through files, import, judge and evaluation."""
    before = kept("measuring")["known_truth"][MIXTURE]["through files"]
    now = known_truth(ClipJudge.load("embedded"), MIXTURE)[MIXTURE]["through files"]
    for kind in KINDS:
        say("known truth", MIXTURE, f"man, {kind}", before[kind]["man"]["mean"], now[kind]["man"]["mean"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/spot-check"), help="folder of runs")
    out = parser.parse_args().out
    truth()
    for name, (file, part, plan, method, metric) in COMPARED.items():
        before, new = kept(file), compared(plan, out / name.replace(", ", "-"))
        for label in ("plain", method):
            a, b = (row_of(run, label)[metric]["mean"] for run in (before[part] if part else before, new))
            say(name, label, metric, a, b)
    main_job(out / "main-job")


if __name__ == "__main__":
    main()
