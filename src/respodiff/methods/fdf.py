"""FDF, finetuning for fairness (ICLR 2024), in a reduced form: adjusted direct finetuning towards optimal-transport targets.

A step generates N images of one subject, and a classifier gives their probabilities p_i. Targets: N labels of equal chance are sampled and
assigned to the images at least cost; the label that an image gets most often is its target, and counts if it is sure. The loss of the
final latent x_0,

    L = 1/N sum_i [ sure_i CE(p_i, target_i) + stay w_i mean (x_0,i - x_0,i of the original model)^2 ],   w_i = .2 where the label flips,

reaches the UNet's predictions e_t through the sampler's linear map alone (its input latents are detached), each times
A_t = sqrt(abar_t) sqrt(1 - abar_t) / (1 - alpha_t), scaled to a geometric mean of 1. A prediction of v means the noise sqrt(abar_t) v + ...,
whose gradient it gets. In flow matching dx_0/dv_t is the step sigma_t+1 - sigma_t of Euler's method, and A_t is 1.

Reduced: the authors train the text encoder with a face detector and features of faces. Here it is LoRA on cross-attention, any
differentiable classifier of whole images, and a distance of latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from diffusers import DDIMScheduler
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import cross_entropy

from respodiff.concepts.concept import Concept
from respodiff.methods.base import Classify, MakeHeader, Method, SubjectConfig, decoded
from respodiff.methods.lora import LoraConfig, LowRankAdapter, attached, fit_low_rank
from respodiff.methods.weight_edits import without_cross_attention
from respodiff.pipelines.denoiser import Condition, Denoiser, flow_matching
from respodiff.training.config import NOT_NEGATIVE, OptimizerConfig, RolloutConfig, Rules, is_finite
from respodiff.training.rollouts import guided, mix_seed, reverse_diffusion
from respodiff.training.state import Tensors, open_model

DRAWS = 200
"""Samples of N labels that a target is averaged over."""


@dataclass(frozen=True)
class FdfConfig(OptimizerConfig, LoraConfig, SubjectConfig):
    """Settings of the optimiser (``batch`` is N) and of low-rank changes, and

    Attributes:
        steps, rollout_guidance, height, width: of the images, as in `RolloutConfig`; a step generates one of the subjects.
        uncertain: share of samples in which a target may differ and still count.
        stay: weight of the distance to the original model's latents.
    """

    rules: ClassVar[Rules] = {
        **{name: RolloutConfig.rules[name] for name in ("steps", "rollout_guidance", "height", "width")},
        "uncertain": (lambda v: is_finite(v) and 0 <= v < 0.5, "0 to below 0.5"),
        "stay": NOT_NEGATIVE,
    }
    iterations: int = 60
    batch: int = 12
    steps: int = 10
    rollout_guidance: float = 3.0
    height: int = 0
    width: int = 0
    where: Literal["all", "self", "cross"] = "cross"
    uncertain: float = 0.2
    stay: float = 1.0


def transported(p: Tensor, draws: int, seed: int) -> Tensor:
    """q (N, K): how often each image is assigned each label, over samples of N labels of equal chance; p (N, K) are probabilities.

    Every sample is an assignment of least cost sum_i |p_i - label_i|^2. For two labels that is ranking by p, and q is a binomial tail.
    """
    n, classes = p.shape
    rng, q, known = np.random.default_rng(seed), np.zeros((n, classes)), p.detach().cpu().double().numpy()
    for _ in range(draws):
        labels = rng.integers(classes, size=n)
        rows, columns = linear_sum_assignment(((known[:, None, :] - np.eye(classes)[labels][None]) ** 2).sum(-1))
        q[rows, labels[columns]] += 1
    return torch.from_numpy(q / draws).to(p.device, p.dtype)


def sampler_factors(scheduler: Any) -> Tensor:
    """A_t dx_0/de_t (S,): what the linear map of DDIM (eta 0) or Euler makes of a change of each prediction, times the adjustment."""
    if flow_matching(scheduler):
        return scheduler.sigmas.cpu().double().diff()  # type: ignore[no-any-return]
    cumulated, alphas, final = (x.cpu().double() for x in (scheduler.alphas_cumprod, scheduler.alphas, scheduler.final_alpha_cumprod))
    t = scheduler.timesteps.long().cpu()
    ratio = scheduler.config.num_train_timesteps // len(t)
    abar, later = cumulated[t], torch.where(t >= ratio, cumulated[t - ratio], final)
    own, carried = (1 - later).sqrt() - (later * (1 - abar) / abar).sqrt(), (later / abar).sqrt()
    after = torch.stack([carried[i + 1 :].prod() for i in range(len(t))])
    adjust = (abar * (1 - abar)).sqrt() / (1 - alphas[t])
    factors: Tensor = own * after * adjust / adjust.log().mean().exp()
    return factors * abar.sqrt() if scheduler.config.get("prediction_type") == "v_prediction" else factors


@dataclass(frozen=True)
class Images:
    """One step's images: latents z (N, C, H, W) before each timestep t, condition y, dL/dx_0, and L's first part."""

    z: list[Tensor]
    t: list[Tensor]
    y: Condition
    gradient: Tensor
    loss: float

    def batch(self, iteration: int, size: int) -> Images:
        """All of it."""
        return self


class Subjects:
    """Generates images of one subject a step, with what is trained in effect, and finds dL/dx_0."""

    def __init__(self, model: Denoiser, config: FdfConfig, classify: Classify) -> None:
        sampler = model.sampler(config.steps)
        linear = isinstance(sampler, DDIMScheduler) and sampler.config.get("prediction_type", "epsilon") in ("epsilon", "v_prediction")
        if not linear and not flow_matching(sampler):
            raise ValueError(
                f"the model predicts neither noise, nor v, nor the velocity of flow matching, or samples with {type(sampler).__name__}; "
                "method 'fdf' is for models that do, with DDIM or Euler"
            )
        self.model, self.config, self.classify = model, config, classify
        self.subjects = [model.encode([prompt])[0] for prompt in config.prompts]

    @torch.no_grad()
    def pool(self, number: int, values: Tensors) -> Images:
        """The images of step ``number`` and what their loss asks of their final latents."""
        config, model, seed = self.config, self.model, mix_seed(self.config.seed, 6, number)
        generator = torch.Generator().manual_seed(seed)
        y = self.subjects[int(torch.randint(len(self.subjects), (1,), generator=generator))]
        start = torch.randn(config.batch, *model.latent, generator=generator).to(model.device, model.dtype)
        walk = partial(reverse_diffusion, model, start, y, steps=config.steps, generator=generator)
        with attached(model.model, values, config.lora_scale):
            *before, (_, _, x) = walk()
        *_, (_, _, kept) = walk()
        gradient, loss = self.asked(x, kept, seed)
        return Images([z for _, _, z in before], [t for _, t, _ in before], y, gradient, loss)

    def asked(self, x: Tensor, kept: Tensor, seed: int) -> tuple[Tensor, float]:
        """dL/dx_0 (N, C, H, W) and the mean cross-entropy of the images whose target is sure."""
        config = self.config
        with torch.enable_grad():
            x = x.detach().float().requires_grad_()
            logits = self.classify(decoded(self.model.pipe, x).clamp(0, 1))
            q = transported(logits.softmax(1), DRAWS, seed % (1 << 32))
            likely, target = q.max(1)
            margin = (likely >= 1 - config.uncertain).float()
            each = margin * cross_entropy(logits, target, reduction="none")
            weight = torch.where((margin == 0) | (target != logits.argmax(1)), 0.2, 1.0)
            moved = (weight * (x - kept.float()).square().flatten(1).mean(1)).sum()
            loss = each.sum() / len(x) + config.stay * moved / len(x)
            (gradient,) = torch.autograd.grad(loss, x)
        return gradient, each.sum().item() / max(1.0, margin.sum().item())


def images_loss(model: Denoiser, config: FdfConfig, values: Tensors, images: Images) -> float:
    """Every prediction of the images is made again with a gradient, which the sampler's map weighs; gives L's first part."""
    factors = sampler_factors(model.sampler(config.steps))
    with attached(model.model, values, config.lora_scale):
        for z, t, factor in zip(images.z, images.t, factors.tolist(), strict=True):
            (factor * images.gradient * guided(model, z, t, images.y).float()).sum().backward()
    return images.loss


def _make(pipe: Any, _concept: Concept, config: Any, *, header: MakeHeader, classify: Classify, resume: Any) -> Iterator[Any]:
    model = open_model(pipe, config)
    pools, loss = Subjects(model, config, classify).pool, partial(images_loss, model, config)
    return fit_low_rank(model, config, header, pools, loss, resume=resume, refresh_every=1)


METHODS = {
    "fdf": Method(
        "fdf",
        ("fairness",),
        FdfConfig,
        _make,
        LowRankAdapter,
        needs_classifier=("fairness",),
        resumes=True,
        transformers=True,
        unfit=without_cross_attention,
    )
}
