"""Training of RAM and SAM (paper, algorithm 1): a generator of step records, one code path for every preset.

r and s are the two tensors, e[d] the noise prediction with d added to h. Per step: latents z from reverse diffusion of the neutral
prompt through the steered model (no gradient), then an Adam step on r for L_resp, then one on s for lambda L_sem with the new r.
The loop is shared: a `Task` puts other parameters, examples and losses in the place of RespoDiff's (`respodiff.methods.registry`).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from respodiff._version import __version__
from respodiff.concepts.concept import Concept
from respodiff.pipelines.bottleneck import add_to_rows, eager, frozen, run_with_decoder
from respodiff.pipelines.denoiser import Denoiser
from respodiff.pipelines.loading import config_digest, model_name, weights_digest
from respodiff.steering.module import ConceptModule
from respodiff.steering.serialization import Header
from respodiff.training.config import TrainConfig
from respodiff.training.learners import Examples, Learner, Source
from respodiff.training.objectives import preservation_loss, response_loss, semantic_loss
from respodiff.training.rollouts import Rollouts
from respodiff.training.state import StepRecord, TrainState

__all__ = ["RESPODIFF", "StepRecord", "Task", "TrainState", "fit", "learning_rate", "step", "train"]


@dataclass(frozen=True)
class Task:
    """What a method gives the loop; the defaults are RespoDiff's own.

    Attributes:
        method: name in `respodiff.methods.registry`, for the header of what is trained.
        learner: (denoiser, concept, settings) -> what is trained. source: the same -> where its examples come from.
        step: one iteration on a batch; gives two losses, of which the second may be 0.
        header: what differs in the header of what is trained from that of a module of the concept.
    """

    method: str = "respodiff"
    learner: Callable[[Denoiser, Concept, Any], Learner] | None = None
    source: Callable[[Denoiser, Concept, Any], Source] = Rollouts
    step: Callable[[Denoiser, Any, Any, dict[str, Any]], tuple[float, float]] | None = None
    header: Mapping[str, Any] = field(default_factory=dict)


RESPODIFF = Task()


def train(
    pipe: Any, concept: Concept, config: TrainConfig | None = None, *, resume: dict[str, Tensor] | None = None, task: Task = RESPODIFF
) -> Iterator[Any]:
    """Train one concept; yields a record after every iteration, the last one holds the finished module.

    Resumed from a run that is already finished it yields that one record, with losses of NaN.

    Args:
        pipe: a diffusers pipeline (`load_pipeline`). Its UNet is frozen while the generator lives, and left as it was.
        concept: prompts to train on.
        config: settings; default ``TrainConfig.preset("default", concept.kind)``.
        resume: ``record.state.tensors()`` of an earlier run with the same settings.
        task: what is trained on what; by default RAM and SAM, whose records are `StepRecord`s.

    Raises:
        ValueError: for settings that the model or the concept cannot take, before anything is computed.
        RuntimeError: when the loss is no longer finite.
    """
    config = config or TrainConfig.preset("default", concept.kind)
    denoiser = Denoiser(pipe, config.height, config.width, config.rollout_guidance)
    if denoiser.dtype == torch.float16:
        raise ValueError(
            "dtype is float16, in which small gradients become zero; train in float32 or bfloat16 (images may be drawn in float16)"
        )
    state = task.learner(denoiser, concept, config) if task.learner else _tensors(denoiser, config)
    if resume is not None:
        state.restore(resume)
    with frozen(denoiser.model), eager(denoiser.model):
        header = _header(denoiser, concept, config, task)
        yield from _iterate(denoiser, config, state, task.source(denoiser, concept, config), header, task)


def fit(pipe: Any, concept: Concept, config: TrainConfig | None = None) -> ConceptModule:
    """Train to the end and give the module: `train` without the loop."""
    (last,) = deque(train(pipe, concept, config), maxlen=1)
    module: ConceptModule = last.module
    return module


def _tensors(denoiser: Denoiser, config: TrainConfig) -> TrainState:
    return TrainState(config, (denoiser.shape[0], 1, 1) if config.flat else denoiser.shape, denoiser.device)


def _iterate(denoiser: Denoiser, config: TrainConfig, state: Learner, source: Source, header: Header, task: Task) -> Iterator[Any]:
    began = time.perf_counter() - state.seconds
    pool: Examples | None = None
    if state.iteration >= config.iterations:
        yield state.record(config, header, (math.nan, math.nan))
    while state.iteration < config.iterations:
        number, since = divmod(state.iteration, config.refresh_every)
        if since == 0:
            state.begin(config)
        if pool is None or since == 0:  # a resumed run draws its pool again; the forwards are counted already
            pool = source.pool(number, state.round_start)
            state.forwards += pool.forwards if since == 0 else 0
        losses = (task.step or step)(denoiser, config, state, pool.batch(state.iteration, config.batch))  # type: ignore[arg-type]  # its own learner
        state.iteration += 1
        state.seconds = time.perf_counter() - began
        if not all(map(math.isfinite, losses)):
            raise RuntimeError(
                f"the loss is {losses[0]} at iteration {state.iteration}: training diverged; lower ram_lr (now {config.ram_lr})"
            )
        state.commit()
        yield state.record(config, header, losses)


def step(denoiser: Denoiser, config: TrainConfig, state: TrainState, batch: dict[str, Tensor]) -> tuple[float, float]:
    """One iteration on a batch: RAM's Adam step, then SAM's. Gives (L_resp, lambda L_sem) before their updates.

    ``batch`` holds z, t, context, target and neutral, and what is to be preserved as keep_z, keep_t, keep_context and keep_plain, as
    `rollouts.Pool.batch` makes them.
    """
    rate = learning_rate(config, state.iteration)
    model, site, ram = denoiser.model, denoiser.site, state.ram
    prediction, decoder = run_with_decoder(model, lambda: denoiser(batch["z"], batch["t"], batch), ram, site)
    state.forwards += len(prediction)
    # A module of one number a channel acts at every position: its length is to be compared with that of h at one of them.
    spread = (decoder.h[0].numel() / ram[0].numel()) ** 0.5
    state.h_norm += decoder.h.flatten(1).float().norm(dim=1).mean().item() / spread
    loss_ram = response_loss(prediction.float(), batch["target"])
    loss = loss_ram
    if "keep_z" in batch:
        keep = {k.removeprefix("keep_"): v for k, v in batch.items() if k.startswith("keep_")}
        kept, _ = run_with_decoder(model, lambda: denoiser(keep["z"], keep["t"], keep), ram, site)
        state.forwards += len(kept)
        loss = loss + preservation_loss(kept.float(), keep["plain"], config.preservation_weight)
    adam_step(state.adam_ram, config.ram_lr * rate, loss)
    if not config.trains_sam:
        return loss_ram.item(), 0.0
    steered = decoder(add_to_rows(decoder.h, ram.detach() + state.sam, slice(None)))
    state.forwards += len(steered)
    loss_sam = semantic_loss(steered.float(), batch["neutral"], config.sam_weight)
    adam_step(state.adam_sam, config.sam_lr * rate, loss_sam)
    return loss_ram.item(), loss_sam.item()


def learning_rate(config: TrainConfig, iteration: int) -> float:
    """Share of the learning rate at an iteration."""
    return (1 - iteration / config.iterations) ** 0.5 if config.decay == "sqrt" else 1.0


def adam_step(adam: torch.optim.Optimizer, lr: float, loss: Tensor) -> None:
    for group in adam.param_groups:
        group["lr"] = lr
    adam.zero_grad(set_to_none=True)
    loss.backward()
    adam.step()


def _header(denoiser: Denoiser, concept: Concept, config: TrainConfig, task: Task) -> Header:
    header = Header.of(
        concept,
        base_model=model_name(denoiser.pipe),
        base_digest=config_digest(denoiser.model),
        base_weights=weights_digest(denoiser.model),
        site=denoiser.site,
        resolution=denoiser.size,
        train=asdict(config),
        library=__version__,
        method=task.method,
    )
    return replace(header, **task.header)
