"""What a training loop trains: any named tensors of a method, and the records of it; RespoDiff's own two are in `states`.

A learner holds its tensors, their optimiser and counters, and can be stopped and resumed bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from respodiff.steering.serialization import Header
from respodiff.training.config import TrainConfig


class Learner(Protocol):
    """What the loop of `respodiff.training.respodiff` needs of a learner."""

    iteration: int
    forwards: int
    seconds: float
    rounds: list[Any]
    """What the source of examples was told of the state at the starts of the latest rounds, the newest last."""

    def begin(self, config: TrainConfig) -> None:
        """A round starts: `rounds` gets what is trained as it is now, copied."""

    def commit(self) -> None:
        """What `tensors` gives from now on."""

    def tensors(self) -> dict[str, Tensor]:
        """The state after the last finished iteration."""

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` gave."""

    def record(self, config: TrainConfig, header: Header, losses: tuple[float, float]) -> Any:
        """What the last iteration did; it has iteration, iterations, loss, unet_forwards, seconds, state and module."""


@dataclass(frozen=True)
class Record:
    """What one iteration of another method did, as `StepRecord`: ``made`` gives the adapter as it is after it."""

    iteration: int
    iterations: int
    loss: float
    unet_forwards: int
    seconds: float
    state: Any
    made: Callable[[], Any]

    @property
    def module(self) -> Any:
        """The adapter after this iteration."""
        return self.made()


class Parameters:
    """Named tensors with one Adam.

    Args:
        config: learning rate (``ram_lr``) and betas. tensors: where they start.
        made: (header, tensors on the CPU) -> adapter. decay: AdamW's weight decay.
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
        self.begin(config)
        self.commit()

    def delta(self, config: TrainConfig) -> dict[str, Tensor]:
        """The tensors, copied; nothing where they are live."""
        return {} if self.live else {k: v.detach().clone() for k, v in self.values.items()}

    def begin(self, config: TrainConfig) -> None:
        """A round starts with the tensors as they are."""
        self.rounds = [self.delta(config)]

    def commit(self) -> None:
        """What `tensors` gives from now on."""
        if self.live:
            return
        out = {f"value.{k}": v.detach() for k, v in self.values.items()} | {f"round.{k}": v for k, v in self.rounds[-1].items()}
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
        self.rounds = [{k: tensors[f"round.{k}"].to(v.device) for k, v in self.values.items()}]
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
