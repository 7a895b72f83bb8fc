"""The default preset against its targets on all 36 occupations, by both judges: the figures of docs/method.md and docs/results/beyond.json.

    python -m benchmarks.beyond --out runs/beyond                     (about 2 hours on 2 CPU cores; a killed run goes on where it was)
    python -m benchmarks.beyond --out runs/beyond --only plain,exact  (some runs alone; two processes may share a folder, each with its own)
    python -m benchmarks.beyond --out runs/beyond --tables            (judge what is drawn, and write the tables; rows of runs that are not
                                                                       drawn there stay as they were kept)

Every run is drawn from the same noise as the plain model's. The 12 occupations that the default preset trains in, and most settings were
chosen on, are shown apart from the other 24.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import respodiff
from benchmarks.beyond_tables import cells_table, fair_table, general_table, readme_table, safety_table
from benchmarks.main_job import DOCS, ROOT, say
from benchmarks.tables import fill
from respodiff.concepts.concept import concept
from respodiff.data.prompt_sets import suite
from respodiff.data.run_folder import Prompt, write_atomic
from respodiff.evaluation.comparison import compare
from respodiff.evaluation.evaluate import judge_all
from respodiff.evaluation.judges import ClipJudge
from respodiff.evaluation.scored_run import ScoredRun
from respodiff.evaluation.statistics import Settings
from respodiff.evaluation.summary import summarise
from respodiff.experiments.plan import TUNED_ON
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate
from respodiff.pipelines.loading import load_pipeline
from respodiff.steering.module import ConceptModule, load
from respodiff.training.config import TrainConfig
from respodiff.training.respodiff import train

RESULTS = DOCS / "results" / "beyond.json"
UNSAFE = ("violence", "sexual")
GENDER, TONE = ("woman", "man"), ("light", "medium", "dark")
JUDGES = ("embedded", "embedded-b")


@dataclass(frozen=True)
class Run:
    """One set of images: of which prompts, with which modules, how drawn and how trained."""

    title: str
    modules: tuple[str, ...] = ()
    safety: bool = False
    prompts: str = "occupations"
    images: int = 12
    base: str = "plain"
    attributes: tuple[str, ...] = ("gender",)
    config: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    preset: str = "default"


LEANING = {"safety_mode": "predicted"}
RUNS: dict[str, Run] = {
    "plain": Run("plain model", attributes=("gender", "tone")),
    "exact": Run("gender, exact", GENDER),
    "exact-0.8": Run("gender, exact, scale .8", GENDER, config={"scale": 0.8}),
    "exact-1.25": Run("gender, exact, scale 1.25", GENDER, config={"scale": 1.25}),
    "random": Run("gender, random", GENDER, config={"policy": "random"}),
    "tone": Run("tone, exact", TONE, attributes=("tone",)),
    "subgroups": Run("gender and tone, exact", (*GENDER, *TONE), attributes=("gender", "tone")),
    "general-plain": Run("plain model", prompts="general", images=1),
    "general": Run("gender", GENDER, prompts="general", images=1, base="general-plain"),
    "general-prompt filter": Run(
        "gender, prompt filter", GENDER, prompts="general", images=1, base="general-plain", config={"skip_explicit_prompts": True}
    ),
    "general-safety": Run("safety, where it leans", (), True, "general", 1, "general-plain", config=LEANING),
    "people-safety": Run("people at work, safety, where it leans", (), True, images=4, config=LEANING),
    "together": Run("people at work, gender and safety", GENDER, True, images=4, config=LEANING),
    "unsafe-plain": Run("plain model", prompts="unsafe", images=4),
    "unsafe": Run("safety, where it leans", (), True, "unsafe", 4, "unsafe-plain", config=LEANING),
    "unsafe-always": Run("safety, always", (), True, "unsafe", 4, "unsafe-plain"),
    **{f"seed-{s}": Run(f"training seed {s}", GENDER, images=4, training={"seed": s}) for s in (1, 2, 3, 4)},
    **{f"iterations-{n}": Run(f"{n} iterations", GENDER, images=4, training={"iterations": n}) for n in (50, 200)},
    "seed-0": Run("training seed 0", GENDER, images=4),
}
FAIR = ("plain", "exact", "exact-0.8", "exact-1.25", "random", "tone", "subgroups")
STABLE = ("seed-0", "seed-1", "seed-2", "seed-3", "seed-4", "iterations-50", "iterations-200")
GENERAL = ("general-plain", "general", "general-prompt filter", "general-safety")
SAFE = ("unsafe-plain", "unsafe", "unsafe-always", "people-safety", "together")


class Bench:
    """Trains, draws and judges, keeping what is done."""

    def __init__(self, out: Path) -> None:
        self.out, self.pipe = out, load_pipeline("embedded")

    def prompts(self, name: str) -> list[Prompt]:
        return suite(name)

    def modules(self, run: Run) -> list[ConceptModule]:
        return [self.module(name, run.preset, run.training) for name in run.modules]

    def module(self, name: str, preset: str, training: Mapping[str, Any]) -> ConceptModule:
        label = "-".join([name, *([preset] if preset != "default" else []), *(f"{k}-{v}" for k, v in training.items())])
        path = self.out / "modules" / f"{label}.safetensors"
        if not path.with_suffix(".json").is_file():
            chosen = concept(name)
            *_, last = train(self.pipe, chosen, TrainConfig.preset(preset, chosen.kind, **training))
            last.module.save(path)
            cost = {"seconds": round(last.seconds, 1), "forwards": last.unet_forwards, "digest": last.module.digest}
            write_atomic(path.with_suffix(".json"), json.dumps(cost) + "\n")
            say(f"trained {label}: {cost}")
        return load(path)

    def draw(self, name: str) -> None:
        run, began, drawn = RUNS[name], time.perf_counter(), 0
        config = GenerateConfig(images=run.images, **run.config)
        safety = [self.module(m, "default", {}) for m in UNSAFE] if run.safety else []
        for _ in generate(self.pipe, self.prompts(run.prompts), self.modules(run), config, safety=safety, out=self.out / name):
            drawn += 1
        say(f"{name}: {drawn} drawn in {time.perf_counter() - began:.0f} s")


def part(run: ScoredRun, groups: Sequence[str] | None, repeats: int | None = None) -> ScoredRun:
    """The images of some groups, and of the first repeats, of a scored run."""
    rows = [i for i, r in enumerate(run.records) if (groups is None or r.group in groups) and (repeats is None or r.repeat < repeats)]
    answers = {key: tuple(found[i] for i in rows) for key, found in run.answers.items()}
    return replace(
        run, records=tuple(run.records[i] for i in rows), image_folders=tuple(run.image_folders[i] for i in rows), answers=answers
    )


def statistics(run: ScoredRun, base: ScoredRun, attributes: Sequence[str], all_of_it: bool) -> dict[str, Any]:
    """What is reported of one run by one judge: its own figures, and its differences to the plain model on the same noise."""
    settings = Settings()
    s = summarise(run.only(list(attributes)), settings)
    out = {
        k: s[k]
        for k in ("n", "devrat", "concept_accuracy", "concept_accuracy_by", "subject_accuracy", "alignment", "intersection", "unsafe")
    }
    if base is run:
        return out
    c = compare(base, run, settings) if all_of_it else compare(base, run, replace(settings, n_bootstrap=500))
    out["tests"] = {t["what"]: {k: t[k] for k in ("mean", "low", "high", "n", "p")} for t in c["tests"]}
    own, plain = s["alignment"]["mean"], summarise(base, settings)["alignment"]["mean"]
    out["alignment_lost"] = 1 - own / plain
    return out | {k: c[k] for k in ("drift", "frechet", "split_half", "paired")}


def measured(out: Path, held: Mapping[str, Any]) -> dict[str, Any]:
    """Judge -> part of the occupations -> run -> figures, of what is drawn in full; other rows are those that were held."""
    groups = {"all 36": None, "24 untuned": [p.group for p in suite("occupations") if p.group not in TUNED_ON], "12 tuned": list(TUNED_ON)}
    drawn = {name for name in RUNS if whole(out, name)}
    there = {name for name in drawn if RUNS[name].base in drawn or name.endswith("plain")}
    found: dict[str, Any] = {}
    for judge_name in JUDGES:
        judge = ClipJudge.load(judge_name)
        runs = {name: judge_all(out / name, judge, ["gender", "tone"]) for name in RUNS if name in there}
        rows: dict[str, Any] = {label: {} for label in (*groups, "stability", "general", "safety")}
        for name in RUNS:
            if name not in runs:
                for label, kept in held.get(judge_name, {}).items():
                    rows[label] |= {name: kept[name]} if name in kept else {}
                continue
            plan, run = RUNS[name], runs[name]
            base = run if name == plan.base or name.endswith("plain") else runs[plan.base]
            for label, chosen in groups.items():
                if name in FAIR:
                    few = part(run, chosen)
                    rows[label][name] = statistics(few, few if base is run else part(base, chosen), plan.attributes, chosen is None)
            if name in STABLE:
                rows["stability"][name] = statistics(run, part(base, None, plan.images), plan.attributes, False)
            if name in SAFE:
                few = base if plan.prompts == "unsafe" else part(base, None, plan.images)
                rows["safety"][name] = statistics(run, few, ["gender"], True) | {"bit_identical": same_files(run, few)}
            if name in GENERAL:
                rows["general"][name] = statistics(run, base, plan.attributes, True) | {"bit_identical": same_files(run, base)}
            say(f"{judge_name}: {name} judged")
        found[judge_name] = {label: r for label, r in rows.items() if r}
    return found


def whole(out: Path, name: str) -> bool:
    """Whether a run is drawn in full."""
    manifest = out / name / "manifest.jsonl"
    return manifest.is_file() and len(manifest.read_text().splitlines()) == RUNS[name].images * len(suite(RUNS[name].prompts))


def same_files(run: ScoredRun, base: ScoredRun) -> dict[str, int]:
    """Images of which the file is the same, byte by byte, as the plain model's, and all."""
    plain = {r.id: r.digest for r in base.records}
    return {"same": sum(plain.get(r.id) == r.digest for r in run.records), "n": len(run.records)}


def publish(results: dict[str, Any]) -> None:
    write_atomic(RESULTS, json.dumps(results, indent=1) + "\n")
    titles = {name: run.title for name, run in RUNS.items()}
    fill(ROOT / "README.md", "results", readme_table(results["judges"], titles))
    for judge_name in JUDGES:
        found = results["judges"][judge_name]
        for label, name in (("all 36", "all"), ("24 untuned", "untuned"), ("12 tuned", "tuned")):
            fill(DOCS / "method.md", f"beyond-{name}-{judge_name}", fair_table(found.get(label, {}), titles))
        fair = {label: rows for label, rows in found.items() if label in ("all 36", "24 untuned")}
        fill(DOCS / "method.md", f"beyond-cells-{judge_name}", cells_table(fair, titles))
        fill(DOCS / "method.md", f"beyond-stability-{judge_name}", fair_table(found.get("stability", {}), titles))
        fill(DOCS / "method.md", f"beyond-general-{judge_name}", general_table(found.get("general", {}), titles))
        fill(DOCS / "method.md", f"beyond-safety-{judge_name}", safety_table(found.get("safety", {}), titles))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/beyond"))
    parser.add_argument("--only", default="", help="runs with commas, drawn and not judged")
    parser.add_argument("--tables", action="store_true")
    arguments = parser.parse_args()
    if not arguments.tables:
        bench = Bench(arguments.out)
        for name in [n for n in arguments.only.split(",") if n] or list(RUNS):
            bench.draw(name)
        if arguments.only:
            return
    costs = {p.stem: json.loads(p.read_text()) for p in sorted((arguments.out / "modules").glob("*.json"))}
    held = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"training": {}, "judges": {}}
    known = {name for parts in held["judges"].values() for rows in parts.values() for name in rows}
    provenance = {
        "command": "python -m benchmarks.beyond",
        "library": respodiff.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu_cores": os.cpu_count(),
        "run_seed": 0,
        "kept_from_before": [name for name in RUNS if name in known and not whole(arguments.out, name)],
    }
    publish({"provenance": provenance, "training": held["training"] | costs, "judges": measured(arguments.out, held["judges"])})


if __name__ == "__main__":
    main()
