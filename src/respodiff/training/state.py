"""The state of RespoDiff's own training: RAM and SAM, and its records."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from respodiff.steering.module import ConceptModule
from respodiff.steering.serialization import Header
from respodiff.training.config import TrainConfig


@dataclass(frozen=True)
class StepRecord:
    """What one iteration did.

    Attributes:
        loss_ram, loss_sam: L_resp and lambda L_sem, means over the batch, before the update.
        unet_forwards: UNet evaluations per sample since the start, the unconditional half included; a re-run decoder counts as one.
        seconds: since the start, earlier parts of a resumed run included.
        ram, sam: r and s (1, C, H, W) after this iteration, before train_scale and max_relative_norm.
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
    def loss(self) -> float:
        """L_resp, by the name that the records of all methods have."""
        return self.loss_ram

    @property
    def module(self) -> ConceptModule:
        """The module as it is after this iteration, times the training scale. The limit looks at RAM alone, or it would undo what SAM does."""
        train_scale, limit = self.header.train["train_scale"], self.header.train["max_relative_norm"]
        ram, sam = self.ram[0].cpu(), self.sam[0].cpu()
        if limit:
            train_scale = min(train_scale, limit * self.h_norm / max(ram.norm().item(), 1e-12))
        return ConceptModule(ram * train_scale, sam * train_scale, replace(self.header, h_norm=self.h_norm))


class TrainState:
    """RAM and SAM, their Adam optimisers, and what a resumed run needs to go on bit by bit as if never stopped.

    ``shape`` (C, H, W) is that of r and s.
    """

    def __init__(self, config: TrainConfig, shape: tuple[int, int, int], device: torch.device) -> None:
        generator = torch.Generator().manual_seed(config.seed)

        def start(trained: bool) -> Tensor:
            # Zero, or U(-range, range): the released code's Linear(10, .) initialisation has range 0.316.
            values = (torch.rand(1, *shape, generator=generator) * 2 - 1) * config.init_range * trained
            return values.to(device).requires_grad_()

        self.ram, self.sam = start(True), start(config.trains_sam)
        self.adam_ram, self.adam_sam = (
            torch.optim.Adam([p], lr, betas=config.betas) for p, lr in ((self.ram, config.ram_lr), (self.sam, config.sam_lr))
        )
        self._adams = (("adam_ram", self.adam_ram, self.ram), ("adam_sam", self.adam_sam, self.sam))
        self.iteration, self.forwards, self.seconds = 0, 0, 0.0
        self.h_norm = 0.0  # sum over iterations of the batch's mean norm of h
        self.begin(config)
        self.commit()

    def delta(self, config: TrainConfig) -> Tensor:
        """What steers rollouts as it is now: r + s, or r alone."""
        return (self.ram + self.sam if config.rollout_modules == "both" else self.ram).detach().clone()

    def begin(self, config: TrainConfig) -> None:
        """A round starts: its rollouts are steered by what is trained as it is now."""
        self.round_start = self.delta(config)

    def record(self, config: TrainConfig, header: Header, losses: tuple[float, float]) -> StepRecord:
        """What the last iteration did."""
        return StepRecord(
            iteration=self.iteration,
            iterations=config.iterations,
            loss_ram=losses[0],
            loss_sam=losses[1],
            unet_forwards=self.forwards,
            seconds=self.seconds,
            ram=self.ram.detach().clone(),
            sam=self.sam.detach().clone(),
            h_norm=self.h_norm / self.iteration,
            state=self,
            header=header,
        )

    def commit(self) -> None:
        """What `tensors` gives from now on. An iteration changes its parts one by one; a stop between them must not be saved."""
        out = {"ram": self.ram.detach(), "sam": self.sam.detach(), "round_start": self.round_start}
        out["counters"] = torch.tensor([self.iteration, self.forwards, self.seconds, self.h_norm], dtype=torch.float64)
        for name, adam, p in self._adams:
            out |= {f"{name}.{k}": v.detach() for k, v in adam.state.get(p, {}).items()}
        self._committed = {k: v.clone() for k, v in out.items()}

    def tensors(self) -> dict[str, Tensor]:
        """The state after the last finished iteration, as a flat dictionary for a safetensors file."""
        return {k: v.cpu().contiguous().clone() for k, v in self._committed.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` gave. Raises ValueError for anything else, and if the shapes differ."""
        if missing := {"ram", "sam", "round_start", "counters"} - set(tensors):
            raise ValueError(f"resume has no {sorted(missing)[0]!r}; give record.state.tensors() of an earlier run, or None to start anew")
        for name, p in (("ram", self.ram), ("sam", self.sam)):
            if tensors[name].shape != p.shape:
                raise ValueError(f"checkpoint has tensors of shape {tuple(tensors[name].shape)}, this model needs {tuple(p.shape)}")
            with torch.no_grad():
                p.copy_(tensors[name])
        self.round_start = tensors["round_start"].to(self.ram.device)
        iteration, forwards, self.seconds, self.h_norm = tensors["counters"].tolist()
        self.iteration, self.forwards = int(iteration), int(forwards)
        for name, adam, p in self._adams:
            kept = {k: tensors[f"{name}.{k}"] for k in ("step", "exp_avg", "exp_avg_sq") if f"{name}.{k}" in tensors}
            if kept:
                # Copies: Adam works in place, and the caller may resume from these tensors again.
                adam.state[p] = {k: v.clone() if k == "step" else v.to(p.device, copy=True) for k, v in kept.items()}
        self.commit()
