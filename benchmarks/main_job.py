"""Measures the preset ``neutral``, with random assignment, and safety: section "Preset neutral" of docs/results.md.

    python -m benchmarks.main_job --out runs/main_job          (about 120 minutes of one core; a killed run continues)
    python -m benchmarks.main_job --tables                     (intervals of DevRat from the kept counts, and the tables)

Trains the modules, generates every suite with and without them from the same noise, judges the images, and writes
docs/results/main_job.json and the tables of docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import respodiff
from benchmarks.provenance import DOCS, provenance, say
from benchmarks.tables import fill, main_job_tables
from respodiff.data.prompt_sets import suite
from respodiff.data.records import Prompt
from respodiff.evaluation.evaluate import evaluate
from respodiff.evaluation.judges import UNKNOWN, ClipJudge
from respodiff.evaluation.registry import Settings, devrat_of
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate
from respodiff.pipelines.loading import load_pipeline
from respodiff.steering.module import ConceptModule

IMAGES = 12  # a prompt; divisible by 2 and by 3, so that exact counts are even
CURVE = (1.0, 0.5, 0.75, 1.5)
TONE_CURVE = (1.0, 0.5, 1.5)
SAFETY_CURVE = (1.0, 0.5, 1.5)
TRAINED: dict[str, list[str]] = {
    **{name: ["--concept", name, "--preset", "neutral"] for name in ("woman", "man", "light", "medium", "dark", "violence", "sexual")},
    **{
        f"{name}-sam": ["--concept", name, "--preset", "neutral", "--set", "sam_lr=0.02", "--set", "sam_weight=0.5"]
        for name in ("woman", "man")
    },
    "woman-again": ["--concept", "woman", "--preset", "neutral"],
    "woman-paper-50": ["--concept", "woman", "--preset", "paper", "--iterations", "50"],
}


def train_all(out: Path) -> dict[str, dict[str, Any]]:
    """Train what is missing, each in a process of its own, so that its peak memory is its own."""
    found = {}
    for name, flags in TRAINED.items():
        module, log = out / "modules" / f"{name}.safetensors", out / "modules" / f"{name}.json"
        if not log.is_file():
            command = [sys.executable, "-m", "respodiff", "train", *flags, "--out", str(module), "--json"]
            log.parent.mkdir(parents=True, exist_ok=True)
            line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
            result = {**json.loads(line), "module": module.name}
            result["command"] = " ".join(["respodiff train", *flags, "--out", module.name])
            log.write_text(json.dumps(result))
        found[name] = json.loads(log.read_text())
        say(f"{name}: {found[name]['seconds']} s, {found[name]['unet_forwards']} forwards, {found[name]['digest']}")
    return found


class Bench:
    """Generates and judges one setting at a time; what is done is kept."""

    def __init__(self, out: Path) -> None:
        self.out, self.pipe, self.judge = out, load_pipeline("embedded"), ClipJudge.load("embedded")

    def run(
        self,
        name: str,
        prompts: Sequence[Prompt],
        modules: Sequence[ConceptModule] = (),
        attributes: Sequence[str] = ("gender",),
        **config: Any,
    ) -> dict[str, Any]:
        """Evaluation of one run folder, which is generated first if it is not complete."""
        folder, began, made = self.out / name, time.perf_counter(), 0
        settings = GenerateConfig(**{"images": IMAGES, **config})
        for _ in generate(self.pipe, prompts, modules, settings, out=folder):
            made += 1
        seconds = time.perf_counter() - began
        result = evaluate(folder, self.judge, attributes).to_json()
        result |= {
            "run": name,
            "images": settings.images,
            "prompts": len(prompts),
            "scale": settings.scale,
            "safety_scale": settings.safety_scale,
        }
        say(
            f"{name}: {made} images in {seconds:.0f} s, DevRat {brief(result['devrat'])}, subject accuracy {brief(result['subject_accuracy'])}, unsafe {brief(result['unsafe'])}"
        )
        return result


def brief(value: Any) -> str:
    return json.dumps(value, default=str)[:160]


def fairness(bench: Bench, modules: dict[str, ConceptModule]) -> dict[str, Any]:
    """Gender and tone on the 36 occupations, curves over scales, policies, SAM, and occupations never used."""
    people, unseen = suite("occupations"), suite("occupations-unseen")
    gender, tones = [modules["woman"], modules["man"]], [modules[t] for t in ("light", "medium", "dark")]
    both = ("gender", "tone")
    found: dict[str, Any] = {"plain": bench.run("plain", people, attributes=both)}
    found["exact"] = {str(s): bench.run(f"gender-exact-{s}", people, gender, scale=s) for s in CURVE}
    found["random"] = bench.run("gender-random", people, gender, policy="random")
    found["tone"] = {str(s): bench.run(f"tone-exact-{s}", people, tones, ["tone"], scale=s) for s in TONE_CURVE}
    found["sam"] = bench.run("gender-sam", people, [modules["woman-sam"], modules["man-sam"]])
    found["unseen-plain"] = bench.run("unseen-plain", unseen, images=6)
    found["unseen-exact"] = bench.run("unseen-exact", unseen, gender, images=6)
    return found


def safety(bench: Bench, modules: dict[str, ConceptModule]) -> dict[str, Any]:
    """Unsafe prompts, neutral scenes and ordinary people, plain and with both safety modules at every scale."""
    suites = {"unsafe": (suite("unsafe"), 6), "scenes": (suite("scenes"), 20), "people": (suite("occupations"), 4)}
    both = [modules["violence"], modules["sexual"]]
    found: dict[str, Any] = {}
    for label, used, scale in (("plain", [], 1.0), *((str(s), both, s) for s in SAFETY_CURVE)):
        found[label] = {
            name: bench.run(f"safety-{label}-{name}", prompts, used, images=n, safety_scale=scale) for name, (prompts, n) in suites.items()
        }
    return found


def identities(bench: Bench, modules: dict[str, ConceptModule], trained: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What must be equal: a repeated training, a pipeline after detaching, an image in another batch size."""
    latents = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(0))

    def draw() -> torch.Tensor:
        found = bench.pipe(["a doctor", "a nurse"], latents=latents, num_inference_steps=20, guidance_scale=3.0, output_type="pt").images
        return torch.as_tensor(found)

    before = draw()
    with respodiff.steer(bench.pipe, [modules["woman"], modules["man"]]):
        steered = draw()
    after = draw()
    images = {}
    for batch in (1, 4):
        drawn = generate(bench.pipe, ["a doctor", "a nurse"], [modules["woman"], modules["man"]], GenerateConfig(images=2, batch=batch))
        images[batch] = {record.id: torch.tensor(list(image.tobytes()), dtype=torch.int16) for record, image in drawn}
    differences = [int((images[1][i] - images[4][i]).abs().max()) for i in images[1]]
    return {
        "trained_twice_bit_identical": trained["woman"]["modules"][0]["digest"] == trained["woman-again"]["modules"][0]["digest"],
        "detached_bit_identical": bool(torch.equal(before, after)),
        "steered_mean_abs_change": (steered - before).abs().mean().item(),
        "batch_1_against_4_largest_difference_of_255": max(differences),
    }


RESULTS = DOCS / "results" / "main_job.json"


def intervals_anew(found: Any) -> None:
    """DevRat with interval and random level from the counts that every evaluation keeps, in place."""
    if isinstance(found, dict) and "counts" in found and "devrat" in found:
        for name, groups in found["counts"].items():
            concepts = tuple(c for c in next(iter(groups.values())) if c != UNKNOWN)
            devrat = devrat_of([[row[c] for c in concepts] for row in groups.values()], None, Settings())
            found["devrat"][name] = devrat and asdict(devrat)
    elif isinstance(found, dict):
        for entry in found.values():
            intervals_anew(entry)


def publish(results: dict[str, Any]) -> None:
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    fill(DOCS / "results.md", "main-job", main_job_tables(results))
    say("written: docs/results/main_job.json, docs/results.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/main_job"))
    parser.add_argument("--tables", action="store_true")
    arguments = parser.parse_args()
    if arguments.tables:
        kept = json.loads(RESULTS.read_text())
        intervals_anew(kept)
        publish(kept)
        return
    trained = train_all(arguments.out)
    modules = {name: ConceptModule.load(arguments.out / "modules" / f"{name}.safetensors") for name in TRAINED}
    for name in ("woman", "man"):
        if not torch.equal(modules[name].ram, modules[f"{name}-sam"].ram):
            raise RuntimeError(f"{name} and {name}-sam differ in RAM: the table would not compare what it says")
    bench = Bench(arguments.out)
    results = {
        "provenance": {
            **provenance("python -m benchmarks.main_job"),
            "images_per_prompt": IMAGES,
            "run_seed": 0,
            "judge": {"name": bench.judge.name, "digest": bench.judge.digest},
        },
        "training": trained,
        "identities": identities(bench, modules, trained),
        "fairness": fairness(bench, modules),
        "safety": safety(bench, modules),
    }
    publish(results)


if __name__ == "__main__":
    main()
