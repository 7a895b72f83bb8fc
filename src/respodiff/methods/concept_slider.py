"""Concept slider (ECCV 2024): low-rank changes of attention, trained on RAM's objective and rollouts.

    min over A, B of mean (e_theta(z, neutral) - [e(neutral) + eta (e(target) - e(opposite))])^2,   theta: W + scale (alpha / rank) B A

Latents come from rollouts of the neutral prompt as RAM's do, with the slider in effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar, Literal

from respodiff.concepts.concept import Concept
from respodiff.methods.base import MakeHeader, Method
from respodiff.methods.lora import LoraConfig, LowRankAdapter, attached, fit_low_rank, relative_norm
from respodiff.pipelines.denoiser import Denoiser
from respodiff.steering.adapter import Adapter
from respodiff.training.config import COUNT, NOT_NEGATIVE, POSITIVE, OptimizerConfig, RolloutConfig, Rules, TrainConfig
from respodiff.training.diagnostics import directions, with_verdict
from respodiff.training.objectives import preservation_loss, response_loss
from respodiff.training.rollouts import Latents, Rollouts
from respodiff.training.state import Tensors, open_model


@dataclass(frozen=True)
class SliderConfig(OptimizerConfig, RolloutConfig, LoraConfig):
    """Settings of the optimiser, rollouts and low-rank changes, and of RAM's objective as in `TrainConfig`; eta is ``target_guidance``."""

    rules: ClassVar[Rules] = {"target_guidance": POSITIVE, "preservation_weight": NOT_NEGATIVE, "refresh_every": COUNT}
    batch: int = 12
    lr: float = 2e-3
    decay: Literal["constant", "sqrt"] = "sqrt"
    target_guidance: float = 2.0
    preservation_weight: float = 1.0
    refresh_every: int = 100


def score_loss(
    model: Denoiser, active: Callable[[Tensors], AbstractContextManager[None]], preservation: float = 0.0
) -> Callable[[Tensors, Latents], float]:
    """RAM's loss of other parameters theta, which ``active`` makes the model predict with."""

    def loss(values: Tensors, b: Latents) -> float:
        with active(values):  # backward inside: checkpointed layers run again
            found = response_loss(model(b.z, b.t, b.y).float(), b.e_tar)
            keep = preservation_loss(model(b.keep.z, b.keep.t, b.keep.y).float(), b.keep.e_tar, preservation) if b.keep else 0.0
            (found + keep).backward()
        return found.item()

    return loss


def rollouts(model: Denoiser, concept: Concept, config: SliderConfig) -> Callable[[int, Tensors], Latents]:
    """Makes RAM's pools, with the slider in effect on all rows of neutral rollouts."""
    names = [*(f.name for f in fields(RolloutConfig)), "target_guidance", "preservation_weight", "seed"]
    source = Rollouts(model, [concept], TrainConfig(**{name: getattr(config, name) for name in names}))
    return lambda number, values: source.pool(number, active=lambda: attached(model.model, values, config.lora_scale))[0]


def _make(pipe: Any, concept: Concept, config: SliderConfig, *, header: MakeHeader, resume: Any, **_: Any) -> Iterator[Any]:
    model = open_model(pipe, config)
    active, unet = partial(attached, model.model, scale=config.lora_scale), model.model
    loss, pools = score_loss(model, active, config.preservation_weight), rollouts(model, concept, config)

    def verdict(adapter: Adapter, values: Tensors) -> Adapter:
        size = partial(relative_norm, unet, values, config.lora_scale)
        return with_verdict(model, adapter, directions(concept), lambda _: active(values), size)

    return fit_low_rank(model, config, header, pools, loss, resume=resume, refresh_every=config.refresh_every, verdict=verdict)


METHODS = {"slider": Method("slider", ("fairness", "safety"), SliderConfig, _make, LowRankAdapter, resumes=True, transformers=True)}
