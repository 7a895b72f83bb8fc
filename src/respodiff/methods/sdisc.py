"""SDisc, self-discovered directions (CVPR 2024): one constant at the bottleneck, as RAM, from the ordinary denoising loss.

    min over c of E |noise - e[c](z_t, neutral)|^2,   z_t = sqrt(abar_t) x + sqrt(1 - abar_t) noise,   t ~ U{0 .. 999}

x are latents of images of the target prompt, which the model generates itself. The prompt of the loss does not name the concept, so c must.
For a safety concept the images are of the neutral prompt, with the concept as negative prompt. The adapter is a `ConceptModule` with c as
RAM and a SAM of zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from respodiff.concepts.concept import Concept
from respodiff.methods.base import MakeHeader, Method
from respodiff.methods.concept_slider import score_loss
from respodiff.pipelines.bottleneck import shifted
from respodiff.pipelines.denoiser import Condition, Denoiser, repeat
from respodiff.steering.module import ConceptModule
from respodiff.training.config import OptimizerConfig, RolloutConfig
from respodiff.training.diagnostics import module_with_verdict
from respodiff.training.rollouts import Latents, mix_seed, reverse_diffusion
from respodiff.training.state import fit_tensors, open_model


@dataclass(frozen=True)
class SdiscConfig(OptimizerConfig, RolloutConfig):
    """Settings of the optimiser, and of ``rollouts`` images of ``steps`` steps (the authors': 1000 of 30, 2500 iterations)."""

    iterations: int = 400
    lr: float = 0.1
    rollouts: int = 96


@dataclass(frozen=True)
class Noised:
    """Images x (P, C, H, W) in latents, to be noised anew for every batch."""

    x: Tensor
    neutral: Condition
    sampler: Any
    seed: int

    def batch(self, iteration: int, size: int) -> Latents:
        """``size`` noised images, which depend on seed and iteration alone, with the noise or v that the model should predict."""
        generator = torch.Generator().manual_seed(mix_seed(self.seed, 1, iteration))
        x = self.x[torch.randint(len(self.x), (size,), generator=generator).to(self.x.device)]
        t = torch.randint(len(self.sampler.alphas_cumprod), (size,), generator=generator).to(x.device)
        noise = torch.randn(x.shape, generator=generator).to(x)
        predicts_v = self.sampler.config.prediction_type == "v_prediction"
        target = self.sampler.get_velocity(x, noise, t) if predicts_v else noise
        return Latents(self.sampler.add_noise(x, noise, t), t, repeat(self.neutral, size), target.float())


def own_images(model: Denoiser, concept: Concept, config: SdiscConfig) -> Noised:
    """``rollouts`` images of the target prompt (safety: of the neutral one, away from the negative one). ValueError for a model that predicts neither noise nor v."""
    sampler, seed, parts = model.sampler(config.steps), mix_seed(config.seed, 5, 0), []
    if (kind := sampler.config.prediction_type) not in ("epsilon", "v_prediction"):
        raise ValueError(f"the model predicts {kind!r}; method 'sdisc' is for models that predict noise or v")
    (target,), (neutral,) = model.encode([concept.target]), model.encode([concept.neutral])
    away = model.encode([concept.negative])[0] if concept.kind == "safety" else None
    for i in range(0, config.rollouts, config.rollout_batch):
        generator = torch.Generator().manual_seed(mix_seed(seed, i))
        n = min(config.rollout_batch, config.rollouts - i)
        z = torch.randn(n, *model.latent, generator=generator).to(model.device, model.dtype)
        *_, (_, _, x) = reverse_diffusion(model, z, target, steps=config.steps, generator=generator, away=away)
        parts.append(x)
    return Noised(torch.cat(parts), neutral, sampler, seed)


def _make(pipe: Any, concept: Concept, config: SdiscConfig, *, header: MakeHeader, resume: Any, **_: Any) -> Iterator[Any]:
    model = open_model(pipe, config)
    zeros, about = torch.zeros(model.shape, device=model.device), header(site=model.site, resolution=model.size)
    return fit_tensors(
        model,
        {"c": zeros},
        lambda *_: own_images(model, concept, config),
        score_loss(model, lambda values: shifted(model.model, lambda _h: (values["c"][None], slice(None)), model.site)),
        config,
        lambda values: ConceptModule.of(values["c"], zeros, about),
        resume=resume,
        verdict=lambda module, _: module_with_verdict(model, concept, module),
    )


METHODS = {"sdisc": Method("sdisc", ("fairness", "safety"), SdiscConfig, _make, resumes=True)}
