"""What the methods share that are trained on noise predictions by another parameterisation than RespoDiff's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from respodiff.pipelines.denoiser import Denoiser
from respodiff.training.learners import Parameters
from respodiff.training.objectives import preservation_loss, response_loss
from respodiff.training.respodiff import adam_step, learning_rate

Active = Callable[[Any, Mapping[str, Tensor]], AbstractContextManager[Any]]
"""(model, trained tensors) -> what makes the model predict with them."""


def score_step(active: Active) -> Callable[[Denoiser, Any, Parameters, dict[str, Tensor]], tuple[float, float]]:
    """One iteration as RAM's: mean (e_theta(z, y) - target)^2, plus mu times preservation, with other parameters theta."""

    def step(denoiser: Denoiser, config: Any, learner: Parameters, batch: dict[str, Tensor]) -> tuple[float, float]:
        with active(denoiser.model, learner.values):  # backward inside: checkpointed layers run again
            prediction = denoiser(batch["z"], batch["t"], batch)
            learner.forwards += len(prediction)
            found = response_loss(prediction.float(), batch["target"])
            loss = found
            if "keep_z" in batch:
                keep = {k.removeprefix("keep_"): v for k, v in batch.items() if k.startswith("keep_")}
                kept = denoiser(keep["z"], keep["t"], keep)
                learner.forwards += len(kept)
                loss = loss + preservation_loss(kept.float(), keep["plain"], config.preservation_weight)
            adam_step(learner.adam, config.ram_lr * learning_rate(config, learner.iteration), loss)
        return found.item(), 0.0

    return step
