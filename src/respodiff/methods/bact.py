"""BAct, Balancing Act (CVPR 2024): a predictor of the attribute at the bottleneck, and guidance of a batch to a wanted distribution.

Heads g_b, one per bin of timesteps, tell from h which alternative an image will show; they are trained with cross-entropy on images that
the model draws and a classifier labels. While drawing N images of a prompt, at every step, with x = h / scale (the rms of h),

    p = 1/N sum_i softmax g_b(x_i);   L = D(p, reference);   x_i <- x_i - gamma N dL/dx_i / |w|^2

on the conditional rows, straight behind the mid block; the up blocks go on from the new h. The authors' code was not to be had: D and the
unit of gamma are ours. D is sum_k (p_k - q_k)^2 / q_k (``chi2``) or without the division (``squared``). Gamma counts in logits: |w|^2 is
the mean over k of |w_k - mean w|^2 for the rows w_k of a head.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from respodiff.concepts.concept import Concept
from respodiff.data.prompt_sets.winobias import PROFESSIONS
from respodiff.methods.base import Classify, Method
from respodiff.methods.classifier import alternatives, check_subjects, classified, decoded
from respodiff.methods.model_call import ModelCall, intercept_calls
from respodiff.pipelines.bottleneck import site_module
from respodiff.pipelines.denoiser import Denoiser
from respodiff.pipelines.registry import backbone
from respodiff.steering.adapter import Adapter, AdaptersPerImage, require_unet
from respodiff.steering.serialization import TIMESTEPS, Header
from respodiff.training.config import TrainConfig
from respodiff.training.learners import Parameters
from respodiff.training.respodiff import Task, adam_step, learning_rate, train
from respodiff.training.rollouts import Rollouts, mix_seed


@dataclass(frozen=True)
class BactConfig(TrainConfig):
    """`TrainConfig` for the heads (``rollouts`` images of ``steps`` steps, ``ram_lr``, ``batch``), and

    Attributes:
        subjects, draw: what the images are of, in turn. decay_weights: AdamW's.
        gamma: step of the guidance. distance: D. proportions: reference, in the order target, opposites; empty: equal.
    """

    iterations: int = 200
    ram_lr: float = 3e-5
    preservation_weight: float = 0.0
    train_scale: float = 1.0
    max_relative_norm: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    batch: int = 128
    steps: int = 20
    rollouts: int = 288
    refresh_every: int = 1_000_000
    subjects: tuple[str, ...] = PROFESSIONS
    draw: str = "image of {}"
    decay_weights: float = 0.1
    gamma: float = 5.0
    distance: Literal["chi2", "squared"] = "chi2"
    proportions: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_subjects(self.subjects, self.draw)
        if self.gamma < 0 or self.decay_weights < 0:
            raise ValueError(f"gamma is {self.gamma!r} and decay_weights {self.decay_weights!r}; allowed: at least 0")
        if self.proportions and (min(self.proportions) <= 0 or abs(sum(self.proportions) - 1) > 1e-6):
            raise ValueError(f"proportions is {self.proportions!r}; allowed: numbers above 0 that sum to 1, one an alternative")


def bin_of(t: Tensor, bins: int) -> Tensor:
    """Which of ``bins`` equal parts (0 to bins - 1) timesteps t (0 to 999) belong to: random level(bins t / 1000)."""
    return (t.long() * bins // TIMESTEPS[1]).clamp(0, bins - 1)


def divergence(p: Tensor, reference: Tensor, distance: str) -> Tensor:
    """D of a distribution p (K,) from the reference (K,)."""
    return ((p - reference) ** 2 / (reference if distance == "chi2" else 1.0)).sum()


def balanced(x: Tensor, weight: Tensor, bias: Tensor, reference: Tensor, gamma: float, distance: str) -> Tensor:
    """x (N, D) after one step of guidance with a head of weight (K, D) and bias (K,)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        p = (x @ weight.T + bias).softmax(1).mean(0)
        (gradient,) = torch.autograd.grad(divergence(p, reference, distance), x)
    size = (weight - weight.mean(0)).square().sum(1).mean().clamp(min=1e-12)
    return (x - gamma * len(x) * gradient / size).detach()


@dataclass(frozen=True)
class Labelled:
    """h (P, S, D) of images at their steps, t (S,), and their labels (P,)."""

    h: Tensor
    t: Tensor
    labels: Tensor
    seed: int
    forwards: int

    def batch(self, iteration: int, size: int) -> dict[str, Tensor]:
        """``size`` pairs of an image and a step, which depend on seed and iteration alone."""
        generator = torch.Generator().manual_seed(mix_seed(self.seed, 1, iteration))
        i, s = (torch.randint(n, (size,), generator=generator).to(self.h.device) for n in self.h.shape[:2])
        return {"h": self.h[i, s], "t": self.t[s], "labels": self.labels[i]}


class Recorded(Rollouts):
    """Draws images, remembers h of their conditional rows, and has them labelled."""

    def __init__(self, denoiser: Denoiser, concept: Concept, config: Any, classify: Classify) -> None:
        super().__init__(denoiser, concept, replace(config, objective="shift", rollout_prompts="neutral", timestep_labels="sampler"))
        self.classify, self.classes = classify, len(alternatives(concept))
        self.subjects = [denoiser.encode([config.draw.format(s)])[0] for s in config.subjects]
        self.seen: list[Tensor] = []

    @contextmanager
    def steering(self, delta: Any, rows: slice) -> Iterator[None]:
        """Nothing is steered; h is remembered."""
        site = site_module(self.denoiser.model, self.denoiser.site)
        handle = site.register_forward_hook(lambda _m, _a, h: self.seen.append(h[rows].flatten(1).float()))
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def pool(self, number: int, delta: Any) -> Labelled:  # type: ignore[override]  # images with labels
        """``rollouts`` images of the subjects in turn."""
        config, seed = self.config, mix_seed(self.config.seed, 7, number)
        self.forwards, found, labels = 0, [], []
        parts = [config.rollouts // len(self.subjects) + (i < config.rollouts % len(self.subjects)) for i in range(len(self.subjects))]
        for i, (subject, n) in enumerate((s, n) for s, n in zip(self.subjects, parts, strict=True) if n):
            generator = torch.Generator().manual_seed(mix_seed(seed, i))
            z = torch.randn(n, *self.denoiser.latent, generator=generator).to(self.denoiser.device, self.denoiser.dtype)
            self.seen.clear()
            *_, (_, _, x) = self.walk(z, generator, subject)
            found.append(torch.stack(self.seen, 1))
            labels.append(classified(self.classify, decoded(self.denoiser.pipe, x).clamp(0, 1), self.classes).argmax(1))
        return Labelled(torch.cat(found), self.scheduler.timesteps, torch.cat(labels).to(x.device), seed, self.forwards)


def step(denoiser: Denoiser, config: Any, heads: Parameters, batch: dict[str, Tensor]) -> tuple[float, float]:
    """One update of the heads: mean cross-entropy of the labels."""
    b = bin_of(batch["t"], config.steps)
    if heads.iteration == 0 or not heads.values["scale"].any():
        with torch.no_grad():
            heads.values["scale"].fill_(batch["h"].square().mean().sqrt().item())
    x = batch["h"] / heads.values["scale"].detach()
    logits = torch.einsum("nd,nkd->nk", x, heads.values["weight"][b]) + heads.values["bias"][b]
    loss = cross_entropy(logits, batch["labels"])
    adam_step(heads.adam, config.ram_lr * learning_rate(config, heads.iteration), loss)
    return loss.item(), 0.0


def _learner(denoiser: Denoiser, concept: Concept, config: Any) -> Parameters:
    classes, size = len(alternatives(concept)), denoiser.shape[0] * denoiser.shape[1] * denoiser.shape[2]
    if config.proportions and len(config.proportions) != classes:
        raise ValueError(f"proportions has {len(config.proportions)} numbers for {classes} alternatives; give one each")
    start = {"weight": torch.zeros(config.steps, classes, size), "bias": torch.zeros(config.steps, classes), "scale": torch.zeros(1)}

    def made(header: Header, values: dict[str, Tensor]) -> Adapter:
        return BalancingAdapter(header, values)

    return Parameters(config, {k: v.to(denoiser.device) for k, v in start.items()}, made, config.decay_weights)


class BalancingAdapter(Adapter):
    """The heads: ``weight`` (bins, K, D), ``bias`` (bins, K) and ``scale`` (1,)."""

    batch_dependent = True

    @staticmethod
    @contextmanager
    def apply(pipe: Any, adapters: AdaptersPerImage) -> Iterator[None]:
        """Images of one prompt in a call are balanced together, those that have the adapter; alone an image has no distribution: a warning."""
        site, now, warned = site_module(backbone(pipe)), [torch.zeros(())], [False]

        def before(_call: ModelCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            now[0] = torch.as_tensor(args[1] if len(args) > 1 else kwargs["timestep"]).reshape(-1)[0]

        with ExitStack() as stack:
            call = stack.enter_context(intercept_calls(pipe, adapters, before))

            def hook(_module: nn.Module, _args: Any, h: Tensor) -> Tensor | None:
                found = call()
                if found is None:
                    return None
                out = h.clone()
                for adapter, images in _together(found):
                    if len(images) < 2 and not warned[0]:
                        warnings.warn(
                            "bact balances images of one prompt in one batch, and here is one alone; draw 16 or more", stacklevel=2
                        )
                        warned[0] = True
                    rows = torch.tensor(images, device=h.device) + found.passes["cond"].start
                    out[rows] = _guided(adapter, h[rows], now[0])
                return out

            stack.callback(site.register_forward_hook(hook).remove)
            yield


def _together(call: ModelCall) -> list[tuple[Adapter, list[int]]]:
    """Adapter and the images of one prompt that have it."""
    groups: dict[tuple[int, str], tuple[Adapter, list[int]]] = {}
    for i, (row, prompt) in enumerate(zip(call.entries, call.prompts(), strict=True)):
        for a in row:
            groups.setdefault((id(a), prompt), (a, []))[1].append(i)
    return list(groups.values())


def _guided(adapter: Adapter, h: Tensor, t: Tensor) -> Tensor:
    """h (N, C, H, W) after one step of guidance."""
    weight, bias, scale = (adapter.tensors[k].to(h.device) for k in ("weight", "bias", "scale"))
    if h[0].numel() != weight.shape[2]:
        raise ValueError(
            f"bact {adapter.name!r} is for h of {weight.shape[2]} numbers, this image size has {h[0].numel()}; train it for this size"
        )
    classes, s = weight.shape[1], adapter.settings
    reference = torch.tensor(s["proportions"] or [1 / classes] * classes, device=h.device)
    b = int(bin_of(t, len(weight)))
    x = balanced(h.flatten(1).float() / scale, weight[b], bias[b], reference, adapter.weight * s["gamma"], s["distance"])
    return (x * scale).view_as(h).to(h.dtype)


def _make(pipe: Any, concept: Concept, config: Any, *, classify: Classify | None, resume: dict[str, Tensor] | None) -> Iterator[Any]:
    require_unet(pipe, "bact")
    alternatives(concept)
    assert classify is not None  # Method.train saw to it
    header = {"site": "", "kind": "attribute", "concept": concept.attribute or concept.name}
    task = Task("bact", _learner, lambda d, c, s: Recorded(d, c, s, classify), step, header)
    return train(pipe, concept, config, resume=resume, task=task)


METHODS = {"bact": Method("bact", ("fairness",), BactConfig, _make, BalancingAdapter, needs_classifier=("fairness",), resumes=True)}
