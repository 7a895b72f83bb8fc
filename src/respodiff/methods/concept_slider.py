"""Concept slider (ECCV 2024): low-rank changes of attention, trained on the same objective as RAM by the same loop.

    min over A, B of mean (e_theta(z, neutral) - [e(neutral) + eta (e(target) - e(opposite))])^2

The objective is RAM's ``contrast`` with eta = ``target_guidance``; latents come from the same rollouts, with the slider in effect. The
nearest relative of RespoDiff: only what is trained differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from respodiff.concepts.concept import Concept
from respodiff.methods.base import Classify, Method
from respodiff.methods.lora import WHERE, LowRankAdapter, attached, start
from respodiff.methods.scores import score_step
from respodiff.pipelines.denoiser import Denoiser
from respodiff.steering.adapter import require_unet
from respodiff.training.config import TrainConfig
from respodiff.training.learners import Parameters
from respodiff.training.respodiff import Task, train
from respodiff.training.rollouts import Rollouts


@dataclass(frozen=True)
class SliderConfig(TrainConfig):
    """`TrainConfig` with ``ram_lr`` for A and B, ``target_guidance`` for eta, and

    Attributes:
        rank, alpha: of the low-rank changes; they act times alpha / rank (the authors': 4 and 1).
        where: layers that are changed: ``all`` attention, ``self`` or ``cross``.
        decay_weights: AdamW's weight decay.
    """

    iterations: int = 200
    ram_lr: float = 2e-3
    target_guidance: float = 2.0
    train_scale: float = 1.0
    max_relative_norm: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    refresh_every: int = 100
    rank: int = 4
    alpha: float = 1.0
    where: Literal["all", "self", "cross"] = "all"
    decay_weights: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"rank is {self.rank!r}; allowed: a whole number of at least 1")
        if self.alpha <= 0 or self.decay_weights < 0:
            raise ValueError(f"alpha is {self.alpha!r} and decay_weights {self.decay_weights!r}; allowed: above 0, and at least 0")
        assert self.where in WHERE


class LoraRollouts(Rollouts):
    """Rollouts of the neutral prompt with the slider in effect on all rows."""

    def steering(self, delta: Any, rows: slice) -> AbstractContextManager[None]:
        """A and B in effect on all rows, not on ``rows`` alone; None is nothing."""
        return attached(self.denoiser.model, delta, scale(self.config)) if delta else nullcontext()


def scale(config: Any) -> float:
    """What B A x is multiplied by at scale 1."""
    return float(config.alpha / config.rank)


def learner(denoiser: Denoiser, _concept: Concept, config: Any) -> Parameters:
    """A and B of every layer, with AdamW."""
    return Parameters(config, start(denoiser.model, config.rank, config.where, config.seed), LowRankAdapter, config.decay_weights)


def _make(pipe: Any, concept: Concept, config: Any, *, classify: Classify | None, resume: dict[str, Tensor] | None) -> Iterator[Any]:
    require_unet(pipe, "slider")
    step = score_step(lambda model, values: attached(model, values, scale(config)))
    task = Task("slider", learner, LoraRollouts, step, {"site": ""})
    return train(pipe, concept, config, resume=resume, task=task)


METHODS = {"slider": Method("slider", ("fairness", "safety"), SliderConfig, _make, LowRankAdapter, resumes=True)}
