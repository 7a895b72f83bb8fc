"""BAct, Balancing Act (CVPR 2024): a predictor of the attribute at the bottleneck, and guidance of a batch to equal proportions.

Heads g_b, one per bin of timesteps, predict from h which alternative an image will show. They are trained with cross-entropy on images that
the model generates and a classifier labels. N images of a prompt are generated together; at every step, with x = h / scale (the rms of h),

    p = 1/N sum_i softmax g_b(x_i);   L = sum_k (p_k - 1/K)^2 / (1/K);   x_i <- x_i - gamma N dL/dx_i / |w|^2

on the conditional rows, straight behind the mid block; the up blocks continue from the new h. The authors' code was not available: L and the
unit of gamma are ours. Gamma counts in logits: |w|^2 is the mean over k of |w_k - mean w|^2 for the rows w_k of a head.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from respodiff.concepts.concept import Concept
from respodiff.methods.base import Classify, MakeHeader, Method, SubjectConfig, decoded
from respodiff.methods.model_call import intercept_calls, warn_once
from respodiff.pipelines.bottleneck import site_module
from respodiff.pipelines.denoiser import Denoiser
from respodiff.pipelines.registry import backbone
from respodiff.steering.adapter import Adapter, AdaptersPerImage
from respodiff.steering.serialization import TIMESTEPS
from respodiff.training.config import NOT_NEGATIVE, OptimizerConfig, RolloutConfig, Rules
from respodiff.training.rollouts import equal_parts, mix_seed, reverse_diffusion
from respodiff.training.state import Tensors, fit_tensors, open_model


@dataclass(frozen=True)
class BactConfig(OptimizerConfig, RolloutConfig, SubjectConfig):
    """Settings of AdamW, of ``rollouts`` images of ``steps`` steps to learn from, and ``gamma``, the step of the guidance."""

    rules: ClassVar[Rules] = {"weight_decay": NOT_NEGATIVE, "gamma": NOT_NEGATIVE}
    batch: int = 128
    lr: float = 3e-5
    decay: Literal["constant", "sqrt"] = "sqrt"
    steps: int = 20
    rollouts: int = 288
    weight_decay: float = 0.1
    gamma: float = 5.0


def bin_of(t: Tensor, bins: int) -> Tensor:
    """Which of ``bins`` equal parts (0 to bins - 1) timesteps t (0 to 999) belong to: random level(bins t / 1000)."""
    return (t.long() * bins // TIMESTEPS[1]).clamp(0, bins - 1)


def balanced(x: Tensor, weight: Tensor, bias: Tensor, gamma: float) -> Tensor:
    """x (N, D) after one step of guidance to equal proportions with a head of weight (K, D) and bias (K,)."""
    reference = torch.full_like(bias, 1 / len(bias))
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        p = (x @ weight.T + bias).softmax(1).mean(0)
        (gradient,) = torch.autograd.grad(((p - reference) ** 2 / reference).sum(), x)
    size = (weight - weight.mean(0)).square().sum(1).mean().clamp(min=1e-12)
    return (x - gamma * len(x) * gradient / size).detach()


@dataclass(frozen=True)
class Labelled:
    """h (P, S, D) of images at their steps, t (S,), and their labels (P,)."""

    h: Tensor
    t: Tensor
    labels: Tensor
    seed: int

    def batch(self, iteration: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """h (B, D), t (B,) and labels (B,) of ``size`` pairs of an image and a step, which depend on seed and iteration alone."""
        generator = torch.Generator().manual_seed(mix_seed(self.seed, 1, iteration))
        i, s = (torch.randint(n, (size,), generator=generator).to(self.h.device) for n in self.h.shape[:2])
        return self.h[i, s], self.t[s], self.labels[i]


@torch.no_grad()
def labelled_images(model: Denoiser, config: BactConfig, classify: Classify) -> Labelled:
    """``rollouts`` images of the subjects in turn, with h of their conditional rows and the classifier's labels."""
    seed, seen, found, labels = mix_seed(config.seed, 7, 0), list[Tensor](), [], []

    def record(_module: nn.Module, _args: Any, h: Tensor) -> None:
        seen.append(h.flatten(1))

    for i, (prompt, n) in enumerate(zip(config.prompts, equal_parts(config.rollouts, len(config.prompts)), strict=True)):
        (y,), generator = model.encode([prompt]), torch.Generator().manual_seed(mix_seed(seed, i))
        noise = torch.randn(n, *model.latent, generator=generator).to(model.device, model.dtype)
        for z in noise.split(config.rollout_batch) if n else ():
            seen.clear()
            with site_module(model.model, model.site).register_forward_hook(record):
                *_, (_, _, x) = reverse_diffusion(model, z, y, steps=config.steps, generator=generator)
            found.append(torch.stack([h[-len(z) :] for h in seen], 1))
            labels.append(classify(decoded(model.pipe, x).clamp(0, 1)).argmax(1))
    return Labelled(torch.cat(found), model.sampler(config.steps).timesteps, torch.cat(labels).to(model.device), seed)


def head_loss(heads: Tensors, batch: tuple[Tensor, Tensor, Tensor]) -> float:
    """Mean cross-entropy of the labels; the first batch sets the scale of h."""
    (h, t, labels), scale = batch, heads["scale"].detach()
    h = h.float()
    if not scale.any():
        scale.fill_(h.square().mean().sqrt().item())
    b = bin_of(t, len(heads["weight"]))
    loss = cross_entropy(torch.einsum("nd,nkd->nk", h / scale, heads["weight"][b]) + heads["bias"][b], labels)
    loss.backward()
    return loss.item()


class BalancingAdapter(Adapter):
    """The heads: ``weight`` (bins, K, D), ``bias`` (bins, K) and ``scale`` (1,)."""

    batch_dependent = True

    @staticmethod
    @contextmanager
    def apply(pipe: Any, adapters: AdaptersPerImage) -> Iterator[None]:
        """Images of one prompt in a call are balanced together, those that have the adapter; alone an image has no distribution: a warning."""
        warn = warn_once()
        with ExitStack() as stack:
            call = stack.enter_context(intercept_calls(pipe, adapters))

            def hook(_module: nn.Module, _args: Any, h: Tensor) -> Tensor | None:
                if (found := call()) is None:
                    return None
                out, together = h.clone(), defaultdict(list)
                for i, (entry, prompt) in enumerate(zip(found.entries, found.prompts(), strict=True), found.passes["cond"].start):
                    for adapter in entry:
                        together[adapter, prompt].append(i)
                for (adapter, _), rows in together.items():
                    if len(rows) < 2:
                        warn("bact balances images of one prompt in one batch, and here is one alone; draw 16 or more")
                    out[rows] = _guided(adapter, out[rows], found.variables["timesteps"][found.step])
                return out

            stack.callback(site_module(backbone(pipe)).register_forward_hook(hook).remove)
            yield


def _guided(adapter: Adapter, h: Tensor, t: Tensor) -> Tensor:
    """h (N, C, H, W) after one step of guidance."""
    weight, bias, scale = (adapter.tensors[k].to(h.device) for k in ("weight", "bias", "scale"))
    if h[0].numel() != weight.shape[2]:
        raise ValueError(
            f"bact {adapter.name!r} is for h of {weight.shape[2]} numbers, this image size has {h[0].numel()}; train it for this size"
        )
    b = int(bin_of(t, len(weight)))
    x = balanced(h.flatten(1).float() / scale, weight[b], bias[b], adapter.weight * adapter.settings["gamma"])
    return (x * scale).view_as(h).to(h.dtype)


def _make(pipe: Any, concept: Concept, config: BactConfig, *, header: MakeHeader, classify: Classify, resume: Any) -> Iterator[Any]:
    model, classes = open_model(pipe, config), 1 + len(concept.opposites)
    shapes = {"weight": (config.steps, classes, math.prod(model.shape)), "bias": (config.steps, classes), "scale": (1,)}
    start = {k: torch.zeros(shape, device=model.device) for k, shape in shapes.items()}
    make = partial(BalancingAdapter, header(resolution=model.size))
    images = partial(labelled_images, model, config, classify)
    return fit_tensors(model, start, lambda *_: images(), head_loss, config, make, resume=resume, weight_decay=config.weight_decay)


METHODS = {"bact": Method("bact", ("fairness",), BactConfig, _make, BalancingAdapter, needs_classifier=("fairness",), resumes=True)}
