"""Settings of every method compared on the embedded model, with the same budget for each: the tables of docs/methods.md.

    python -m benchmarks.methods_sweep --out runs/methods-sweep      (a killed run goes on where it was)

Fairness: 12 of the 36 occupations x 4 images, exact counts. Safety: the unsafe prompts x 2, and harmless prompts. The noise is another one
than that of reported figures (run seed 1; training keeps seed 0), images take 12 steps in place of 20. A method gets at most seven rows,
scales included, as RespoDiff does. The rule that picks one was fixed before anything was drawn: the lowest DevRat (or share of unsafe
images) among rows that keep at least .95 of the plain model's subjects; where there is none, the row that keeps most. Picks are what
`respodiff compare --model embedded` uses (`respodiff.experiments.plan.EMBEDDED`). Writes docs/results/methods_sweep.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.main_job import DOCS, say
from benchmarks.tables import fill, interval, table
from respodiff.evaluation.judges import ClipJudge
from respodiff.evaluation.judges.differentiable import classifier
from respodiff.experiments import comparison_report
from respodiff.experiments.compare import MethodComparison
from respodiff.experiments.plan import NEUTRAL, TUNED_ON, WORDS, Plan, base_of
from respodiff.methods.registry import NOT_TRAINED
from respodiff.pipelines.loading import load_pipeline

RESULTS = DOCS / "results" / "methods_sweep.json"
KEEPS = 0.95
"""Share of the plain model's subjects that a pick must keep."""

BASE: dict[str, dict[str, dict[str, Any]]] = {
    "fairness": {
        "sdisc": {"rollouts": 48, "iterations": 200},
        "slider": {"iterations": 100},
        "fdf": {"draw": "a {}", "batch": 8, "steps": 6, "iterations": 20, "ram_lr": 3e-3, "stay": 0.1},
        "bact": {"draw": "a {}", "rollouts": 144},
        "uce": {"draw": "a {}", "images": 6, "steps": 10, "rounds": 4, "guidance": 3.0},
        "respodiff-paper": {"iterations": 300, "steps": 20, "ram_lr": 0.15, "sam_lr": 0.015},
    },
    "safety": {"respodiff-paper": {"iterations": 150, "steps": 20, "ram_lr": 0.1, "sam_lr": 0.001}},
}
"""Sizes that a method can be trained with in minutes on 2 cores. The paper's preset has 1/17 (1/10) of its iterations and as many times its
learning rates, and 20 steps of a rollout for 50."""
FAIRNESS: dict[str, dict[str, dict[str, Any]]] = {
    "prompt": {"": {}},
    "prompt-switch": {f"switch {s:g}": {"switch": s} for s in (0.1, 0.2, 0.3, 0.5)},
    "sdisc": {
        "": {},
        "scale 1.5": {"scale": 1.5},
        "scale 2": {"scale": 2.0},
        "lr .03": {"ram_lr": 0.03},
        "lr .03, scale 2": {"ram_lr": 0.03, "scale": 2.0},
    },
    "slider": {
        "": {},
        "scale .75": {"scale": 0.75},
        "scale 1.5": {"scale": 1.5},
        "eta 4": {"target_guidance": 4.0},
        "eta 4, scale .5": {"target_guidance": 4.0, "scale": 0.5},
    },
    "fdf": {
        "": {},
        "scale 2": {"scale": 2.0},
        "scale 4": {"scale": 4.0},
        "no distance to the original": {"stay": 0.0},
        "lr .01": {"ram_lr": 0.01},
        "lr .03": {"ram_lr": 0.03},
    },
    "bact": {f"gamma {5 * s:g}": {"scale": s} for s in (1.0, 2.0, 4.0, 8.0)},
    "uce": {
        "": {"subjects": TUNED_ON},
        "with an article": {"subjects": TUNED_ON, "form": "a {}"},
        "with an article, 8 rounds": {"subjects": TUNED_ON, "form": "a {}", "rounds": 8},
        "with an article, lam .01": {"subjects": TUNED_ON, "form": "a {}", "sam_weight": 0.01},
        "with an article, lam .01, scale 3": {"subjects": TUNED_ON, "form": "a {}", "sam_weight": 0.01, "scale": 3.0},
        "with an article, lam .01, scale 6": {"subjects": TUNED_ON, "form": "a {}", "sam_weight": 0.01, "scale": 6.0},
        "with an article, lam .001": {"subjects": TUNED_ON, "form": "a {}", "sam_weight": 0.001},
    },
    "respodiff": {"": NEUTRAL, **{f"scale {s:g}": {**NEUTRAL, "scale": s} for s in (0.75, 1.25, 1.5)}},
    "respodiff-paper": {"": {}, "scale 1.5": {"scale": 1.5}, "scale 2": {"scale": 2.0}, "scale 3": {"scale": 3.0}},
}
SAFETY: dict[str, dict[str, dict[str, Any]]] = {
    "negative": {"": {}},
    "sld-weak": {
        "": {},
        "scale 4": {"scale": 4.0},
        "guidance_scale 200": {"guidance_scale": 200.0},
        "guidance_scale 200, scale 4": {"guidance_scale": 200.0, "scale": 4.0},
    },
    "sld-medium": {"": {}, "scale 2": {"scale": 2.0}},
    "sld-strong": {"": {}},
    "sld-max": {"": {}, "scale .5": {"scale": 0.5}},
    "esd-x": {
        "": {},
        "scale .5": {"scale": 0.5},
        "lr 2e-5": {"ram_lr": 2e-5},
        "lr 2e-5, keeping the harmless": {"ram_lr": 2e-5, "preservation_weight": 1.0},
    },
    "esd-u": {
        "": {},
        "scale .5": {"scale": 0.5},
        "lr 1e-5": {"ram_lr": 1e-5},
        "lr 1e-5, keeping the harmless": {"ram_lr": 1e-5, "preservation_weight": 1.0},
    },
    "uce": {
        "": {},
        "scale 2": {"scale": 2.0},
        "half of the words": {"phrases": WORDS, "scale": 0.5},
        "half of the words, scale 1.5": {"phrases": WORDS, "scale": 0.75},
    },
    "respodiff": {"": {}, **{f"scale {s:g}": {"scale": s} for s in (0.75, 1.25, 1.5)}},
    "respodiff-paper": {
        "": {},
        "scale .5": {"scale": 0.5},
        "scale .25": {"scale": 0.25},
        "lr .01": {"ram_lr": 0.01},
        "lr .01, scale .5": {"ram_lr": 0.01, "scale": 0.5},
    },
}

ONE_SIDED = ("developer", "lawyer", "farmer", "mechanic", "ceo")
"""Occupations that the plain model draws as men, nearly all of them."""
ALONE: dict[str, dict[str, dict[str, Any]]] = {
    "uce": {"alone": {"subjects": ONE_SIDED, "form": "a {}", "sam_weight": 0.01, "rounds": 8}},
    "fdf": {"alone": {"subjects": ONE_SIDED, "stay": 0.0, "iterations": 40}},
}
"""Methods that pull occupations apart, on occupations that all need the same pull."""
VARIANTS = {"fairness": FAIRNESS, "safety": SAFETY, "alone": ALONE}


def plan_of(kind: str, methods: Sequence[str]) -> Plan:
    """The comparison of all settings of some methods."""
    settings: dict[str, dict[str, Any]] = {}
    for name in methods:
        for variant, changes in VARIANTS[kind][name].items():
            base = BASE["safety" if kind == "safety" else "fairness"].get(name, {})
            seed = {"seed": 0} if name not in NOT_TRAINED and (kind, name) != ("safety", "uce") else {}
            settings[f"{name}:{variant}" if variant else name] = {**base, **seed, **changes}
    drawn: dict[str, dict[str, Any]] = {
        "fairness": {"groups": TUNED_ON, "images": 4},
        "safety": {"suite": "unsafe", "images": 2},
        "alone": {"groups": ONE_SIDED, "images": 12},
    }
    return Plan(methods=tuple(settings), settings=settings, steps=12, seed=1, **drawn[kind])


def picked(rows: Sequence[Mapping[str, Any]], kind: str) -> dict[str, str]:
    """Method -> label of the row that the rule picks."""
    effect, kept = ("unsafe", "benign_subject_accuracy") if kind == "safety" else ("devrat", "subject_accuracy")
    least = KEEPS * rows[0][kept]["mean"]
    out = {}
    for name in dict.fromkeys(base_of(row["method"]) for row in rows[1:]):
        own = [row for row in rows[1:] if base_of(row["method"]) == name]
        good = [row for row in own if row[kept]["mean"] >= least - 1e-9]
        best = min(good, key=lambda row: row[effect]["mean"]) if good else max(own, key=lambda row: row[kept]["mean"])
        out[name] = str(best["label"])
    return out


def as_table(rows: Sequence[Mapping[str, Any]], kind: str) -> str:
    """Markdown: a row a setting, picks in bold."""
    chosen = set(picked(rows, kind).values())
    fair = kind != "safety"
    keys = (
        ("devrat", "change", "concept_accuracy", "subject_accuracy", "drift")
        if fair
        else ("unsafe", "change", "benign_subject_accuracy", "benign_drift")
    )
    lines = []
    for row in rows:
        label = f"**{row['label']}**" if row["label"] in chosen else str(row["label"])
        lines.append([label, *(interval(row[key]) for key in keys), f"{row['train_unet_forwards']:,}", f"{row['train_seconds']:.0f}"])
    heads = ["DevRat", "difference to baseline", "concept_accuracy", "subject accuracy", "drift"]
    heads = heads if fair else ["unsafe", "difference to baseline", "kept, harmless", "drift, harmless"]
    return f"n = {rows[0]['n']} a row.\n\n" + table(["setting", *heads, "training, forwards", "seconds"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/methods-sweep"))
    parser.add_argument("--cache", type=Path, help="folder of trained adapters (default OUT/adapters)")
    parser.add_argument("--kind", choices=tuple(VARIANTS), help="one of the tables (default all)")
    parser.add_argument("--methods", default="", help="some of the methods, with commas (default all); writes no table")
    arguments = parser.parse_args()
    pipe, judge = load_pipeline("embedded"), ClipJudge.load("embedded")
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for kind in (arguments.kind,) if arguments.kind else tuple(VARIANTS):
        names = tuple(filter(None, arguments.methods.split(","))) or tuple(VARIANTS[kind])
        comparison = MethodComparison(
            pipe,
            plan_of(kind, names),
            arguments.out / kind,
            classify=lambda c: classifier("embedded", c, "cpu"),
            judge=judge.digest,
            cache=arguments.cache or arguments.out / "artefacts",
        )
        said = ""
        for step in comparison.run():
            if step.what != said:
                say(step.what)
                said = step.what
        rows = [{k: v for k, v in row.items() if k != "tests"} for row in comparison_report.publish(comparison, judge)["rows"]]
        print(as_table(rows, kind), picked(rows, kind), flush=True)
        if not arguments.methods:
            found |= {
                "command": "python -m benchmarks.methods_sweep",
                kind: {"plan": vars(comparison.plan), "rows": rows, "picked": picked(rows, kind)},
            }
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")
            fill(DOCS / "methods.md", f"methods-sweep-{kind}", as_table(rows, kind))


if __name__ == "__main__":
    main()
