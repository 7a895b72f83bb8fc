"""Settings of training compared on the embedded model: the table of docs/training.md.

    python -m benchmarks.sweep --out runs/sweep          (about 15 minutes on 2 CPU cores; a killed run goes on where it was)

Every variant trains woman and man, then draws 12 of the 36 occupations with exact counts on the same noise. Writes docs/results/sweep.json
and the table of docs/training.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.main_job import DOCS, say
from benchmarks.tables import fill, interval, table
from respodiff.concepts import concept
from respodiff.config import GenerateConfig, TrainConfig
from respodiff.evaluation import evaluate
from respodiff.generation import generate
from respodiff.judges import ClipJudge
from respodiff.module_file import ConceptModule, load
from respodiff.pipelines import load_pipeline
from respodiff.records import Prompt
from respodiff.suites import suite
from respodiff.training import train

TUNING = ("doctor", "nurse", "ceo", "secretary", "mechanic", "guard", "developer", "teacher", "farmer", "cleaner", "hairdresser", "lawyer")
RAW = {"gain": 1.0, "limit": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "neutral rollouts only": {"rollout_prompts": "neutral"},
    "plain target score at guidance 3, no gain": {"objective": "guided", "target_guidance": 3.0, **RAW},
    "plain target score at guidance 1, gain 2": {"objective": "guided"},
    "contrast at 3, no gain": {"target_guidance": 3.0, **RAW},
    "learning rate .1": {"ram_lr": 0.1},
}


def trained(pipe: Any, changes: dict[str, Any], folder: Path) -> tuple[list[ConceptModule], dict[str, Any]]:
    """Modules of one variant with their cost, trained if they are not there."""
    modules, costs = [], []
    for word in ("woman", "man"):
        path = folder / f"{word}.safetensors"
        cost = path.with_suffix(".json")
        if not cost.is_file():
            *_, last = train(pipe, concept(word), TrainConfig.preset("default", **changes))
            last.module.save(path)
            cost.write_text(json.dumps({"seconds": last.seconds, "forwards": last.unet_forwards}))
        modules.append(load(path))
        costs.append(json.loads(cost.read_text()))
    norms = [round(m.delta.norm().item(), 1) for m in modules]
    return modules, {"norms": norms, "seconds": sum(c["seconds"] for c in costs) / 2, "forwards": costs[0]["forwards"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"))
    out = parser.parse_args().out
    pipe, judge = load_pipeline("embedded"), ClipJudge.load("embedded")
    prompts = [p for p in suite("occupations") if p.group in TUNING]

    def measured(folder: Path, prompts: Sequence[Prompt], modules: Sequence[ConceptModule]) -> dict[str, Any]:
        for _ in generate(pipe, prompts, modules, GenerateConfig(images=8), out=folder):
            pass
        return evaluate(folder, judge, ["gender"])

    rows: dict[str, Any] = {"plain model": {"result": measured(out / "plain", prompts, [])}}
    for name, changes in VARIANTS.items():
        folder = out / "".join(c if c.isalnum() else "-" for c in name)
        modules, cost = trained(pipe, changes, folder)
        rows[name] = {"changes": changes, **cost, "result": measured(folder / "run", prompts, modules)}
        say(f"{name}: {cost} DevRat {rows[name]['result']['devrat']['gender']['mean']:.3f} kept {rows[name]['result']['subject_kept']:.3f}")
    (DOCS / "results").mkdir(parents=True, exist_ok=True)
    (DOCS / "results" / "sweep.json").write_text(json.dumps({"command": "python -m benchmarks.sweep", "variants": rows}, indent=1) + "\n")
    fill(DOCS / "training.md", "sweep", as_table(rows))


def as_table(rows: dict[str, Any]) -> str:
    plain = rows["plain model"]["result"]
    lines = []
    for name, row in rows.items():
        r = row["result"]
        control = (r["control"] or {}).get("gender")
        kept = f"{r['subject_kept']:.3f} ({r['subject_kept'] / plain['subject_kept']:.2f})"
        cost = [f"{row['seconds']:.0f}", str(row["forwards"]), ", ".join(map(str, row["norms"]))] if "norms" in row else ["-", "-", "-"]
        lines.append([name, *cost, interval(r["devrat"]["gender"]), interval(control), kept])
    header = ["setting", "seconds a concept", "UNet forwards", "norm (woman, man)", "DevRat", "control", "kept"]
    n, floor = plain["n"], plain["devrat"]["gender"]["floor"]
    return f"n = {n} a row (12 occupations x 8, exact counts, strength 1); noise floor {floor:.3f}.\n\n" + table(header, lines)


if __name__ == "__main__":
    main()
