"""Does a better neutral prompt, by scores alone, make a fairer module? Trains on candidates and measures what `respodiff neutral` foretold.

    python -m benchmarks.neutral --out runs/neutral           (about 25 minutes on 2 CPU cores; a killed run goes on where it was)
    python -m benchmarks.neutral --out runs/neutral --all     (every candidate, about 40 minutes)
    python -m benchmarks.neutral --tables                     (the table anew from what was kept)

Candidates are weighed for woman and man; the own prompt, the best and the worst (by residual and distance, mean of both concepts) are
trained on with the preset ``neutral``, and the 36 occupations drawn in exact counts by chance on the same noise. Writes
docs/results/neutral.json and the table of docs/audit.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import respodiff
from benchmarks.main_job import DOCS, Bench, say
from benchmarks.tables import fill, interval, table
from respodiff.concepts.concept import attribute
from respodiff.data.prompt_sets import suite
from respodiff.data.run_folder import write_atomic
from respodiff.experiments.neutral import CANDIDATES, ROLLOUTS, STEPS, weigh
from respodiff.experiments.neutral_choice import choice
from respodiff.steering.module import ConceptModule, load
from respodiff.training.config import TrainConfig
from respodiff.training.respodiff import train

RESULTS = DOCS / "results" / "neutral.json"
IMAGES = 4
SETTINGS: dict[str, Any] = {}
"""What differs from the preset in training."""
WEIGHING: dict[str, Any] = {"rollouts": ROLLOUTS, "steps": STEPS}


def foretold(pipe: Any, out: Path) -> dict[str, Any]:
    """Concept -> what `respodiff.experiments.neutral_choice.choice` says, kept once known."""
    found = {}
    for concept in attribute("gender").concepts:
        path = out / f"weighed-{concept.name}.json"
        if not path.is_file():
            config = TrainConfig.preset("neutral", **WEIGHING)
            result = choice(list(weigh(pipe, concept, CANDIDATES, config=config)), concept)
            out.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps(result))
        found[concept.name] = json.loads(path.read_text())
        say(f"weighed {concept.name}: recommended {found[concept.name]['recommended']!r}")
    return found


def both_of(told: Mapping[str, Any], prompt: str) -> float:
    """Mean of residual and distance of a candidate, over the concepts."""
    values: list[float] = [row["both"]["mean"] for result in told.values() for row in result["candidates"] if row["neutral"] == prompt]
    return sum(values) / len(values)


def modules_on(pipe: Any, prompt: str, out: Path) -> list[ConceptModule]:
    """Modules of woman and man trained with this neutral prompt, made if they are not there."""
    modules = []
    for concept in attribute("gender").concepts:
        path = out / "modules" / f"{prompt.replace(' ', '-')}-{concept.name}.safetensors"
        if not path.is_file():
            *_, last = train(pipe, replace(concept, neutral=prompt), TrainConfig.preset("neutral", **SETTINGS))
            last.module.save(path)
            say(f"trained {concept.name} on {prompt!r}: {last.seconds:.0f} s")
        modules.append(load(path))
    return modules


def cosine(one: Sequence[ConceptModule], other: Sequence[ConceptModule]) -> float:
    """Mean cosine of the modules of two prompts, concept by concept."""
    pairs = zip(one, other, strict=True)
    return sum(torch.nn.functional.cosine_similarity(a.delta.flatten(), b.delta.flatten(), dim=0).item() for a, b in pairs) / len(one)


def measured(bench: Bench, told: Mapping[str, Any], prompts: Sequence[str]) -> dict[str, Any]:
    people, own = suite("occupations"), CANDIDATES[0]
    rows: dict[str, Any] = {"plain model": bench.run("plain", people, images=IMAGES)}
    first = modules_on(bench.pipe, own, bench.out)
    for prompt in prompts:
        modules = modules_on(bench.pipe, prompt, bench.out)
        result = bench.run(prompt.replace(" ", "-"), people, modules, images=IMAGES)
        expected = [next(r for r in t["candidates"] if r["neutral"] == prompt) for t in told.values()]
        result |= {"both": both_of(told, prompt), "cosine_foretold": sum(r["cosine_to_own"]["mean"] for r in expected) / len(expected)}
        rows[prompt] = result | {"cosine": cosine(modules, first)}
    return rows


def as_table(results: Mapping[str, Any]) -> str:
    lines = []
    for name, r in results["rows"].items():
        foretold_ = [f"{r['both']:.3f}", f"{r['cosine_foretold']:.2f}", f"{r['cosine']:.2f}"] if "both" in r else ["-"] * 3
        concept_accuracy = (r["concept_accuracy"] or {}).get("gender")
        lines.append([name, *foretold_, interval(r["devrat"]["gender"]), interval(concept_accuracy), interval(r["subject_accuracy"])])
    plain = results["rows"]["plain model"]
    head = [
        "neutral prompt",
        "residual and distance, mean",
        "cosine foretold",
        "cosine of modules",
        "DevRat gender",
        "concept_accuracy",
        "subject accuracy",
    ]
    random_level = plain["devrat"]["gender"]["random"]
    said = f"n = {plain['n']} a row, preset `neutral`, exact counts by chance, scale 1; DevRat of random sampling {random_level:.3f}."
    return f"{said}\n\n{table(head, lines)}"


def publish(results: dict[str, Any]) -> None:
    write_atomic(RESULTS, json.dumps(results, indent=1) + "\n")
    fill(DOCS / "audit.md", "neutral", as_table(results))
    say("written: docs/results/neutral.json, a table of docs/audit.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/neutral"))
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--tables", action="store_true")
    arguments = parser.parse_args()
    if arguments.tables:
        publish(json.loads(RESULTS.read_text()))
        return
    bench = Bench(arguments.out)
    told = foretold(bench.pipe, arguments.out)
    ranked = sorted(CANDIDATES, key=lambda prompt: both_of(told, prompt))
    prompts = ranked if arguments.all else list(dict.fromkeys([CANDIDATES[0], ranked[0], ranked[-1]]))
    provenance = {
        "command": "python -m benchmarks.neutral" + (" --all" if arguments.all else ""),
        "library": respodiff.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu_cores": os.cpu_count(),
        "images_per_prompt": IMAGES,
        "run_seed": 0,
        "judge": {"name": bench.judge.name, "digest": bench.judge.digest},
    }
    publish({"provenance": provenance, "foretold": told, "rows": measured(bench, told, prompts)})


if __name__ == "__main__":
    main()
