"""Training of RAM and SAM (paper, algorithm 1): a generator of step records, one code path for every preset.

r and s are the two tensors, e[d] the noise prediction with d added to h. Per step: latents z from reverse diffusion of the neutral
prompt through the steered model (no gradient), then an Adam step on r for L_resp, then one on s for lambda L_sem with the new r.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from respodiff._version import __version__
from respodiff.bottleneck import add_to_rows, eager, observed
from respodiff.concepts import Concept
from respodiff.config import TrainConfig
from respodiff.denoiser import Denoiser
from respodiff.module_file import ConceptModule, Header
from respodiff.objectives import preservation_loss, response_loss, semantic_loss
from respodiff.pipelines import config_digest, model_name, weights_digest
from respodiff.rollouts import Pool, Rollouts


@dataclass(frozen=True)
class StepRecord:
    """What one iteration did.

    Attributes:
        loss_ram, loss_sam: L_resp and lambda L_sem, means over the batch, before the update.
        unet_forwards: UNet evaluations per sample since the start, the unconditional half included; a re-run decoder counts as one.
        seconds: since the start, earlier parts of a resumed run included.
        ram, sam: both tensors (1, C, H, W) after this iteration, before gain and limit.
        h_norm: mean norm of h so far.
        state: live; ``state.tensors()``, to resume from, is of the last finished iteration at any moment, also after an interrupt.
    """

    iteration: int
    iterations: int
    loss_ram: float
    loss_sam: float
    unet_forwards: int
    seconds: float
    ram: Tensor
    sam: Tensor
    h_norm: float
    state: TrainState
    header: Header

    @property
    def module(self) -> ConceptModule:
        """The module as it is after this iteration, times the gain. The limit looks at RAM alone, or it would undo what SAM does."""
        gain, limit = self.header.train["gain"], self.header.train["limit"]
        ram, sam = (t.cpu()[0] for t in (self.ram, self.sam))
        if limit:
            gain = min(gain, limit * self.h_norm / max(ram.norm().item(), 1e-12))
        return ConceptModule(gain * ram, gain * sam, self.header)


class TrainState:
    """Both tensors (1, C, H, W), their Adam optimisers, and what a resumed run needs to go on bit by bit as if never stopped."""

    def __init__(self, config: TrainConfig, shape: tuple[int, int, int], device: torch.device) -> None:
        generator = torch.Generator().manual_seed(config.seed)
        std = config.init_range

        def start(trained: bool) -> Tensor:
            # Zero, or U(-range, range): the released code's Linear(10, .) initialisation has range 0.316.
            values = (torch.rand(1, *shape, generator=generator) * 2 - 1) * std * trained
            return values.to(device).requires_grad_()

        self.ram, self.sam = start(True), start(config.trains_sam)
        betas = config.betas
        self.adam_ram = torch.optim.Adam([self.ram], config.ram_lr, betas=betas)
        self.adam_sam = torch.optim.Adam([self.sam], config.sam_lr, betas=betas)
        self.iteration, self.forwards, self.seconds = 0, 0, 0.0
        self.h_norm = 0.0  # sum over iterations of the batch's mean norm of h
        self.round_start = self.delta(config)
        self.commit()

    def delta(self, config: TrainConfig) -> Tensor:
        """What steers the rollouts (1, C, H, W): r + s, or r alone."""
        return (self.ram + self.sam if config.rollout_modules == "both" else self.ram).detach().clone()

    def commit(self) -> None:
        """What `tensors` gives from now on. An iteration changes its parts one by one; a stop between them must not be saved."""
        out = {"ram": self.ram.detach(), "sam": self.sam.detach(), "round_start": self.round_start}
        out["counters"] = torch.tensor([self.iteration, self.forwards, self.seconds, self.h_norm], dtype=torch.float64)
        for name, adam in (("adam_ram", self.adam_ram), ("adam_sam", self.adam_sam)):
            for p in adam.state.values():
                out |= {f"{name}.{k}": v.detach() for k, v in p.items()}
        self._committed = {k: v.clone() for k, v in out.items()}

    def tensors(self) -> dict[str, Tensor]:
        """The state after the last finished iteration, as a flat dictionary for a safetensors file."""
        return {k: v.cpu().contiguous().clone() for k, v in self._committed.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` gave. Raises ValueError for anything else, and if the shapes differ."""
        if missing := {"ram", "sam", "round_start", "counters"} - set(tensors):
            raise ValueError(f"resume has no {sorted(missing)[0]!r}; give record.state.tensors() of an earlier run, or None to start anew")
        if tensors["ram"].shape != self.ram.shape:
            raise ValueError(f"unfinished run has tensors of shape {tuple(tensors['ram'].shape)}, this model needs {tuple(self.ram.shape)}")
        with torch.no_grad():
            self.ram.copy_(tensors["ram"])
            self.sam.copy_(tensors["sam"])
        self.round_start = tensors["round_start"].to(self.ram.device)
        iteration, forwards, self.seconds, self.h_norm = tensors["counters"].tolist()
        self.iteration, self.forwards = int(iteration), int(forwards)
        for name, adam, p in (("adam_ram", self.adam_ram, self.ram), ("adam_sam", self.adam_sam, self.sam)):
            values = {k.split(".")[1]: v for k, v in tensors.items() if k.startswith(f"{name}.")}
            if values:
                # Copies: Adam works in place, and the caller may resume from these tensors again.
                adam.state[p] = {k: v.clone() if k == "step" else v.to(p.device, copy=True) for k, v in values.items()}
        self.commit()


def train(
    pipe: Any, concept: Concept, config: TrainConfig | None = None, *, resume: dict[str, Tensor] | None = None
) -> Iterator[StepRecord]:
    """Train one concept; yields a record after every iteration, the last one holds the finished module.

    Resumed from a run that is already finished it yields that one record, with losses of NaN.

    Args:
        pipe: a diffusers pipeline (`load_pipeline`). Its UNet is frozen while the generator lives, and left as it was.
        concept: prompts to train on.
        config: settings; default ``TrainConfig.preset("default", concept.kind)``.
        resume: ``record.state.tensors()`` of an earlier run with the same settings.

    Raises:
        ValueError: for settings that the model or the concept cannot take, before anything is computed.
        RuntimeError: when the loss is no longer finite.
    """
    config = config or TrainConfig.preset("default", concept.kind)
    denoiser = Denoiser(pipe, config.height, config.width, config.rollout_guidance)
    if denoiser.dtype == torch.float16:
        raise ValueError(
            "dtype is float16, in which small gradients become zero; train in float32 or bfloat16 (pictures may be drawn in float16)"
        )
    state = TrainState(config, denoiser.shape if config.spatial == "yes" else (denoiser.shape[0], 1, 1), denoiser.device)
    if resume is not None:
        state.restore(resume)
    frozen = [p for p in denoiser.model.parameters() if p.requires_grad]
    for p in frozen:
        p.requires_grad_(False)
    try:
        with eager(denoiser.model):
            yield from _iterate(denoiser, config, state, Rollouts(denoiser, concept, config), _header(denoiser, concept, config))
    finally:
        for p in frozen:
            p.requires_grad_(True)


def fit(pipe: Any, concept: Concept, config: TrainConfig | None = None) -> ConceptModule:
    """Train to the end and give the module: `train` without the loop."""
    (last,) = deque(train(pipe, concept, config), maxlen=1)
    return last.module


def _iterate(denoiser: Denoiser, config: TrainConfig, state: TrainState, rollouts: Rollouts, header: Header) -> Iterator[StepRecord]:
    began = time.perf_counter() - state.seconds
    pool: Pool | None = None
    if state.iteration >= config.iterations:
        yield _record(config, state, header, (math.nan, math.nan))
    while state.iteration < config.iterations:
        i = state.iteration
        if i % config.refresh == 0:
            state.round_start = state.delta(config)
        if pool is None or i % config.refresh == 0:
            # A resumed run rebuilds the pool of its round from the same seed and the same tensors; its forwards are counted once.
            pool = rollouts.pool(i // config.refresh, state.round_start)
            state.forwards += pool.forwards if i % config.refresh == 0 else 0
        losses = step(denoiser, config, state, pool.batch(i, config.batch))
        state.iteration += 1
        state.seconds = time.perf_counter() - began
        if not all(map(math.isfinite, losses)):
            raise RuntimeError(
                f"the loss is {losses[0]} at iteration {state.iteration}: training diverged; lower ram_lr (now {config.ram_lr})"
            )
        state.commit()
        yield _record(config, state, header, losses)


def _record(config: TrainConfig, state: TrainState, header: Header, losses: tuple[float, float]) -> StepRecord:
    return StepRecord(
        iteration=state.iteration,
        iterations=config.iterations,
        loss_ram=losses[0],
        loss_sam=losses[1],
        unet_forwards=state.forwards,
        seconds=state.seconds,
        ram=state.ram.detach().clone(),
        sam=state.sam.detach().clone(),
        h_norm=state.h_norm / state.iteration,
        state=state,
        header=header,
    )


def step(denoiser: Denoiser, config: TrainConfig, state: TrainState, batch: dict[str, Tensor]) -> tuple[float, float]:
    """One iteration on a batch: RAM's Adam step, then SAM's. Gives (L_resp, lambda L_sem) before their updates.

    ``batch`` holds z, t, context, target and neutral, and what is to be preserved as keep_z, keep_t, keep_context and keep_plain, as
    `rollouts.Pool.batch` makes them.
    """
    rate = (1 - state.iteration / config.iterations) ** 0.5 if config.decay == "sqrt" else 1.0
    model, site = denoiser.model, denoiser.site
    prediction, decoder = observed(model, lambda: denoiser(batch["z"], batch["t"], batch), state.ram, site)
    state.forwards += len(prediction)
    # A module of one number a channel acts at every position: its length is to be compared with that of h at one of them.
    spread = (decoder.h[0].numel() / state.ram[0].numel()) ** 0.5
    state.h_norm += decoder.h.flatten(1).float().norm(dim=1).mean().item() / spread
    loss_ram = response_loss(prediction.float(), batch["target"])
    loss = loss_ram
    if "keep_z" in batch:
        keep = {k.removeprefix("keep_"): v for k, v in batch.items() if k.startswith("keep_")}
        kept, _ = observed(model, lambda: denoiser(keep["z"], keep["t"], keep), state.ram, site)
        state.forwards += len(kept)
        loss = loss + preservation_loss(kept.float(), keep["plain"], config.mu)
    _update(state.adam_ram, config.ram_lr * rate, loss)
    if not config.trains_sam:
        return loss_ram.item(), 0.0
    steered = decoder(add_to_rows(decoder.h, state.ram.detach() + state.sam, slice(None)))
    state.forwards += len(steered)
    loss_sam = semantic_loss(steered.float(), batch["neutral"], config.lam)
    _update(state.adam_sam, config.sam_lr * rate, loss_sam)
    return loss_ram.item(), loss_sam.item()


def _update(adam: torch.optim.Adam, lr: float, loss: Tensor) -> None:
    adam.param_groups[0]["lr"] = lr
    adam.zero_grad(set_to_none=True)
    loss.backward()
    adam.step()


def _header(denoiser: Denoiser, concept: Concept, config: TrainConfig) -> Header:
    return Header.of(
        concept,
        base_model=model_name(denoiser.pipe),
        base_digest=config_digest(denoiser.model),
        base_weights=weights_digest(denoiser.model),
        site=denoiser.site,
        resolution=denoiser.size,
        train=asdict(config),
        library=__version__,
    )
