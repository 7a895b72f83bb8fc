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
from respodiff.methods.base import Method
from respodiff.pipelines.bottleneck import shifted
from respodiff.pipelines.denoiser import Condition, Denoiser, repeat
from respodiff.steering.adapter import header_of, require_unet
from respodiff.steering.module import ConceptModule
from respodiff.training.config import OptimizerConfig, RolloutConfig, TrainConfig
from respodiff.training.objectives import response_loss
from respodiff.training.respodiff import forms
from respodiff.training.rollouts import Latents, mix_seed, reverse_diffusion
from respodiff.training.state import Tensors, fit_tensors, open_model


@dataclass(frozen=True)
class SdiscConfig(OptimizerConfig, RolloutConfig):
    """Settings of the optimiser, and of ``rollouts`` images of ``steps`` steps (the authors': 1000 of 30, 2500 iterations)."""

    iterations: int = 400
    lr: float = 0.1
    rollouts: int = 96


@dataclass(frozen=True)
class Noised:
    """Images x (P, C, H, W) in latents, to be noised anew for every batch; ``abar`` (T,) is the cumulated alpha of each timestep."""

    x: Tensor
    neutral: Condition
    abar: Tensor
    velocity: bool
    seed: int

    def batch(self, iteration: int, size: int) -> Latents:
        """``size`` noised images, which depend on seed and iteration alone."""
        generator = torch.Generator().manual_seed(mix_seed(self.seed, 1, iteration))
        x = self.x[torch.randint(len(self.x), (size,), generator=generator).to(self.x.device)]
        t = torch.randint(len(self.abar), (size,), generator=generator)
        noise = torch.randn(x.shape, generator=generator).to(x)
        z, target = noised(x, noise, self.abar[t].to(x), self.velocity)
        return Latents(z, t.to(x.device), repeat(self.neutral, size), target)


def noised(x: Tensor, noise: Tensor, abar: Tensor, velocity: bool = False) -> tuple[Tensor, Tensor]:
    """z (B, C, H, W) at cumulated alphas abar (B,), and what the model should predict: the noise, or v for v-prediction."""
    signal, part = (a.view(-1, 1, 1, 1) for a in (abar.sqrt(), (1 - abar).sqrt()))
    target = signal * noise - part * x if velocity else noise
    return signal * x + part * noise, target.float()


def own_images(model: Denoiser, concept: Concept, config: SdiscConfig) -> Noised:
    """``rollouts`` images of the target prompt (safety: of the neutral one, away from the negative one). ValueError for a flow model."""
    sampler, seed, parts = model.sampler(config.steps), mix_seed(config.seed, 5, 0), []
    kind = sampler.config.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        raise ValueError(f"the model predicts {kind!r}; method 'sdisc' is for models that predict noise or v")
    (target,), (neutral,) = model.encode([concept.target]), model.encode([concept.neutral])
    away = model.encode([concept.negative])[0] if concept.kind == "safety" else None
    for i in range(0, config.rollouts, config.rollout_batch):
        generator = torch.Generator().manual_seed(mix_seed(seed, i))
        n = min(config.rollout_batch, config.rollouts - i)
        z = torch.randn(n, *model.latent, generator=generator).to(model.device, model.dtype)
        *_, (_, _, x) = reverse_diffusion(model, z, target, steps=config.steps, generator=generator, away=away)
        parts.append(x)
    return Noised(torch.cat(parts), neutral, sampler.alphas_cumprod, kind == "v_prediction", seed)


def _make(pipe: Any, concept: Concept, config: SdiscConfig, *, resume: Any, **_: Any) -> Iterator[Any]:
    require_unet(pipe, "sdisc")
    model = open_model(pipe, config)
    header = header_of(pipe, "sdisc", concept, config, site=model.site, resolution=model.size)
    c, zero = (form.get_parameter("r").detach() for form in forms(model, TrainConfig(seed=config.seed)))

    def loss(values: Tensors, b: Latents) -> float:
        with shifted(model.model, lambda _h: (values["c"][None], slice(None)), model.site):
            found = response_loss(model(b.z, b.t, b.y).float(), b.e_tar)
            found.backward()
        return found.item()

    def make(values: Tensors) -> ConceptModule:
        return ConceptModule.of(values["c"], zero, header)

    return fit_tensors(model, {"c": c}, lambda *_: own_images(model, concept, config), loss, config, make, resume=resume)


METHODS = {"sdisc": Method("sdisc", ("fairness", "safety"), SdiscConfig, _make, resumes=True)}
