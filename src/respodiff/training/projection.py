"""Measures how far a module takes the noise prediction towards its target."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from respodiff.concepts.concept import Concept
from respodiff.pipelines.bottleneck import channels_first, eager, shifted
from respodiff.steering.module import ConceptModule
from respodiff.training.config import TrainConfig
from respodiff.training.rollouts import mix_seed, predict, roll_batch
from respodiff.training.state import open_model

ROLLOUTS, STEPS = 2, 4


@torch.no_grad()
def projection(pipe: Any, concept: Concept, module: ConceptModule, seed: int = 0) -> float:
    """<e[r + s] - e, d> / |d|^2 over the latents of two short unsteered rollouts: 0 is no effect, 1 as far as the target.

    e is the prediction for the neutral prompt, e[r + s] the same with the module, d = e(target) - e (safety: e - e(negative)).
    """
    height, width = module.header.resolution
    model = open_model(pipe, TrainConfig(height=height, width=width))
    neutral, target, negative = model.encode([concept.neutral, concept.target, concept.negative])
    r, s = (form.to(model.device) for form in module.forms())
    with eager(model.model):
        z, t = roll_batch(model, ROLLOUTS, mix_seed(seed, 5), neutral, STEPS)
        e = predict(model, z, t, neutral, ROLLOUTS)
        d = e - predict(model, z, t, negative, ROLLOUTS) if concept.kind == "safety" else predict(model, z, t, target, ROLLOUTS) - e
        steps = iter(t.split(ROLLOUTS))

        def delta(h: Tensor) -> tuple[Tensor, slice]:
            x, when = channels_first(h).float(), next(steps)
            return module.weight * (r(x, when) + s(x, when)).to(h.dtype), slice(None)

        with shifted(model.model, delta, model.site):
            change = predict(model, z, t, neutral, ROLLOUTS) - e
    return ((change * d).sum() / d.square().sum().clamp(min=1e-12)).item()
