"""Gender and tone at once, measured on all six cells: one module of each (composed) against one module a cell (joint).

    python -m benchmarks.intersection --out runs/intersection       (about 25 minutes on 2 CPU cores; a killed run goes on where it was)
    python -m benchmarks.intersection --tables                      (the table anew from what was kept)

Trains woman, man, light, medium, dark and the six cells with the default preset (``--modules runs/beyond/modules`` takes what is there
of the five), draws the 36 occupations in even cells both ways on the same noise and with the same cell asked of an image (by chance, not by
what its noise favours), judges them, and writes docs/results/intersection.json and the table of docs/audit.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import respodiff
from benchmarks.main_job import DOCS, Bench, say
from benchmarks.tables import fill, interval, table
from respodiff.concepts.concept import attribute, concept
from respodiff.data.prompt_sets import suite
from respodiff.data.run_folder import write_atomic
from respodiff.evaluation.comparison import pairs_of
from respodiff.evaluation.metrics.paired import holm, mcnemar
from respodiff.evaluation.scored_run import load_scored_run
from respodiff.steering.module import ConceptModule, load
from respodiff.training.config import TrainConfig
from respodiff.training.respodiff import train

RESULTS = DOCS / "results" / "intersection.json"
PARTS = ("gender", "tone")
SCALES = (1.0,)
IMAGES = 6  # a prompt: one of each of six cells
SETTINGS: dict[str, Any] = {}
"""What differs from the preset."""


def trained(pipe: Any, names: Sequence[str], out: Path, held: Path | None) -> tuple[list[ConceptModule], dict[str, Any]]:
    """Modules of concepts by name with what training them cost; made if they are neither in ``out`` nor, so trained, in ``held``."""
    modules, costs = [], {}
    for name in names:
        config = TrainConfig.preset("default", **SETTINGS).of(concept(name))
        path = out / f"{name.replace('*', '-')}.safetensors"
        cost, other = path.with_suffix(".json"), held / path.name if held else path
        if not cost.is_file() and other != path and other.is_file():
            if not other.with_suffix(".json").is_file():
                raise ValueError(f"{other} has no {path.stem}.json beside it, which says what training it cost; leave out --modules")
            own, usual = (json.loads(json.dumps(asdict(c))) for c in (config, TrainConfig()))
            if own != usual | dict(load(other).header.train):  # settings that came later are as usual
                raise ValueError(f"{other} was trained with other settings than the default preset; leave out --modules")
            found = json.loads(other.with_suffix(".json").read_text())
            out.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(other, path)
            write_atomic(cost, json.dumps({"seconds": found["seconds"], "forwards": found["forwards"]}))
        if not cost.is_file():
            *_, last = train(pipe, concept(name), config)
            last.module.save(path)
            write_atomic(cost, json.dumps({"seconds": last.seconds, "forwards": last.unet_forwards}))
        modules.append(load(path))
        costs[name] = {**json.loads(cost.read_text()), "norm": round(modules[-1].delta.norm().item(), 1)}
        say(f"{name}: {costs[name]}")
    return modules, costs


def seen_as_asked(run: Any) -> list[bool]:
    """Of every image, whether the judge sees both what was asked."""
    return [all(s.labels.get(a) == r.concepts.get(a) for a in PARTS) for r, s in zip(run.records, run.scores, strict=True)]


def differences(composed: Path, joint: Path) -> list[dict[str, Any]]:
    """Joint minus composed, image by image from the same noise and asked for the same cell."""
    before, after = load_scored_run(composed), load_scored_run(joint)
    rows = [(i, j) for i, j in pairs_of(before, after) if before.scores[i].problem is None and after.scores[j].problem is None]
    if any(before.records[i].concepts != after.records[j].concepts for i, j in rows):
        raise RuntimeError(f"{composed} and {joint} were asked for other cells on the same noise: the pairs are none")
    groups = [after.records[j].prompt_id for _, j in rows]
    kept = [[bool(s.subject_correct) for s in run.scores] for run in (before, after)]
    columns = {"both seen as asked": [seen_as_asked(before), seen_as_asked(after)], "subject accuracy": kept}
    out = []
    for what, (a, b) in columns.items():
        test = mcnemar([a[i] for i, _ in rows], [b[j] for _, j in rows], groups=groups)
        d = test.difference
        out.append({"what": what, "mean": d.mean, "low": d.low, "high": d.high, "n": d.n, "p": test.p})
    return out


def measured(bench: Bench, composed: Sequence[ConceptModule], joint: Sequence[ConceptModule]) -> dict[str, Any]:
    """Evaluations of all settings, and the differences of both ways at equal scale."""
    people, rows, tests = suite("occupations"), {}, {}
    rows["plain model"] = bench.run("plain", people, attributes=PARTS, images=IMAGES)
    for s in SCALES:
        for way, modules in (("composed", composed), ("joint", joint)):
            rows[f"{way}, scale {s:g}"] = bench.run(f"{way}-{s:g}", people, modules, PARTS, scale=s, images=IMAGES)
        tests[f"scale {s:g}"] = differences(bench.out / f"composed-{s:g}", bench.out / f"joint-{s:g}")
    every = [t for found in tests.values() for t in found]
    for test, p in zip(every, holm([t["p"] for t in every]), strict=True):
        test["p_holm"] = float(p)
    return {"rows": rows, "differences": tests}


def as_table(results: Mapping[str, Any]) -> str:
    lines = []
    for name, r in results["rows"].items():
        both = r["intersection"]
        worst = both["worst"]
        cells = [name, str(both["known"]), interval(both["distance"]), f"{' x '.join(worst['subgroup'])} {worst['deviation']:+.3f}"]
        cells += [interval(r["devrat"][a]) for a in PARTS] + [interval(both["concept_accuracy"]), interval(r["subject_accuracy"])]
        lines.append(cells)
    head = [
        "setting",
        "n",
        "worst subgroup's distance",
        "worst subgroup",
        "DevRat gender",
        "DevRat tone",
        "both seen as asked",
        "subject accuracy",
    ]
    tests = [
        [scale, t["what"], interval(t), str(t["n"]), f"{t['p_holm']:.3f}" if t["p_holm"] >= 0.001 else "< .001"]
        for scale, found in results["differences"].items()
        for t in found
    ]
    cost = {way: sum(results["training"][name]["forwards"] for name in names) for way, names in results["modules"].items()}
    plain = results["rows"]["plain model"]
    random_levels = ", ".join(f"{a} {plain['devrat'][a]['random']:.3f}" for a in PARTS)
    return (
        f"{plain['prompts']} occupations x {plain['images']}, default preset, even cells (exact counts by chance), the same noise; noise random levels of DevRat: {random_levels}. "
        f"Training took {cost['composed']:,} UNet forwards for five modules and {cost['joint']:,} for six cells.\n\n"
        + table(head, lines)
        + "\nJoint minus composed, same noise and same cell asked (McNemar, p adjusted after Holm):\n\n"
        + table(["at", "statistic", "difference", "pairs", "p (Holm)"], tests)
    )


def publish(results: dict[str, Any]) -> None:
    write_atomic(RESULTS, json.dumps(results, indent=1) + "\n")
    fill(DOCS / "audit.md", "intersection", as_table(results))
    say("written: docs/results/intersection.json, a table of docs/audit.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/intersection"))
    parser.add_argument("--modules", type=Path)
    parser.add_argument("--tables", action="store_true")
    arguments = parser.parse_args()
    if arguments.tables:
        publish(json.loads(RESULTS.read_text()))
        return
    bench = Bench(arguments.out)
    names = {"composed": [c for a in PARTS for c in attribute(a).names], "joint": list(attribute("*".join(PARTS)).names)}
    found = {way: trained(bench.pipe, chosen, arguments.out / "modules", arguments.modules) for way, chosen in names.items()}
    provenance = {
        "command": "python -m benchmarks.intersection",
        "library": respodiff.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu_cores": os.cpu_count(),
        "images_per_prompt": IMAGES,
        "run_seed": 0,
        "judge": {"name": bench.judge.name, "digest": bench.judge.digest},
    }
    training = found["composed"][1] | found["joint"][1]
    publish({"provenance": provenance, "modules": names, "training": training, **measured(bench, found["composed"][0], found["joint"][0])})


if __name__ == "__main__":
    main()
