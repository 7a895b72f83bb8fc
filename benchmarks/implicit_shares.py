"""What "a person" is made of, from scores alone: the shares that `respodiff.training.objectives.mixture` finds, beside the planted ones.

    python -m benchmarks.implicit_shares          (under a minute on 2 CPU cores)

No image is decoded and no judge is asked. Intervals: bootstrap over rollouts.
"""

from __future__ import annotations

import random

import torch

from respodiff.concepts.concept import attribute
from respodiff.data.prompt_sets import load_world
from respodiff.pipelines.denoiser import Denoiser, repeat
from respodiff.pipelines.loading import load_pipeline
from respodiff.training.config import TrainConfig
from respodiff.training.objectives import mixture
from respodiff.training.rollouts import Rollouts

ROLLOUTS, STEPS, DRAWS = 24, 8, 200


def main() -> None:
    denoiser, neutral = Denoiser(load_pipeline("embedded")), load_world()["neutral"]
    planted = {"gender": [1 - neutral["p_man"], neutral["p_man"]], "tone": neutral["tones"]}
    settings = TrainConfig(rollouts=ROLLOUTS, rollout_batch=ROLLOUTS, steps=STEPS, rollout_prompts="neutral", objective="shift")
    for name, proportions in planted.items():
        chosen = attribute(name)
        rollouts = Rollouts(denoiser, chosen.concepts[0], settings)
        pool = rollouts.pool(0, torch.zeros(1, 256, 4, 4)).columns
        scores = []
        with torch.no_grad():
            for concept in chosen.concepts:
                condition = repeat(Rollouts(denoiser, concept, settings).conditions["target"][0], ROLLOUTS)
                parts = zip(pool["z"].split(ROLLOUTS), pool["t"].split(ROLLOUTS), strict=True)
                scores.append(torch.stack([denoiser(z, t, condition) for z, t in parts]))  # (STEPS, ROLLOUTS, ...)
        plain = pool["neutral"].unflatten(0, (STEPS, ROLLOUTS))
        found = mixture(plain, scores).tolist()
        rng, draws = random.Random(0), []
        for _ in range(DRAWS):
            i = torch.tensor(rng.choices(range(ROLLOUTS), k=ROLLOUTS))
            draws.append(mixture(plain[:, i], [s[:, i] for s in scores]))
        low, high = torch.stack(draws).quantile(torch.tensor([0.025, 0.975]), dim=0).tolist()
        for concept, a, b, c, p in zip(chosen.concepts, found, low, high, proportions, strict=True):
            print(f"{concept.name:8s} found {a:.2f} [{b:.2f}, {c:.2f}], planted {p:.2f}  (n = {ROLLOUTS} rollouts x {STEPS} latents)")


if __name__ == "__main__":
    main()
