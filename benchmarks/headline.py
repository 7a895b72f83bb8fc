"""Measures the default preset: gender, tone and safety, by both judges; the first tables of README.md and docs/results.md.

    python -m benchmarks.headline --out runs/headline     (about 20 minutes on 2 CPU cores; a killed run goes on where it was)
    python -m benchmarks.headline --tables                (the tables anew from the kept rows)

Modules are those that the package ships, which `recipes.embedded_model.modules` trains with the default preset. Fairness: the 24 held-out
occupations, 12 images a prompt; gender also on the 49 occupations of the second suite, 6 images a prompt. Safety: violence and sexual together on the
30 unsafe prompts, and on the 24 occupations, 6 images a prompt. Policy `exact`, seed 0: rows of a table have the same noise. Results are kept in
docs/results/headline.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.provenance import DOCS, ROOT, provenance, say
from benchmarks.settings import HELD_OUT
from benchmarks.tables import fill, interval, table
from respodiff.data.prompt_sets import suite
from respodiff.data.records import Prompt
from respodiff.data.run_folder import write_atomic
from respodiff.evaluation.evaluate import evaluate
from respodiff.evaluation.judges import EMBEDDED, ClipJudge
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate
from respodiff.methods.registry import load_all
from respodiff.pipelines.loading import load_pipeline, weights_digest

RESULTS = DOCS / "results" / "headline.json"
FAIRNESS: dict[str, tuple[str, str, tuple[float, ...], int]] = {
    "gender": ("gender", "occupations", (0.75, 1.0, 1.5), 12),
    "tone": ("tone", "occupations", (1.0, 1.5), 12),
    "gender, 49 other occupations": ("gender", "occupations-unseen", (1.0,), 6),
}
"""Table -> attribute, suite, scales and images a prompt; of the first suite the held-out occupations."""
SAFETY, SAFETY_SCALES, SAFETY_IMAGES = ("violence", "sexual"), (1.0, 1.5), 6


def prompts_of(name: str) -> list[Prompt]:
    """The prompts of a suite that no setting was chosen on."""
    return [p for p in suite(name) if name != "occupations" or p.group in HELD_OUT]


class Bench:
    """Generates and judges one row at a time; what is done is kept."""

    def __init__(self, out: Path) -> None:
        self.out, self.pipe, self.judges = out, load_pipeline("embedded"), [ClipJudge.load(name) for name in EMBEDDED]

    def row(
        self, name: str, prompts: Sequence[Prompt], attribute: str, config: GenerateConfig, modules: Any = (), safety: Any = ()
    ) -> dict[str, Any]:
        """The figures of a row by each judge."""
        folder, found = self.out / name.replace(" ", "-").replace(",", ""), {}
        say(f"{name}: {sum(1 for _ in generate(self.pipe, prompts, modules, config, safety=safety, out=folder))} new")
        for judge in self.judges:
            result = evaluate(folder, judge, [attribute] if attribute else []).to_json()
            row = {k: result[k] for k in ("n", "subject_accuracy", "alignment", "unsafe")}
            if attribute:
                row |= {"devrat": result["devrat"][attribute], "concept_accuracy": (result["concept_accuracy"] or {}).get(attribute)}
            found[judge.name] = row
        return found


def measured(out: Path, images: int = 0) -> dict[str, Any]:
    """Generates and judges what is missing; ``images`` a prompt, 0: as the tables have them."""
    bench, fair, safe = Bench(out), dict[str, Any](), dict[str, Any]()
    for label, (attribute, name, scales, n) in FAIRNESS.items():
        modules, prompts = load_all(attribute), prompts_of(name)
        fair[label] = {"unsteered": bench.row(f"{label} unsteered", prompts, attribute, GenerateConfig(images=images or n, policy="exact"))}
        for scale in scales:
            config = GenerateConfig(images=images or n, policy="exact", scale=scale)
            fair[label][f"scale {scale:g}"] = bench.row(f"{label} {scale:g}", prompts, attribute, config, modules)
    removed = [module for name in SAFETY for module in load_all(name)]
    for scale in (0.0, *SAFETY_SCALES):
        config = GenerateConfig(images=images or SAFETY_IMAGES, safety_scale=scale or 1.0)
        label, used = f"scale {scale:g}" if scale else "unsteered", removed if scale else []
        safe[label] = {
            "unsafe": bench.row(f"unsafe {label}", suite("unsafe"), "", config, safety=used),
            "people": bench.row(f"people {label}", prompts_of("occupations"), "", config, safety=used),
        }
    digests = {m.name: m.digest for name in ("gender", "tone", *SAFETY) for m in load_all(name)}
    about: dict[str, Any] = {
        "model": weights_digest(bench.pipe.unet),
        "judges": {j.name: j.digest for j in bench.judges},
        "modules": digests,
    }
    return about | {"seed": GenerateConfig.seed, "fairness": fair, "safety": safe}


def fairness_table(rows: Mapping[str, Any]) -> str:
    heads = ["", "judge", "n", "DevRat", "random", "concept accuracy", "subject accuracy", "alignment"]
    lines = [
        [label, f"`{judge}`", str(r["n"]), interval(r["devrat"]), f"{r['devrat']['random']:.3f}"]
        + [interval(r[key]) for key in ("concept_accuracy", "subject_accuracy", "alignment")]
        for label, by_judge in rows.items()
        for judge, r in by_judge.items()
    ]
    return table(heads, lines)


def safety_table(rows: Mapping[str, Any]) -> str:
    heads = ["", "judge", "n", "unsafe, 30 unsafe prompts", "n", "subject accuracy, 24 occupations"]
    lines = [
        [
            label,
            f"`{judge}`",
            *(
                x
                for r, key in ((row["unsafe"], "unsafe"), (row["people"], "subject_accuracy"))
                for x in (str(r[judge]["n"]), interval(r[judge][key]))
            ),
        ]
        for label, row in rows.items()
        for judge in row["unsafe"]
    ]
    return table(heads, lines)


def as_tables(result: Mapping[str, Any]) -> str:
    """What was measured, and every table."""
    made = (
        f"`{result['command']}` at commit {result['commit']}: seed {result['seed']}, model {result['model']}, torch {result['torch']}; brackets "
        "hold 95 % intervals over prompts. *random*: DevRat of a perfect generator that samples concepts at random.\n"
    )
    parts = [f"### {label[0].upper() + label[1:]}\n\n{fairness_table(rows)}" for label, rows in result["fairness"].items()]
    return "\n".join([made, *parts, f"### Safety: violence and sexual together\n\n{safety_table(result['safety'])}"])


def as_small_table(result: Mapping[str, Any]) -> str:
    """The README's table: what is needed to judge the default at a glance."""
    rows = result["fairness"]["gender"]
    keys, shown = ("devrat", "subject_accuracy", "alignment"), ("unsteered", "scale 1", "scale 1.5")
    lines = [[label, f"`{judge}`", *(interval(r[key]) for key in keys)] for label in shown for judge, r in rows[label].items()]
    n = next(iter(rows["unsteered"].values()))["n"]
    made = (
        f"24 held-out occupations, {n // 24} images each (n = {n} a row), gender, the default preset, the same noise in every row, two judges "
        f"(`{result['command']}`):\n\n"
    )
    return made + table(["", "judge", "DevRat", "subject accuracy", "alignment"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/headline"), help="folder of runs")
    parser.add_argument("--tables", action="store_true", help="write the tables, run nothing")
    arguments = parser.parse_args()
    if not arguments.tables:
        result = provenance("python -m benchmarks.headline") | measured(arguments.out)
        write_atomic(RESULTS, json.dumps(result, indent=1) + "\n")
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    print(as_tables(found))
    fill(DOCS / "results.md", "headline", as_tables(found))
    fill(ROOT / "README.md", "headline", as_small_table(found))


if __name__ == "__main__":
    main()
