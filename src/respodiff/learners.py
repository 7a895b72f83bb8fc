"""What a training loop trains: the two tensors of RespoDiff, or any named tensors of another method; and the records of it.

A learner holds its tensors, their optimiser and counters, and can be stopped and resumed bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from respodiff.config import TrainConfig
from respodiff.module_file import ConceptModule, Header


class Learner(Protocol):
    """What the loop of `respodiff.training` needs of a learner."""

    iteration: int
    forwards: int
    seconds: float
    round_start: Any

    def delta(self, config: TrainConfig) -> Any:
        """What the source of examples is told of the state, copied."""

    def commit(self) -> None:
        """What `tensors` gives from now on."""

    def tensors(self) -> dict[str, Tensor]:
        """The state after the last finished iteration."""

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` gave."""

    def record(self, config: TrainConfig, header: Header, losses: tuple[float, float]) -> Any:
        """What the last iteration did; it has iteration, iterations, loss, unet_forwards, seconds, state and module."""


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
    def loss(self) -> float:
        """L_resp, by the name that the records of all methods have."""
        return self.loss_ram

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


@dataclass(frozen=True)
class Record:
    """What one iteration of another method did, as `StepRecord`: ``made`` gives the artefact as it is after it."""

    iteration: int
    iterations: int
    loss: float
    unet_forwards: int
    seconds: float
    state: Any
    made: Callable[[], Any]

    @property
    def module(self) -> Any:
        """The artefact after this iteration."""
        return self.made()


class Parameters:
    """Named tensors with one Adam.

    Args:
        config: learning rate (``ram_lr``) and betas. tensors: where they start.
        made: (header, tensors on the CPU) -> artefact. decay: AdamW's weight decay.
        live: keep no copies, for tensors of the size of a model: nothing can be resumed, and every record shows the newest state.
    """

    def __init__(
        self,
        config: TrainConfig,
        tensors: Mapping[str, Tensor],
        made: Callable[[Header, dict[str, Tensor]], Any],
        decay: float = 0.0,
        live: bool = False,
    ) -> None:
        self.values = {k: v.detach().clone().requires_grad_() for k, v in tensors.items()}
        self.adam = torch.optim.AdamW(list(self.values.values()), config.ram_lr, betas=config.betas, weight_decay=decay)
        self.iteration, self.forwards, self.seconds = 0, 0, 0.0
        self.made, self.live = made, live
        self.round_start = self.delta(config)
        self.commit()

    def delta(self, config: TrainConfig) -> dict[str, Tensor]:
        """The tensors, copied; nothing where they are live."""
        return {} if self.live else {k: v.detach().clone() for k, v in self.values.items()}

    def commit(self) -> None:
        """What `tensors` gives from now on."""
        if self.live:
            return
        out = {f"value.{k}": v.detach() for k, v in self.values.items()} | {f"round.{k}": v for k, v in self.round_start.items()}
        out["counters"] = torch.tensor([self.iteration, self.forwards, self.seconds], dtype=torch.float64)
        for name, p in self.values.items():
            out |= {f"adam.{k}.{name}": v.detach() for k, v in self.adam.state.get(p, {}).items()}
        self._committed = {k: v.clone() for k, v in out.items()}

    def tensors(self) -> dict[str, Tensor]:
        """The state after the last finished iteration, as a flat dictionary for a safetensors file; empty where they are live."""
        return {} if self.live else {k: v.cpu().contiguous().clone() for k, v in self._committed.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` gave; ValueError for anything else."""
        if self.live:
            raise ValueError("resume is given, but this method trains weights of the model, whose state is not kept; train anew")
        wanted = {"counters", *(f"{part}.{k}" for part in ("value", "round") for k in self.values)}
        if missing := wanted - set(tensors):
            raise ValueError(f"resume has no {sorted(missing)[0]!r}; give record.state.tensors() of an earlier run, or None to start anew")
        for name, p in self.values.items():
            with torch.no_grad():
                p.copy_(tensors[f"value.{name}"])
            kept = {k.split(".")[1]: v for k, v in tensors.items() if k.startswith("adam.") and k.split(".", 2)[2] == name}
            if kept:
                self.adam.state[p] = {k: v.clone() if k == "step" else v.to(p.device, copy=True) for k, v in kept.items()}
        self.round_start = {k: tensors[f"round.{k}"].to(v.device) for k, v in self.values.items()}
        iteration, forwards, self.seconds = tensors["counters"].tolist()
        self.iteration, self.forwards = int(iteration), int(forwards)
        self.commit()

    def record(self, config: TrainConfig, header: Header, losses: tuple[float, float]) -> Record:
        """What the last iteration did."""

        def copied() -> dict[str, Tensor]:
            return {k: v.detach().cpu().float().clone() for k, v in self.values.items()}

        values = {} if self.live else copied()
        more = (self.iteration, config.iterations, losses[0], self.forwards, self.seconds, self)
        return Record(*more, made=lambda: self.made(header, values or copied()))
