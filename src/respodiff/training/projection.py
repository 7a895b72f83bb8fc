"""Measures how far a module takes the noise prediction towards its target."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from respodiff.concepts.concept import Concept
from respodiff.pipelines.bottleneck import channels_first, eager, shifted
from respodiff.pipelines.denoiser import Denoiser
from respodiff.steering.module import ConceptModule
from respodiff.training.rollouts import mix_seed, predict, roll_batch

ROLLOUTS, STEPS, GUIDANCE = 2, 4, 3.0


@torch.no_grad()
def projection(pipe: Any, concept: Concept, module: ConceptModule, seed: int = 0) -> float:
    """<e[r + s] - e, d> / |d|^2 over the latents of two short unsteered rollouts of the neutral prompt.

    e is the noise prediction for the neutral prompt, e[r + s] the same with the module, and d the direction of the concept: e(target) - e,
    or e - e(negative) for a safety concept. 0: no effect along d; 1: as far as the target. It takes 40 UNet forwards.
    """
    model = Denoiser(pipe, *module.header.resolution, GUIDANCE)
    r, s = (form.to(model.device) for form in module.forms())
    neutral, other, empty = model.encode([concept.neutral, concept.negative if concept.kind == "safety" else concept.target, ""])
    with eager(model.model):
        z, t = roll_batch(model, ROLLOUTS, mix_seed(seed, 5), neutral, STEPS, empty)
        e, e_other = (predict(model, z, t, y, len(z)) for y in (neutral, other))
        d = e - e_other if concept.kind == "safety" else e_other - e

        def added(h: Tensor) -> tuple[Tensor, slice]:
            x = channels_first(h).float()
            return module.weight * (r(x, t) + s(x, t)), slice(None)

        with shifted(model.model, added, model.site):
            change = predict(model, z, t, neutral, len(z)) - e
    return ((change * d).sum() / d.square().sum().clamp(min=1e-12)).item()
