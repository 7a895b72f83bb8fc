"""Measures samplers of the embedded model: seconds an image, distance to 50 steps, and what 24 held-out occupations look like with each.

    python -m benchmarks.samplers --out runs/samplers      (about 15 minutes on 2 CPU cores; what is done is kept)
    python -m benchmarks.samplers --tables                 (the tables anew from the kept result)

Every row has the same noise: seed 0, guidance 3. Distance is the mean over images of ``|z - z50| / |z50|`` of the final latents, z50 those of 50
steps of DPM++ 2M. *planted*: mean over the occupations of the distance between the planted share of men and the measured one, unsteered.
Steered images have the modules of gender that the package ships, policy `exact`. Results are kept in docs/results/samplers.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

from benchmarks.provenance import DOCS, provenance, say
from benchmarks.settings import HELD_OUT
from benchmarks.tables import fill, interval, table
from respodiff.data.prompt_sets import suite
from respodiff.data.run_folder import write_atomic
from respodiff.evaluation.evaluate import evaluate
from respodiff.evaluation.judges import EMBEDDED, ClipJudge
from respodiff.evaluation.metrics.estimate import as_json, mean_interval
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate
from respodiff.methods.registry import load_all
from respodiff.pipelines.identity import weights_digest
from respodiff.pipelines.loading import embedded_dir, load_pipeline

RESULTS = DOCS / "results" / "samplers.json"
IMAGES = 12
CLASSES = {"DDIM": DDIMScheduler, "DPM++ 2M": DPMSolverMultistepScheduler, "UniPC": UniPCMultistepScheduler}
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
TRUTH = ("DPM++ 2M", "trailing", 50)
MEASURED = [("DDIM", "leading", 20), ("DPM++ 2M", "trailing", 8)]
SCREENED = [
    *MEASURED,
    ("DDIM", "trailing", 20),
    ("DPM++ 2M", "leading", 8),
    *[("DPM++ 2M", "trailing", n) for n in (6, 10)],
    ("UniPC", "trailing", 8),
]
"""(class, spacing of timesteps, steps); the first is what others are held against."""


def label(sampler: tuple[str, str, int]) -> str:
    """How a table names a sampler."""
    return f"{sampler[0]}, {sampler[2]} steps, {sampler[1]}"


def use(pipe: Any, sampler: tuple[str, str, int]) -> None:
    """Gives a pipeline this sampler."""
    name, spacing, _ = sampler
    own = {"clip_sample": False, "set_alpha_to_one": False} if name == "DDIM" else {}
    pipe.scheduler = CLASSES[name](**SCHEDULE, timestep_spacing=spacing, **own)


def final_latents(pipe: Any, sampler: tuple[str, str, int], prompts: list[str]) -> torch.Tensor:
    """Final latents (B, C, H, W) of prompts from the noise of seed 0."""
    use(pipe, sampler)
    noise = torch.Generator().manual_seed(0)
    made: torch.Tensor = pipe(prompts, num_inference_steps=sampler[2], guidance_scale=3.0, generator=noise, output_type="latent").images
    return made


def distances(pipe: Any, prompts: list[str]) -> dict[str, dict[str, Any]]:
    """Distance to the truth of every sampler that is screened, with its interval over images."""
    truth = final_latents(pipe, TRUTH, prompts)
    found = {}
    for sampler in SCREENED:
        apart = (final_latents(pipe, sampler, prompts) - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)
        found[label(sampler)] = as_json(mean_interval(apart.tolist(), prompts))
        say(f"{label(sampler)}: {found[label(sampler)]['mean']:.3f}")
    return found


def seconds_an_image(pipe: Any, sampler: tuple[str, str, int], tries: int = 3, batch: int = 6) -> list[float]:
    """Seconds an image in batches of 6, so many times, after one that is not counted."""
    use(pipe, sampler)
    found = []
    for _ in range(tries + 1):
        began = time.perf_counter()
        pipe(["a doctor"] * batch, num_inference_steps=sampler[2], guidance_scale=3.0)
        found.append((time.perf_counter() - began) / batch)
    return found[1:]


def measured(out: Path, images: int = IMAGES) -> dict[str, Any]:
    """Screens, times, generates and judges what is missing."""
    pipe, judges, modules = load_pipeline("embedded"), [ClipJudge.load(name) for name in EMBEDDED], load_all("gender")
    prompts = [p for p in suite("occupations") if p.group in HELD_OUT]
    world = json.loads(embedded_dir("world.json").read_text(encoding="utf-8"))
    planted = {row["name"]: row["p_man"] for row in world["occupations"]}
    about: dict[str, Any] = {"model": weights_digest(pipe.unet), "judges": {j.name: j.digest for j in judges}, "images": images}
    about |= {"modules": {m.name: m.digest for m in modules}, "prompts": len(prompts), "threads": torch.get_num_threads()}
    about["distances"] = distances(pipe, [p.text for p in prompts])
    about["seconds"] = {label(sampler): [] for sampler in MEASURED}
    for _ in range(3):  # in turns, so that a slow minute of the machine falls on all
        for sampler in MEASURED:
            about["seconds"][label(sampler)] += seconds_an_image(pipe, sampler)
    rows = []
    for sampler in MEASURED:
        use(pipe, sampler)
        for side, used in (("unsteered", []), ("steered", modules)):
            folder = out / about["model"] / f"{label(sampler)} {side}".replace(",", "").replace(" ", "-")
            config = GenerateConfig(images=images, policy="exact", steps=sampler[2], guidance=3.0)
            say(f"{label(sampler)}, {side}: {sum(1 for _ in generate(pipe, prompts, used, config, out=folder))} new")
            for judge in judges:
                found = evaluate(folder, judge, "gender")
                kept = found.to_json()
                row = {"sampler": label(sampler), "side": side, "judge": judge.name, "n": found.n, "devrat": kept["devrat"]["gender"]}
                shares = found.proportions_by["gender"]
                apart = {g: abs(planted[g] - s["man"].mean) for g, s in shares.items() if s["man"] is not None}
                row["planted"] = as_json(mean_interval(np.array([*apart.values()]), [*apart])) if not used else None
                rows.append(row | {key: kept[key] for key in ("subject_accuracy", "alignment")})
    return about | {"rows": rows}


def as_table(result: Mapping[str, Any]) -> str:
    """Every sampler that was measured, then every one that was screened."""
    seconds = {name: np.array(times) for name, times in result["seconds"].items()}
    lines = [
        [
            *(row["sampler"], row["side"], f"`{row['judge']}`", str(row["n"])),
            *(interval(row[key]) for key in ("devrat", "planted", "subject_accuracy", "alignment")),
        ]
        for row in result["rows"]
    ]
    slowest = np.median(next(iter(seconds.values())))
    times = [
        [name, f"{np.median(s):.3f}", f"{s.min():.3f} to {s.max():.3f}", f"{slowest / np.median(s):.2f}"] for name, s in seconds.items()
    ]
    made = (
        f"`{result['command']}` at commit {result['commit']}: {result['prompts']} held-out occupations, {result['images']} images each, seed 0, "
        f"guidance 3, model {result['model']}, torch {result['torch']}; brackets hold 95 % intervals over prompts.\n\n"
    )
    tries = len(next(iter(seconds.values())))
    timed = f"\nSeconds an image in batches of 6, {result['threads']} threads, {tries} tries in turns:\n\n"
    screened = f"\nDistance of the final latents to 50 steps of DPM++ 2M, n = {result['prompts']}:\n\n"
    heads = ["sampler", "", "judge", "n", "DevRat", "planted", "subject accuracy", "alignment"]
    made += table(heads, lines) + timed + table(["sampler", "median", "range", "speed"], times)
    return made + screened + table(["sampler", "distance"], [[name, interval(e)] for name, e in result["distances"].items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/samplers"), help="folder of the runs")
    parser.add_argument("--images", type=int, default=IMAGES, help="images an occupation")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file to write; the page is filled from the default one alone")
    parser.add_argument("--tables", action="store_true", help="write the tables, run nothing")
    arguments = parser.parse_args()
    if not arguments.tables:
        result = provenance("python -m benchmarks.samplers") | measured(arguments.out, arguments.images)
        write_atomic(arguments.results, json.dumps(result, indent=1) + "\n")
    found = json.loads(arguments.results.read_text(encoding="utf-8"))
    print(as_table(found))
    if arguments.results == RESULTS:
        fill(DOCS / "results.md", "samplers", as_table(found))


if __name__ == "__main__":
    main()
