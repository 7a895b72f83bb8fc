"""Compares RespoDiff with its baselines on the embedded model; fills the tables of docs/results.md.

    python -m benchmarks.comparison fairness --out runs/compare        (about an hour on 2 CPU cores; a killed run goes on where it was)
    python -m benchmarks.comparison safety --out runs/compare-safety   (the same)
    python -m benchmarks.comparison --tables                           (the tables anew from the kept rows)

Methods have the settings of benchmarks/settings.toml, ``respodiff-paper`` the files of benchmarks/data/paper; fairness is measured on the 24 held-out
occupations. Rows are kept in docs/results/compare.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.paper import FILES, file_of
from benchmarks.provenance import DOCS, provenance, say
from benchmarks.settings import EMBEDDED, HELD_OUT
from benchmarks.tables import fill
from respodiff.data.run_folder import write_atomic
from respodiff.evaluation.judges import ClipJudge, classifier
from respodiff.experiments import comparison_report
from respodiff.experiments.compare import PUBLISHED, MethodComparison, Plan
from respodiff.experiments.comparison_report import cell, markdown, unchanged
from respodiff.methods.registry import methods_for
from respodiff.pipelines.identity import weights_digest
from respodiff.pipelines.loading import load_pipeline
from respodiff.reports.tables import text

RESULTS = DOCS / "results" / "compare.json"


def plan_of(kind: str) -> Plan:
    """All methods of a kind at scales 0.5 and 1."""
    settings = EMBEDDED[kind]
    variants = tuple(name for name in settings if ":" in name)
    if kind == "safety":
        return Plan(suite="unsafe", methods=methods_for("safety") + variants, images=3, scales=(0.5, 1.0), settings=settings)
    return Plan(methods=methods_for("fairness") + variants, images=4, groups=HELD_OUT, scales=(0.5, 1.0), settings=settings)


def keep_paper(comparison: MethodComparison) -> None:
    """Puts the files of preset ``paper`` where the comparison has its adapters, with what they cost: to train them takes hours."""
    forwards = json.loads((FILES / "forwards.json").read_text(encoding="utf-8"))
    for concept in comparison.plan.concepts:
        target = comparison.path_of(PUBLISHED, concept)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file_of(concept, weights_digest(comparison.pipe.unet)), target)
        write_atomic(target.with_suffix(".json"), json.dumps({"unet_forwards": forwards[concept.name]}) + "\n")


def compared(kind: str, out: Path) -> dict[str, Any]:
    """Trains, generates and measures what is missing; the content of ``compare.json``, with what made it."""
    judge = ClipJudge.load("embedded")
    comparison = MethodComparison(
        load_pipeline("embedded"), plan_of(kind), out, classify=lambda c: classifier("embedded", c, "cpu"), judge=judge.digest
    )
    keep_paper(comparison)
    said = ""
    for step in comparison.run():
        if step.what != said:
            said = step.what
            say(said)
    comparison_report.publish(comparison, judge)
    result: dict[str, Any] = json.loads((out / "compare.json").read_text(encoding="utf-8"))
    return result | provenance(f"python -m benchmarks.comparison {kind}") | {"model": weights_digest(comparison.pipe.unet)}


def about(run: Mapping[str, Any], kind: str) -> str:
    """Says what was generated, how far the unsteered model's halves differ, and which methods changed nothing."""
    rows, plan = run["rows"], run["plan"]
    half = cell(rows[1], "split_half" if kind == "fairness" else "benign_split_half")
    still = unchanged(rows)
    names = ", ".join(f"`{name}`" for name in still)
    return (
        f"`{run['command']}` at commit {run['commit']}: model {run['model']}, torch {run['torch']}, n = {rows[0]['n']} images a row, "
        f"{plan['images']} a prompt, {plan['steps']} steps, guidance {plan['guidance']:g}, seed {plan['seed']}, "
        f"judge {run['judge']['name']} {run['judge']['digest']}. "
        f"Two halves of the unsteered model's images are {text(half)} apart (Frechet). "
        + (f"No significant change: {names}." if still else "Every method changes its figure beyond the interval.")
        + "\n\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=tuple(EMBEDDED), nargs="?")
    parser.add_argument("--out", type=Path, help="folder of runs (default runs/compare-KIND)")
    parser.add_argument("--tables", action="store_true", help="write the tables, run nothing")
    arguments = parser.parse_args()
    if not (arguments.kind or arguments.tables):
        parser.error("give fairness or safety, or --tables")
    run = compared(arguments.kind, arguments.out or Path("runs") / f"compare-{arguments.kind}") if arguments.kind else {}
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    if run:
        found[arguments.kind] = run
    write_atomic(RESULTS, json.dumps(found, indent=1) + "\n")
    for kind in (arguments.kind,) if run else found:
        fill(DOCS / "results.md", f"compare-{kind}", about(found[kind], kind) + markdown(found[kind]["rows"], kind))


if __name__ == "__main__":
    main()
