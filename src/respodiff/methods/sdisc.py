"""SDisc, self-discovered directions (CVPR 2024): one constant at the bottleneck, as RAM, from the ordinary denoising loss.

    min over c of E |noise - e[c](z_t, neutral)|^2,   z_t = sqrt(abar_t) x + sqrt(1 - abar_t) noise,   t ~ U{0 .. 999}

x are the latents of images of the target prompt, which the model draws itself; the prompt of the loss does not name the concept, so
that c has to. For a safety concept x are drawn from the neutral prompt with the concept as negative prompt. The adapter is a
`ConceptModule` with c as RAM and no SAM: it is drawn, inspected, scaled and fused like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from respodiff.concepts.concept import Concept
from respodiff.methods.base import Classify, Method
from respodiff.pipelines.denoiser import Condition, Denoiser, repeat
from respodiff.steering.adapter import require_unet
from respodiff.steering.module import ConceptModule
from respodiff.training.config import TrainConfig
from respodiff.training.respodiff import Task, train
from respodiff.training.rollouts import Rollouts, mix_seed


@dataclass(frozen=True)
class SdiscConfig(TrainConfig):
    """`TrainConfig` with ``rollouts`` images of ``steps`` steps and guidance ``rollout_guidance`` in place of rollouts.

    The authors': 1000 images of 30 steps at guidance 7.5, 2500 iterations of batch 8, Adam .1, no gain.
    """

    iterations: int = 400
    ram_lr: float = 0.1
    preservation_weight: float = 0.0
    train_scale: float = 1.0
    max_relative_norm: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    decay: Literal["constant", "sqrt"] = "constant"
    batch: int = 8
    rollouts: int = 96
    refresh_every: int = 1_000_000


@dataclass(frozen=True)
class Noised:
    """Images x (P, C, H, W) in latents, to be noised anew for every batch; ``abar`` (T,) is the cumulated alpha of each timestep."""

    x: Tensor
    neutral: Condition
    abar: Tensor
    velocity: bool
    seed: int
    forwards: int

    def batch(self, iteration: int, size: int) -> dict[str, Tensor]:
        """z, t, target and condition of ``size`` noised images, which depend on seed and iteration alone."""
        generator = torch.Generator().manual_seed(mix_seed(self.seed, 1, iteration))
        x = self.x[torch.randint(len(self.x), (size,), generator=generator).to(self.x.device)]
        t = torch.randint(len(self.abar), (size,), generator=generator)
        noise = torch.randn(x.shape, generator=generator).to(x)
        return {**noised(x, noise, self.abar[t].to(x), self.velocity), "t": t.to(x.device), **repeat(self.neutral, size)}


def noised(x: Tensor, noise: Tensor, abar: Tensor, velocity: bool = False) -> dict[str, Tensor]:
    """z (B, C, H, W) at cumulated alphas abar (B,), and what the model should predict: the noise, or v for v-prediction."""
    signal, part = (a.view(-1, 1, 1, 1) for a in (abar.sqrt(), (1 - abar).sqrt()))
    target = signal * noise - part * x if velocity else noise
    return {"z": signal * x + part * noise, "target": target.float()}


class ImageExamples(Rollouts):
    """Draws the images, once."""

    def __init__(self, denoiser: Denoiser, concept: Concept, config: TrainConfig) -> None:
        super().__init__(denoiser, concept, replace(config, objective="shift", rollout_prompts="neutral", timestep_labels="sampler"))
        kind = self.scheduler.config.get("prediction_type", "epsilon")
        if kind not in ("epsilon", "v_prediction"):
            raise ValueError(f"the model predicts {kind!r}; method 'sdisc' is for models that predict noise or v")
        self.velocity, self.safety = kind == "v_prediction", concept.kind == "safety"

    @torch.no_grad()
    def pool(self, number: int, delta: Any) -> Noised:  # type: ignore[override]  # other examples than RAM's
        """``rollouts`` images of the target prompt (safety: of the neutral one, away from the negative one)."""
        config, seed = self.config, mix_seed(self.config.seed, 5, number)
        self.forwards, parts = 0, []
        away = self.conditions["negative"][0] if self.safety else None
        for i in range(0, config.rollouts, config.rollout_batch):
            generator = torch.Generator().manual_seed(mix_seed(seed, i))
            n = min(config.rollout_batch, config.rollouts - i)
            z = torch.randn(n, *self.denoiser.latent, generator=generator).to(self.denoiser.device, self.denoiser.dtype)
            *_, (_, _, x) = self.walk(z, generator, self.conditions["target"][0], None, away)
            parts.append(x)
        return Noised(torch.cat(parts), self.conditions["neutral"][0], self.scheduler.alphas_cumprod, self.velocity, seed, self.forwards)


def without_mean(modules: Sequence[ConceptModule]) -> list[ConceptModule]:
    """The same modules less their mean: what all directions share is a fault of the images, not the attribute.

    Raises:
        ValueError: fewer than two modules, or of different shapes.
    """
    if len(modules) < 2:
        raise ValueError(f"{len(modules)} module(s) given; removing the mean direction needs all alternatives of an attribute, 2 or more")
    if len({m.shape for m in modules}) > 1:
        raise ValueError(f"modules have shapes {sorted({m.shape for m in modules})}; the mean direction needs one shape")
    mean = torch.stack([m.delta for m in modules]).mean(0)
    return [ConceptModule.of(m.delta - mean, torch.zeros_like(m.sam), m.header) for m in modules]


def _make(pipe: Any, concept: Concept, config: Any, *, classify: Classify | None, resume: dict[str, Tensor] | None) -> Iterator[Any]:
    require_unet(pipe, "sdisc")
    if config.sam_lr or config.preservation_weight:
        raise ValueError(
            f"sam_lr is {config.sam_lr} and preservation_weight {config.preservation_weight}; method 'sdisc' has neither SAM nor preservation: leave both at 0"
        )
    return train(pipe, concept, config, resume=resume, task=Task("sdisc", source=ImageExamples))


METHODS = {"sdisc": Method("sdisc", ("fairness", "safety"), SdiscConfig, _make, resumes=True)}
