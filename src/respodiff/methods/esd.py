"""ESD, erased stable diffusion (ICCV 2023): the UNet's own weights, trained to predict away from a phrase.

    mean (e_student(z, c) - [e(z, c) - eta (e(z, c) - e0)])^2,   z from rollouts of the frozen model for the phrase c

esd-x trains every linear and convolution layer of cross-attention (``attn2``), esd-u every other one. A concept's negative prompt may hold
several phrases, separated by commas: they take turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from respodiff.concepts.concept import Concept
from respodiff.methods.base import Classify, Method
from respodiff.methods.scores import score_step
from respodiff.methods.weight_edits import WeightEditAdapter, difference, owners, swapped
from respodiff.pipelines.denoiser import Denoiser
from respodiff.pipelines.registry import backbone
from respodiff.steering.adapter import require_unet
from respodiff.steering.serialization import Header
from respodiff.training.config import TrainConfig
from respodiff.training.learners import Parameters
from respodiff.training.objectives import Scores
from respodiff.training.respodiff import Task, train
from respodiff.training.rollouts import Pool, Rollouts, mix_seed


@dataclass(frozen=True)
class EsdConfig(TrainConfig):
    """`TrainConfig` with ``ram_lr`` for the weights and ``target_guidance`` for eta (the authors' current script: 200 iterations, Adam
    5e-5, eta 2, one latent an iteration; here batches from a pool)."""

    iterations: int = 200
    ram_lr: float = 5e-5
    target_guidance: float = 2.0
    preservation_weight: float = 0.0
    train_scale: float = 1.0
    max_relative_norm: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    decay: Literal["constant", "sqrt"] = "constant"
    batch: int = 4
    refresh_every: int = 1_000_000


def erase(scores: Scores, eta: float) -> Tensor:
    """e(c) - eta (e(c) - e0), the target for the phrase c, here in the role ``negative``."""
    return scores["negative"] - eta * (scores["negative"] - scores["empty"])


def trained_names(model: nn.Module, method: str) -> list[str]:
    """Names of the parameters that a variant trains: of linear and convolution layers in ``attn2`` (esd-x) or outside of it (esd-u)."""
    return [
        name
        for name, (module, _) in owners(model).items()
        if isinstance(module, nn.Linear | nn.Conv2d) and ("attn2" in name) is (method == "esd-x")
    ]


class Phrase(Rollouts):
    """Rollouts of the frozen model for one phrase, with targets that lead away from it."""

    def __init__(self, denoiser: Denoiser, concept: Concept, config: TrainConfig) -> None:
        super().__init__(denoiser, concept, replace(config, objective="shift", rollout_prompts="neutral"))
        self.target, self.needs = erase, ("empty", "negative")

    def steering(self, delta: Any, rows: slice) -> AbstractContextManager[None]:
        """Nothing: the frozen model."""
        return nullcontext()


@dataclass(frozen=True)
class Turns:
    """Pools that take turns, iteration by iteration."""

    pools: tuple[Pool, ...]

    @property
    def forwards(self) -> int:
        """UNet evaluations that all pools took."""
        return sum(p.forwards for p in self.pools)

    def batch(self, iteration: int, size: int) -> dict[str, Tensor]:
        """A batch of one phrase."""
        return self.pools[iteration % len(self.pools)].batch(iteration, size)


class Phrases:
    """One `Phrase` for every phrase of the concept."""

    def __init__(self, denoiser: Denoiser, concept: Concept, config: TrainConfig) -> None:
        texts = [part.strip() for part in concept.negative.split(",") if part.strip()]
        single = [replace(concept, neutral=text, target=text, negative=text) for text in texts]
        self.parts = [Phrase(denoiser, c, replace(config, seed=mix_seed(config.seed, i))) for i, c in enumerate(single)]

    def pool(self, number: int, delta: Any) -> Turns:
        """A pool of every phrase."""
        return Turns(tuple(part.pool(number, None) for part in self.parts))


def _learner(method: str, denoiser: Denoiser, _concept: Concept, config: Any) -> Parameters:
    found, names = owners(denoiser.model), trained_names(denoiser.model, method)
    before = {name: getattr(*found[name]) for name in names}

    def made(header: Header, after: dict[str, Tensor]) -> WeightEditAdapter:
        return WeightEditAdapter(header, difference({k: v.detach().cpu() for k, v in before.items()}, after))

    return Parameters(config, before, made, live=True)


def _make(
    method: str, pipe: Any, concept: Concept, config: Any, *, classify: Classify | None, resume: dict[str, Tensor] | None
) -> Iterator[Any]:
    require_unet(pipe, method)
    found = owners(backbone(pipe))
    if backbone(pipe).dtype != torch.float32:
        raise ValueError(
            f"dtype is {backbone(pipe).dtype}; steps of {config.ram_lr:g} are lost in it: train {method} in float32 (--dtype float32)"
        )
    step = score_step(lambda _model, values: swapped({found[k]: v for k, v in values.items()}))
    return train(pipe, concept, config, resume=resume, task=Task(method, partial(_learner, method), Phrases, step, {"site": ""}))


METHODS = {name: Method(name, ("safety",), EsdConfig, partial(_make, name), WeightEditAdapter) for name in ("esd-x", "esd-u")}
