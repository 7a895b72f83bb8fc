"""ESD, erased stable diffusion (ICCV 2023): the UNet's own weights, trained to predict away from a phrase.

    mean (e_student(z, c) - [e(z, c) - eta (e(z, c) - e0)])^2,   z from rollouts of the frozen model for the phrase c

esd-x trains every linear and convolution layer of cross-attention (``attn2``), esd-u every other one. A concept's negative prompt may hold
several phrases, separated by commas: they take turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from respodiff.concepts.concept import Concept
from respodiff.methods.base import Method
from respodiff.methods.concept_slider import score_loss
from respodiff.methods.weight_edits import WeightEditAdapter, owners, swapped
from respodiff.pipelines.denoiser import Denoiser, repeat
from respodiff.steering.adapter import header_of, require_unet
from respodiff.training.config import NOT_NEGATIVE, POSITIVE, OptimizerConfig, RolloutConfig, Rules
from respodiff.training.rollouts import Latents, mix_seed, predict, preserved, rollout
from respodiff.training.state import Tensors, fit_tensors, open_model


@dataclass(frozen=True)
class EsdConfig(OptimizerConfig, RolloutConfig):
    """Settings of the optimiser and of rollouts (the authors': 200 iterations, Adam 5e-5, eta 2, one latent an iteration), and

    Attributes:
        target_guidance: eta. preservation_weight: weight of preservation, on the concept's ``preserve`` prompts; 0 switches it off.
    """

    rules: ClassVar[Rules] = {"target_guidance": POSITIVE, "preservation_weight": NOT_NEGATIVE}
    batch: int = 4
    lr: float = 5e-5
    target_guidance: float = 2.0
    preservation_weight: float = 0.0


def erase(e_c: Tensor, e_0: Tensor, eta: float) -> Tensor:
    """e(c) - eta (e(c) - e0), the target for the phrase c."""
    return e_c - eta * (e_c - e_0)


def trained_names(model: nn.Module, method: str) -> list[str]:
    """Names of the parameters that a variant trains: of linear and convolution layers in ``attn2`` (esd-x) or outside of it (esd-u)."""
    layers = [name for name, (module, _) in owners(model).items() if isinstance(module, nn.Linear | nn.Conv2d)]
    return [name for name in layers if ("attn2" in name) is (method == "esd-x")]


@dataclass(frozen=True)
class Turns:
    """Pools that take turns, iteration by iteration."""

    pools: tuple[Latents, ...]

    def batch(self, iteration: int, size: int) -> Latents:
        """A batch of one phrase."""
        return self.pools[iteration % len(self.pools)].batch(iteration, size)


def phrase_pools(model: Denoiser, concept: Concept, config: EsdConfig) -> Turns:
    """A pool for every phrase of the concept's negative prompt: rollouts of the frozen model, with targets that lead away from it."""
    texts = [part.strip() for part in concept.negative.split(",") if part.strip()]
    kept, roll, pools = model.encode(concept.preserve if config.preservation_weight else ()), partial(rollout, model, config=config), []
    for i, c in enumerate(model.encode(texts)):
        seed = mix_seed(mix_seed(config.seed, i), 0, 0)
        z, t = roll(config.rollouts, mix_seed(seed, 2, 0), c)
        e_c, e_0 = (predict(model, z, t, y, config.rollout_batch) for y in (c, model.empty))
        keep = preserved(model, kept, config, seed, roll)
        pools.append(Latents(z, t, repeat(c, len(z)), erase(e_c, e_0, config.target_guidance), keep=keep, seed=seed))
    return Turns(tuple(pools))


def _make(method: str, pipe: Any, concept: Concept, config: EsdConfig, *, resume: Any, **_: Any) -> Iterator[Any]:
    require_unet(pipe, method)
    model = open_model(pipe, config)
    if model.dtype != torch.float32:
        raise ValueError(f"dtype is {model.dtype}; steps of {config.lr:g} are lost in it: train {method} in float32 (--dtype float32)")
    found = owners(model.model)
    before = {name: getattr(*found[name]).detach() for name in trained_names(model.model, method)}
    header = header_of(pipe, method, concept, config, resolution=model.size)

    def make(after: Tensors) -> WeightEditAdapter:
        return WeightEditAdapter(header, {k: v - before[k].cpu() for k, v in after.items()})

    loss = score_loss(model, lambda values: swapped({found[k]: v for k, v in values.items()}), config.preservation_weight)
    return fit_tensors(model, before, lambda *_: phrase_pools(model, concept, config), loss, config, make, resume=resume, keep=False)


METHODS = {name: Method(name, ("safety",), EsdConfig, partial(_make, name), WeightEditAdapter) for name in ("esd-x", "esd-u")}
