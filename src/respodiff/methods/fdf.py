"""FDF, finetuning for fairness (ICLR 2024), in a reduced form: adjusted direct finetuning towards optimal-transport targets.

A step draws N images of one subject, asks a classifier for p_i, and gives every image a target: the N labels that a fair law would
draw are assigned so that the least is moved, averaged over such draws, and dropped where that is uncertain. The loss of the final
latent x_0,

    L = 1/N sum_i [ sure_i CE(p_i, target_i) + stay w_i mean (x_0,i - x_0,i of the original model)^2 ],   w_i = .2 where the label flips,

reaches the UNet's predictions e_t through the sampler's linear map alone (its input latents are detached), each times
A_t = sqrt(abar_t) sqrt(1 - abar_t) / (1 - alpha_t), scaled to a geometric mean of 1.

Reduced: the authors train the text encoder (rank 50) with a face detector, face embeddings, CLIP and DINOv2 features on faces; here it is
attention to the text (LoRA), any differentiable classifier of whole images, and distance of latents in the place of features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import cross_entropy

from respodiff.concepts.concept import Concept
from respodiff.data.prompt_sets.winobias import PROFESSIONS
from respodiff.methods.base import Classify, Method
from respodiff.methods.classifier import alternatives, check_subjects, classified, decoded
from respodiff.methods.concept_slider import LoraRollouts, SliderConfig, learner, scale
from respodiff.methods.lora import LowRankAdapter, attached
from respodiff.pipelines.denoiser import Denoiser, join
from respodiff.steering.adapter import require_unet
from respodiff.training.learners import Parameters
from respodiff.training.respodiff import Task, learning_rate, train
from respodiff.training.rollouts import mix_seed

DRAWS = 200
"""Draws of N labels that a target is averaged over."""


@dataclass(frozen=True)
class FdfConfig(SliderConfig):
    """`SliderConfig` with ``batch`` for N, and (the authors': N 24, 19 to 23 steps, guidance 7.5, AdamW 5e-5, decay 1e-2, 2k to 10k steps)

    Attributes:
        subjects, draw: what is drawn, one subject a step: ``draw`` with the subject in it.
        uncertain: share of draws up to which a target may differ and still count.
        stay: weight of the distance to the original model's latents; 0 leaves it, and its pass, out.
    """

    iterations: int = 60
    ram_lr: float = 1e-3
    preservation_weight: float = 0.0
    batch: int = 12
    steps: int = 10
    refresh_every: int = 1
    decay: Literal["constant", "sqrt"] = "constant"
    where: Literal["all", "self", "cross"] = "cross"
    subjects: tuple[str, ...] = PROFESSIONS
    draw: str = "image of {}"
    uncertain: float = 0.2
    stay: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_subjects(self.subjects, self.draw)
        if not 0 <= self.uncertain < 0.5 or self.stay < 0:
            raise ValueError(f"uncertain is {self.uncertain!r} and stay {self.stay!r}; allowed: 0 to below .5, and at least 0")


def transported(p: Tensor, draws: int, seed: int) -> Tensor:
    """q (N, K): how often each image is assigned each label, over draws of N labels of equal chance; p (N, K) are probabilities.

    Every draw is an assignment of least cost sum_i |p_i - label_i|^2. For two labels that is ranking by p, and q is a binomial tail.
    """
    n, classes = p.shape
    rng, q = np.random.default_rng(seed), np.zeros((n, classes))
    known = p.detach().cpu().double().numpy()
    for _ in range(draws):
        labels = rng.integers(classes, size=n)
        cost = ((known[:, None, :] - np.eye(classes)[labels][None]) ** 2).sum(-1)
        rows, columns = linear_sum_assignment(cost)
        q[rows, labels[columns]] += 1
    return torch.from_numpy(q / draws).to(p.device, p.dtype)


def sampler_factors(scheduler: Any) -> Tensor:
    """A_t dx_0/de_t (S,): what DDIM's linear map (eta 0) makes of a change of each prediction, times the adjustment."""
    abar, alphas = scheduler.alphas_cumprod.double().cpu(), scheduler.alphas.double().cpu()
    times = [int(t) for t in scheduler.timesteps]
    ratio = scheduler.config.num_train_timesteps // len(times)
    later = [abar[t - ratio] if t >= ratio else scheduler.final_alpha_cumprod.double().cpu() for t in times]
    own = torch.stack([(1 - b).sqrt() - (b * (1 - abar[t]) / abar[t]).sqrt() for t, b in zip(times, later, strict=True)])
    carried = torch.stack([(b / abar[t]).sqrt() for t, b in zip(times, later, strict=True)])
    after = torch.stack([carried[i + 1 :].prod() for i in range(len(times))])
    adjust = torch.stack([(abar[t] * (1 - abar[t])).sqrt() / (1 - alphas[t]) for t in times])
    return own * after * adjust / adjust.log().mean().exp()


@dataclass(frozen=True)
class Drawn:
    """One step's images: latents z (S, N, C, H, W) before each timestep t (S,), conditions of both passes, dL/dx_0, and L's first part."""

    z: list[Tensor]
    t: list[Tensor]
    condition: dict[str, Tensor]
    guided: bool
    gradient: Tensor
    loss: float
    forwards: int

    def batch(self, iteration: int, size: int) -> dict[str, Any]:
        """All of it."""
        return {"drawn": self}


class Subjects(LoraRollouts):
    """Draws one subject a step, with what is trained in effect, and finds dL/dx_0."""

    def __init__(self, denoiser: Denoiser, concept: Concept, config: Any, classify: Classify) -> None:
        super().__init__(denoiser, concept, replace(config, timestep_labels="sampler", rollout_prompts="neutral"))
        if self.scheduler.config.get("prediction_type", "epsilon") != "epsilon" or not hasattr(self.scheduler, "final_alpha_cumprod"):
            raise ValueError("the model does not predict noise for DDIM steps; method 'fdf' is for models that do")
        self.classify, self.classes = classify, len(alternatives(concept))
        self.subjects = [denoiser.encode([config.draw.format(s)])[0] for s in config.subjects]

    @torch.no_grad()
    def pool(self, number: int, delta: Any) -> Drawn:  # type: ignore[override]  # whole images, not latents to learn from
        """The images of step ``number`` and what their loss asks of their final latents."""
        config: Any = self.config
        seed = mix_seed(config.seed, 6, number)
        generator = torch.Generator().manual_seed(seed)
        subject = self.subjects[int(torch.randint(len(self.subjects), (1,), generator=generator))]
        start = torch.randn(config.batch, *self.denoiser.latent, generator=generator).to(self.denoiser.device, self.denoiser.dtype)
        self.forwards = 0
        *before, (_, _, x) = self.walk(start, generator, subject, delta)
        kept = list(self.walk(start, generator, subject, None))[-1][2] if config.stay else None
        gradient, loss = self.asked(x, kept, seed)
        guided = self.denoiser.guides and config.rollout_guidance != 1
        condition = join([self.conditions["empty"][0]] * guided * len(x) + [subject] * len(x))
        return Drawn([z for _, _, z in before], [t for _, t, _ in before], condition, guided, gradient, loss, self.forwards)

    def asked(self, x: Tensor, kept: Tensor | None, seed: int) -> tuple[Tensor, float]:
        """dL/dx_0 (N, C, H, W) and the mean cross-entropy of the images whose target is sure."""
        config: Any = self.config
        with torch.enable_grad():
            x = x.detach().float().requires_grad_()
            logits = classified(self.classify, decoded(self.denoiser.pipe, x).clamp(0, 1), self.classes)
            q = transported(logits.softmax(1), DRAWS, seed % (1 << 32))
            likely, target = q.max(1)
            margin = (likely >= 1 - config.uncertain).float()
            each = margin * cross_entropy(logits, target, reduction="none")
            loss = each.sum() / len(x)
            if kept is not None:
                flips = (margin == 0) | (target != logits.argmax(1))
                weight = torch.where(flips, 0.2, 1.0)
                loss = loss + config.stay * (weight * (x - kept.float()).square().flatten(1).mean(1)).sum() / len(x)
            (gradient,) = torch.autograd.grad(loss, x)
        return gradient, each.sum().item() / max(1.0, margin.sum().item())


def step(denoiser: Denoiser, config: Any, trained: Parameters, batch: dict[str, Any]) -> tuple[float, float]:
    """One update: every prediction of the drawn images is made again with a gradient, which the sampler's map weighs."""
    drawn: Drawn = batch["drawn"]
    factors = sampler_factors(denoiser.sampler(config.steps))
    trained.adam.param_groups[0]["lr"] = config.ram_lr * learning_rate(config, trained.iteration)
    trained.adam.zero_grad(set_to_none=True)
    with attached(denoiser.model, trained.values, scale(config)):
        for z, t, factor in zip(drawn.z, drawn.t, factors.tolist(), strict=True):
            e = denoiser(torch.cat([z, z]) if drawn.guided else z, t.expand(len(z) * (1 + drawn.guided)), drawn.condition).float()
            trained.forwards += len(e)
            if drawn.guided:
                uncond, cond = e.chunk(2)
                e = uncond + config.rollout_guidance * (cond - uncond)
            (factor * drawn.gradient * e).sum().backward()
    trained.adam.step()
    return drawn.loss, 0.0


def _make(pipe: Any, concept: Concept, config: Any, *, classify: Classify | None, resume: dict[str, Tensor] | None) -> Iterator[Any]:
    require_unet(pipe, "fdf")
    alternatives(concept)
    assert classify is not None  # Method.train saw to it
    if config.refresh_every != 1:
        raise ValueError(f"refresh_every is {config.refresh_every}; method 'fdf' learns from images of the moment: leave it at 1")
    header = {"site": "", "kind": "attribute", "concept": concept.attribute or concept.name}
    task = Task("fdf", learner, lambda d, c, s: Subjects(d, c, s, classify), step, header)
    return train(pipe, concept, config, resume=resume, task=task)


METHODS = {"fdf": Method("fdf", ("fairness",), FdfConfig, _make, LowRankAdapter, needs_classifier=("fairness",), resumes=True)}
