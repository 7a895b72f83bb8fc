"""Settings of training compared on the embedded model: the table of docs/training.md.

    python -m benchmarks.sweep --out runs/sweep          (about 35 minutes on 2 CPU cores; a killed run goes on where it was)

Every variant trains woman and man, then draws 12 of the 36 occupations with exact counts on the same noise; the variants of safety train
violence and sexual, and draw the unsafe prompts and people at work. Writes docs/results/sweep.json and the tables of docs/training.md. Rows
that docs/results/sweep.json already holds for the same settings are kept; ``--again`` measures them anew.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.main_job import DOCS, intervals_anew, say
from benchmarks.tables import fill, interval, table
from respodiff.concepts.concept import concept
from respodiff.data.prompt_sets import suite
from respodiff.data.run_folder import Prompt
from respodiff.evaluation.evaluate import evaluate
from respodiff.evaluation.judges import ClipJudge
from respodiff.experiments.plan import TUNED_ON
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate
from respodiff.pipelines.loading import load_pipeline
from respodiff.steering.module import ConceptModule, load
from respodiff.steering.parameterisations import length
from respodiff.training.config import TrainConfig
from respodiff.training.respodiff import train

RESULTS = DOCS / "results" / "sweep.json"
RAW = {"train_scale": 1.0, "max_relative_norm": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "neutral": {},
    "neutral rollouts only": {"rollout_prompts": "neutral"},
    "plain target score at guidance 3, no gain": {"objective": "guided", "target_guidance": 3.0, **RAW},
    "plain target score at guidance 1, gain 2": {"objective": "guided"},
    "contrast at 3, no gain": {"target_guidance": 3.0, **RAW},
    "learning rate .1": {"ram_lr": 0.1},
    "50 iterations": {"iterations": 50},
}
SAFETY: dict[str, dict[str, Any]] = {"neutral": {}, "no preservation": {"preservation_weight": 0.0}, "gain 1": {"train_scale": 1.0}}


def trained(pipe: Any, words: Sequence[str], changes: dict[str, Any], folder: Path) -> tuple[list[ConceptModule], dict[str, Any]]:
    """Modules of one variant with their cost, trained if they are not there."""
    modules, costs = [], []
    for word in words:
        path = folder / f"{word}.safetensors"
        cost = path.with_suffix(".json")
        if not cost.is_file():
            chosen = concept(word)
            *_, last = train(pipe, chosen, TrainConfig.preset("neutral", chosen.kind, **changes))
            last.module.save(path)
            cost.write_text(json.dumps({"seconds": last.seconds, "forwards": last.unet_forwards}))
        modules.append(load(path))
        costs.append(json.loads(cost.read_text()))
    norms = [round(length(m.values), 1) for m in modules]
    return modules, {"norms": norms, "forwards": costs[0]["forwards"]}


class Sweep:
    """Draws and measures variants, keeping what was measured before."""

    def __init__(self, out: Path, again: bool, results: Path = RESULTS, command: str = "python -m benchmarks.sweep") -> None:
        self.out, self.pipe, self.judge = out, load_pipeline("embedded"), ClipJudge.load("embedded")
        self.results, self.command = results, command
        self.held = {} if again or not results.is_file() else json.loads(results.read_text())

    def run(self, folder: Path, prompts: Sequence[Prompt], modules: Sequence[ConceptModule], images: int) -> dict[str, Any]:
        for _ in generate(self.pipe, prompts, modules, GenerateConfig(images=images, assign_at=0.0), out=folder):
            pass
        return evaluate(folder, self.judge, ["gender"])

    def rows(
        self, kind: str, variants: dict[str, dict[str, Any]], words: Sequence[str], suites: dict[str, tuple[list[Prompt], int]]
    ) -> dict[str, Any]:
        held = self.held.get(kind, {})
        rows: dict[str, Any] = {}
        for name, changes in {"plain model": None, **variants}.items():
            if name in held and held[name].get("changes", changes) == changes:
                rows[name] = held[name]
                continue
            folder = self.out / kind / "".join(c if c.isalnum() else "-" for c in name)
            modules, cost = ([], {}) if changes is None else trained(self.pipe, words, changes, folder)
            found = {key: self.run(folder / f"run-{key}", prompts, modules, images) for key, (prompts, images) in suites.items()}
            rows[name] = {"changes": changes, **cost, **found}
            say(f"{kind}, {name}: {cost}")
            self.results.write_text(json.dumps({"command": self.command, **self.held, kind: {**held, **rows}}, indent=1) + "\n")
        self.held[kind] = rows
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"))
    parser.add_argument("--again", action="store_true")
    arguments = parser.parse_args()
    sweep = Sweep(arguments.out, arguments.again)
    people = suite("occupations")
    tuning = [p for p in people if p.group in TUNED_ON]
    fairness = sweep.rows("variants", VARIANTS, ("woman", "man"), {"result": (tuning, 8)})
    safety = sweep.rows("safety", SAFETY, ("violence", "sexual"), {"unsafe": (suite("unsafe"), 4), "people": (tuning, 8)})
    for rows in (fairness, safety):
        intervals_anew(rows)  # of rows that were kept, too
    RESULTS.write_text(json.dumps({"command": "python -m benchmarks.sweep", "variants": fairness, "safety": safety}, indent=1) + "\n")
    fill(DOCS / "training.md", "sweep", as_table(fairness))
    fill(DOCS / "training.md", "sweep-safety", safety_table(safety))


def safety_table(rows: dict[str, Any]) -> str:
    plain = rows["plain model"]["people"]["subject_accuracy"]["mean"]
    lines = []
    for name, row in rows.items():
        norms = ", ".join(map(str, row["norms"])) if "norms" in row else "-"
        kept = row["people"]["subject_accuracy"]["mean"]
        lines.append(
            [name, norms, interval(row["unsafe"]["unsafe"]), f"{interval(row['people']['subject_accuracy'])} ({kept / plain:.2f})"]
        )
    n = [rows["plain model"][key]["n"] for key in ("unsafe", "people")]
    header = ["setting", "norm (violence, sexual)", "unsafe, unsafe prompts", "kept, people"]
    return f"Both safety modules, scale 1; n = {n[0]} images of unsafe prompts and {n[1]} of people at work a row.\n\n" + table(
        header, lines
    )


def as_table(rows: dict[str, Any]) -> str:
    plain = rows["plain model"]["result"]
    lines = []
    for name, row in rows.items():
        r = row["result"]
        concept_accuracy = (r["concept_accuracy"] or {}).get("gender")
        kept = f"{r['subject_accuracy']['mean']:.3f} ({r['subject_accuracy']['mean'] / plain['subject_accuracy']['mean']:.2f})"
        cost = [str(row["forwards"]), ", ".join(map(str, row["norms"]))] if "norms" in row else ["-", "-"]
        lines.append([name, *cost, interval(r["devrat"]["gender"]), interval(concept_accuracy), kept])
    header = ["setting", "UNet forwards", "norm (woman, man)", "DevRat", "concept_accuracy", "kept"]
    n, random_level = plain["n"], plain["devrat"]["gender"]["random"]
    return f"n = {n} a row (12 occupations x 8, exact counts, scale 1); DevRat of random sampling {random_level:.3f}.\n\n" + table(
        header, lines
    )


if __name__ == "__main__":
    main()
