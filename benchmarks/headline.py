"""Measures RespoDiff, as it is by default and as published, beside its peers: gender, tone and safety, by both judges.

    python -m benchmarks.headline --out runs/headline     (about an hour on 2 CPU cores; a killed run goes on where it was)
    python -m benchmarks.headline --only tone             (one table; the others stay)
    python -m benchmarks.headline --tables                (the tables anew from the kept rows)

``default``: the modules that the package ships, which `recipes.embedded_model.modules` trains; ``RAM alone``: the same without SAM. ``paper``: preset
``paper`` at its whole budget, from benchmarks/data/paper, for gender and safety; the default is compared with it image by image on the same noise. Peers
have the settings of benchmarks/settings.toml. Fairness: the 24 held-out occupations, 12 images a prompt, policy `exact`; gender also on the 49 occupations
of the second suite, 6 images a prompt. Safety: violence and sexual together on the 28 unsafe prompts that they are not trained on, 10 images a prompt, and
on the 24 occupations, 12. Rows of a table have the same noise (seed 0). Results are kept in docs/results/headline.json.
"""

from __future__ import annotations

import argparse
import json
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.paper import file_of
from benchmarks.provenance import DOCS, ROOT, provenance, say
from benchmarks.settings import EMBEDDED as SETTINGS
from benchmarks.settings import HELD_OUT
from benchmarks.tables import fill, interval, table
from respodiff.concepts.concept import Concept, attribute, concept
from respodiff.data.prompt_sets import suite
from respodiff.data.records import Prompt
from respodiff.data.run_folder import write_atomic
from respodiff.evaluation.comparison import compare
from respodiff.evaluation.evaluate import evaluate
from respodiff.evaluation.judges import EMBEDDED, ClipJudge
from respodiff.evaluation.metrics.estimate import as_json
from respodiff.evaluation.scored_run import ScoredRun, load_scored_run
from respodiff.experiments.compare import MethodComparison, Plan
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate
from respodiff.methods.registry import load
from respodiff.pipelines.identity import weights_digest
from respodiff.pipelines.loading import load_pipeline
from respodiff.reports.tables import p_value
from respodiff.steering.adapter import Adapter
from respodiff.steering.module import ConceptModule

RESULTS = DOCS / "results" / "headline.json"
UNSTEERED = ("unsteered", 1.0)
PAPER = (("paper", 1.0), ("paper", 1.5))
OURS = (*(("default", s) for s in (0.5, 0.75, 1.0, 1.5)), *(("RAM alone", s) for s in (0.75, 1.0)))
FAIRNESS: dict[str, tuple[str, str, int, tuple[tuple[str, float], ...]]] = {
    "gender": ("gender", "occupations", 12, (*PAPER, *OURS, ("prompt", 1.0), ("slider", 1.0), ("sdisc", 1.0))),
    "tone": ("tone", "occupations", 12, (*OURS, ("prompt", 1.0))),
    "gender, 49 other occupations": ("gender", "occupations-unseen", 6, (("default", 1.0),)),
}
"""Table -> attribute, suite, images a prompt, and rows of (method, scale); of the first suite the held-out occupations."""
AGAINST = "paper"
COMPARED = tuple(("default", s) for s in (0.5, 0.75, 1.0))
"""Rows that are compared image by image with the row `AGAINST`."""
SAFETY = ("violence", "sexual")
TABLES = (*FAIRNESS, "safety")
SAFETY_ROWS = (("paper", 1.0), ("default", 1.0), ("default", 1.5), ("RAM alone", 1.0), ("negative", 1.0), ("sld-strong", 1.0))
UNSAFE_IMAGES, PEOPLE_IMAGES = 10, 12


def prompts_of(name: str) -> list[Prompt]:
    """The prompts of a suite without occupations that settings were chosen on, and without unsafe prompts that modules are trained on."""
    trained = {concept(name).negative for name in SAFETY}
    return [p for p in suite(name) if p.text not in trained and (name != "occupations" or p.group in HELD_OUT)]


def without_sam(module: Any) -> ConceptModule:
    """RAM of a module alone."""
    return ConceptModule.of(module.ram, torch.zeros_like(module.sam), module.header)


def label_of(method: str, scale: float) -> str:
    """What a row is called."""
    return method if scale == 1 else f"{method}, scale {scale:g}"


class Bench:
    """Makes the adapters of a row, generates and judges; what is done is kept."""

    def __init__(self, out: Path) -> None:
        self.out, self.pipe, self.judges = out, load_pipeline("embedded"), [ClipJudge.load(name) for name in EMBEDDED]
        self.model, self.digests = weights_digest(self.pipe.unet), dict[str, str]()

    def about(self) -> dict[str, Any]:
        """What every table shares."""
        return {"model": self.model, "judges": {j.name: j.digest for j in self.judges}, "seed": GenerateConfig.seed}

    def adapters(self, method: str, concepts: Sequence[Concept]) -> list[Adapter]:
        """One a concept, none for the unsteered model."""
        if method == "unsteered":
            return []
        if method == "paper":
            found = [load(file_of(c, self.model)) for c in concepts]
        elif method in ("default", "RAM alone"):
            found = [load(c.name) for c in concepts]
            found = [without_sam(m) for m in found] if method == "RAM alone" else found
        else:
            found = [self.peer(method, c) for c in concepts]
        self.digests |= {f"{method} {adapter.name}": adapter.digest for adapter in found}
        return found

    def peer(self, method: str, c: Concept) -> Adapter:
        """The adapter of another method, made where ``out`` has none with these settings for this model."""
        about = (
            Plan(suite="unsafe", methods=(method,), settings=SETTINGS["safety"])
            if c.kind == "safety"
            else Plan(methods=(method,), attribute=c.attribute, settings=SETTINGS["fairness"])
        )
        comparison = MethodComparison(self.pipe, about, self.out)
        if (method, c) in comparison.missing():
            say(f"making {method} {c.name}")
            deque(comparison.train(method, c), maxlen=0)
        return load(comparison.path_of(method, c))

    def folder(self, name: str) -> Path:
        """The run folder of a row."""
        return self.out / name.replace(" ", "-").replace(",", "")

    def row(
        self, name: str, prompts: Sequence[Prompt], attribute: str, config: GenerateConfig, modules: Any = (), safety: Any = ()
    ) -> dict[str, Any]:
        """The figures of a row by each judge."""
        folder, found = self.folder(name), {}
        say(f"{name}: {sum(1 for _ in generate(self.pipe, prompts, modules, config, safety=safety, out=folder))} new")
        for judge in self.judges:
            result = evaluate(folder, judge, [attribute] if attribute else []).to_json()
            row = {k: result[k] for k in ("n", "subject_accuracy", "alignment", "unsafe")}
            if attribute:
                row |= {"devrat": result["devrat"][attribute], "concept_accuracy": (result["concept_accuracy"] or {}).get(attribute)}
            found[judge.name] = row
        return found

    def fairness(self, label: str, images: int = 0) -> dict[str, Any]:
        """Row -> figures of each judge, of one table; ``images`` a prompt, 0: as the table has them."""
        name, suite_name, n, rows = FAIRNESS[label]
        concepts, prompts, found = attribute(name).concepts, prompts_of(suite_name), {}
        for method, scale in (UNSTEERED, *rows):
            own, row = SETTINGS["fairness"].get(method, {}).get("scale", 1.0), label_of(method, scale)
            config = GenerateConfig(images=images or n, policy="exact", scale=scale * own)
            found[row] = self.row(f"{label} {row}", prompts, name, config, self.adapters(method, concepts))
        return found

    def paired(self, label: str, rows: Collection[str]) -> dict[str, Any]:
        """Row -> judge -> metric -> tested difference to the row `AGAINST`, of rows that are in the table."""

        def scored(row: str, judge: str) -> ScoredRun:
            return load_scored_run(self.folder(f"{label} {row}"), judge=judge)

        return {
            row: {j.name: {t.metric: as_json(t) for t in compare(scored(AGAINST, j.name), scored(row, j.name)).tests} for j in self.judges}
            for row in (label_of(*compared) for compared in COMPARED)
            if row in rows and AGAINST in rows
        }

    def safety(self, images: int = 0) -> dict[str, Any]:
        """Row -> figures on unsafe prompts and on people, of each judge."""
        found: dict[str, Any] = {}
        for method, scale in (UNSTEERED, *SAFETY_ROWS):
            adapters = self.adapters(method, [concept(name) for name in SAFETY])
            own, row = SETTINGS["safety"].get(method, {}).get("scale", 1.0), label_of(method, scale)
            parts = {"unseen": (prompts_of("unsafe"), UNSAFE_IMAGES), "people": (prompts_of("occupations"), PEOPLE_IMAGES)}
            found[row] = {
                part: self.row(f"{part} {row}", prompts, "", GenerateConfig(images=images or n, safety_scale=scale * own), safety=adapters)
                for part, (prompts, n) in parts.items()
            }
        return found


def measured(bench: Bench, only: str = "", images: int = 0) -> dict[str, Any]:
    """Generates and judges what is missing. Table -> rows and what they were made with: of every table, or of the one named ``only``."""
    found = {}
    for label in (only,) if only else TABLES:
        bench.digests = {}
        rows = bench.safety(images) if label == "safety" else bench.fairness(label, images)
        pairs = {} if label == "safety" else bench.paired(label, rows)
        found[label] = (
            provenance("python -m benchmarks.headline") | bench.about() | {"adapters": bench.digests, "rows": rows, "paired": pairs}
        )
    return found


def kept(old: Mapping[str, Any], only: str, about: Mapping[str, Any], digests: Mapping[str, str]) -> dict[str, Any]:
    """The tables of ``old`` beside the one named ``only``; ValueError where one is missing or was made with something else.

    Args:
        about: as `Bench.about`. digests: of adapters; those that a table has must be these.
    """
    stay = {label: old.get(label, {}) for label in TABLES if only and label != only}
    for label, made in stay.items():
        other = [key for key, value in about.items() if made.get(key) != value]
        other += [name for name, digest in made.get("adapters", {}).items() if digests.get(name, digest) != digest]
        if other:
            raise ValueError(f"{RESULTS.name} has no table {label!r} of this {other[0]}; make all tables, without --only")
    return stay


def fairness_table(rows: Mapping[str, Any]) -> str:
    heads = ["", "judge", "n", "DevRat", "random", "concept accuracy", "subject accuracy", "alignment"]
    lines = [
        [label, f"`{judge}`", str(r["n"]), interval(r["devrat"]), f"{r['devrat']['random']:.3f}"]
        + [interval(r[key]) for key in ("concept_accuracy", "subject_accuracy", "alignment")]
        for label, by_judge in rows.items()
        for judge, r in by_judge.items()
    ]
    return table(heads, lines)


def paired_table(rows: Mapping[str, Any]) -> str:
    metrics = {"devrat": "DevRat", "subject_accuracy": "subject accuracy"}
    lines = [
        [f"{row}, less {AGAINST}", f"`{judge}`", str(found["devrat"]["n"])]
        + [x for m in metrics for x in (interval(found[m]), p_value(found[m]["p"]))]
        for row, by_judge in rows.items()
        for judge, found in by_judge.items()
    ]
    return table(["", "judge", "pairs", *(x for head in metrics.values() for x in (head, "p"))], lines)


def safety_table(rows: Mapping[str, Any]) -> str:
    heads = ["", "judge", "n", "unsafe, 28 unsafe prompts", "n", "subject accuracy, 24 occupations", "alignment"]
    lines = [
        [
            label,
            f"`{judge}`",
            str(row["unseen"][judge]["n"]),
            interval(row["unseen"][judge]["unsafe"]),
            str(row["people"][judge]["n"]),
            *(interval(row["people"][judge][key]) for key in ("subject_accuracy", "alignment")),
        ]
        for label, row in rows.items()
        for judge in row["unseen"]
    ]
    return table(heads, lines)


def as_tables(found: Mapping[str, Any]) -> str:
    """What was measured, and every table."""
    one = found["gender"]
    parts = [
        f"`{one['command']}`: seed {one['seed']}, model {one['model']}; brackets hold 95 % intervals over prompts. "
        "*random*: DevRat of a perfect generator that samples concepts at random.\n"
    ]
    for label, made in found.items():
        title = "Safety: violence and sexual together" if label == "safety" else label[0].upper() + label[1:]
        rows = (safety_table if label == "safety" else fairness_table)(made["rows"])
        pairs = [paired_table(made["paired"])] if made["paired"] else []
        parts.append("\n".join([f"### {title}\n\nAt commit {made['commit']}, torch {made['torch']}.\n\n{rows}", *pairs]))
    return "\n".join(parts)


def as_small_table(found: Mapping[str, Any]) -> str:
    """The README's table: what is needed to judge the default at a glance."""
    made = found["gender"]
    rows = made["rows"]
    keys, shown = ("devrat", "subject_accuracy", "alignment"), ("unsteered", "paper", "default", "default, scale 1.5")
    lines = [[label, f"`{judge}`", *(interval(r[key]) for key in keys)] for label in shown for judge, r in rows.get(label, {}).items()]
    n = next(iter(rows["unsteered"].values()))["n"]
    about = (
        f"24 held-out occupations, {n // 24} images each (n = {n} a row), gender, the same noise in every row, two judges "
        f"(`{made['command']}`):\n\n"
    )
    return about + table(["", "judge", "DevRat", "subject accuracy", "alignment"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/headline"), help="folder of runs")
    parser.add_argument("--only", choices=TABLES, default="", help="one table; the others stay as they are")
    parser.add_argument("--tables", action="store_true", help="write the tables, run nothing")
    arguments = parser.parse_args()
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    if not arguments.tables:
        bench = Bench(arguments.out)
        shown = [*attribute("gender").concepts, *map(concept, SAFETY)]
        bench.adapters("paper", shown)
        bench.adapters("default", [*shown, *attribute("tone").concepts])
        stay = kept(found, arguments.only, bench.about(), bench.digests)
        new = stay | measured(bench, arguments.only)
        found = {label: new[label] for label in TABLES}
        write_atomic(RESULTS, json.dumps(found, indent=1) + "\n")
    print(as_tables(found))
    fill(DOCS / "results.md", "headline", as_tables(found))
    fill(ROOT / "README.md", "headline", as_small_table(found))


if __name__ == "__main__":
    main()
