"""One training loop for every network of the recipe: a budget in seconds or steps, a progress line, and a state that a stopped run goes on from.

The learning rate rises over a warm-up and falls along a cosine to zero. A budget in seconds becomes a number of steps when the warm-up is
over, from the rate seen so far; that number is kept in the state, so that a resumed run walks the same curve. If the machine grows slower,
the number is lowered to what fits. All randomness comes from one generator whose state is kept too: on the CPU a resumed run of one
process ends with the same bits as an undisturbed one of the same number of steps.

On two cores two processes of one thread train on 1.4 to 1.7 times as many images a second as one process of two threads: started by
``python -m torch.distributed.run``, every process draws batches of its own, and every fourth step gives each the mean of their weights. The
first keeps the state, from which all of them go on.
"""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from recipes.embedded_model.muon import is_matrix, muon

NAMES = ("optimiser", "muon")
"""Beginning of the names of the optimisers' tensors in a state: AdamW's, then Muon's."""
SLOW_STEPS = 5
"""First steps of a sitting that say nothing of its rate."""

Update = Callable[[torch.Generator], torch.Tensor]
"""Draws a batch and gives its loss, a scalar."""


def say(text: str) -> None:
    """One line of progress with the time of day, of the first process."""
    if not rank():
        print(time.strftime("%H:%M:%S"), text, flush=True)


def rank() -> int:
    """This process's place among those that train together; 0 for the first and for one alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def share(weights: list[torch.nn.Parameter]) -> None:
    """Give every process the mean of their weights; nothing where one trains alone.

    Raises:
        FloatingPointError: a weight of one of them is no number any more.
    """
    if not dist.is_initialized():
        return
    with torch.no_grad():
        flat = torch.cat([p.flatten() for p in weights])
        dist.all_reduce(flat)
        if not flat.isfinite().all():
            raise FloatingPointError("a weight is no number any more; lower lr in config.toml and run it again")
        for weight, mean in zip(weights, (flat / dist.get_world_size()).split([p.numel() for p in weights]), strict=True):
            weight.copy_(mean.view_as(weight))


def rate(step: int, total: int | None, warmup: int) -> float:
    """Share of the highest learning rate at a step.

    >>> [round(rate(s, 10, 2), 2) for s in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.04]
    """
    if step < warmup or total is None:
        return min(1.0, (step + 1) / warmup)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


@dataclass
class Loop:
    """Trains one network.

    Attributes:
        name: of the stage, for the progress line. path: the file of the state.
        lr: highest learning rate. warmup: steps. seconds: wall-clock budget; or steps: how many, whatever the time.
        only: beginning of the names of the weights that are trained; empty: all of them. The others stay as they are.
        slow: beginning of names of weights that learn more slowly, and their share of the rate.
        muon: update matrices and convolutions by `torch.optim.Muon`, the rest by AdamW; AdamW for all otherwise.
        ema: decay of the running average of the weights that the network ends with; 0 for none. save_every: seconds between states.
    """

    name: str
    path: Path
    lr: float
    warmup: int = 200
    seconds: float = 0.0
    steps: int = 0
    seed: int = 0
    ema: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    decay: float = 0.01
    only: str = ""
    slow: tuple[str, float] = ("", 1.0)
    muon: bool = False
    save_every: float = 120.0
    total: int | None = field(init=False, default=None)
    step: int = field(init=False, default=0)
    used: float = field(init=False, default=0.0)

    def run(self, network: torch.nn.Module, update: Update) -> torch.nn.Module:
        """Train `network` in place, from its state file if there is one; it ends in eval mode.

        Raises:
            ValueError: neither steps nor seconds, seconds for several processes, or a state that does not fit the network.
            FloatingPointError: the loss is no number any more; the last state is kept.
            OSError: the disk is full; the last state is kept.
        """
        if not (self.seconds > 0 or self.steps > 0):
            raise ValueError(f"stage {self.name} has no budget; give steps or seconds above 0 in config.toml")
        if dist.is_initialized() and not self.steps:
            raise ValueError(f"stage {self.name} is trained by several processes: give it steps in config.toml, and --minutes 0")
        self.total = self.steps or None
        for name, weight in network.named_parameters():
            weight.requires_grad_(weight.requires_grad and name.startswith(self.only))
        weights = [p for p in network.parameters() if p.requires_grad]
        average = [p.detach().clone() for p in weights] if self.ema else []
        optimisers = self._optimisers(network)
        generator = torch.Generator().manual_seed(self.seed)
        self._restore(network, optimisers, average, generator)
        if dist.is_initialized():
            dist.barrier()  # all go on from one state, before the first process writes another
        if rank():
            generator.manual_seed(self.seed + 1000 * rank() + self.step)
        first = self.step
        network.train()
        began, saved = time.perf_counter() - self.used, time.perf_counter()
        mark = None  # where this sitting's rate is taken from: its first steps compile and warm caches
        while self.total is None or self.step < self.total:
            loss = self._step(optimisers, update, generator, weights, average)
            self.used = time.perf_counter() - began
            if mark is None and self.step >= first + SLOW_STEPS:
                mark = (self.step, self.used)
            if self.step == self.warmup or time.perf_counter() - saved > self.save_every or self.step == self.total:
                seen = self._checked(loss)
                self._fit(mark)
                if not rank():
                    self._save(network, optimisers, average, generator)
                    self._say(seen, mark)
                saved = time.perf_counter()
        with torch.no_grad():
            for weight, mean in zip(weights, average, strict=False):
                weight.copy_(mean)
        return network.eval()

    def _groups(self, network: torch.nn.Module) -> list[dict[str, Any]]:
        """Weights by their share of the learning rate."""
        start, share = self.slow
        named = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
        slow = [p for n, p in named if start and n.startswith(start)]
        fast = [p for n, p in named if not (start and n.startswith(start))]
        return [{"params": some, "share": factor} for some, factor in ((fast, 1.0), (slow, share)) if some]

    def _optimisers(self, network: torch.nn.Module) -> list[torch.optim.Optimizer]:
        """AdamW, and where `muon` is set one for the matrices; by the `NAMES` of their states."""
        groups = self._groups(network)
        matrices = [group | {"params": [w for w in group["params"] if self.muon and is_matrix(w)]} for group in groups]
        groups = [group | {"params": [w for w in group["params"] if not (self.muon and is_matrix(w))]} for group in groups]
        adam = torch.optim.AdamW(groups, self.lr, betas=self.betas, weight_decay=self.decay, fused=True)
        return [adam, muon(matrices, self.lr, self.decay)] if self.muon else [adam]

    def _step(
        self,
        optimisers: list[torch.optim.Optimizer],
        update: Update,
        generator: torch.Generator,
        weights: list[torch.nn.Parameter],
        average: list[torch.Tensor],
    ) -> torch.Tensor:
        """One update of the weights and, every fourth time, their mean over processes and the running average."""
        for group in (group for optimiser in optimisers for group in optimiser.param_groups):
            group["lr"] = self.lr * group["share"] * rate(self.step, self.total, self.warmup)
        for weight in weights:
            weight.grad = None
        loss = update(generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for optimiser in optimisers:
            optimiser.step()
        self.step += 1
        if self.step % 4 == 0 or self.step == self.total:
            share(weights)
        if average and self.step % 4 == 0:
            with torch.no_grad():
                torch._foreach_lerp_(average, [p.detach() for p in weights], 1 - min(self.ema, (1 + self.step) / (10 + self.step)))
        return loss

    def _fit(self, mark: tuple[int, float] | None) -> None:
        """Turn seconds into steps once the warm-up is over, and lower their number when they no longer fit (by a tenth or more).

        Args:
            mark: step and seconds used since which the rate of this sitting is taken; None while it is too new to tell.
        """
        if self.steps or self.step < self.warmup or (self.total is not None and self.step >= self.total):
            return
        since, at = mark if mark and self.step > mark[0] else (0, 0.0)
        pace = (self.step - since) / max(self.used - at, 1e-9)
        if self.total is not None and not (mark and self.step > mark[0]):
            return
        fits = self.step + max(1, int((self.seconds - self.used) * pace))
        if self.total is None or self.total > 1.1 * fits:
            self.total = fits

    def _say(self, loss: float, mark: tuple[int, float] | None) -> None:
        since, at = mark if mark and self.step > mark[0] else (0, 0.0)
        left = "" if self.total is None else f", about {(self.total - self.step) * (self.used - at) / max(1, self.step - since):.0f} s left"
        say(f"{self.name}: step {self.step}{f' of {self.total}' if self.total else ''}, loss {loss:.4f}, {self.used:.0f} s{left}")

    def _checked(self, loss: torch.Tensor) -> float:
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(
                f"stage {self.name}: the loss is {value} at step {self.step}; lower its lr in config.toml and run it again"
            )
        return value

    def _save(
        self, network: torch.nn.Module, optimisers: list[torch.optim.Optimizer], average: list[torch.Tensor], generator: torch.Generator
    ) -> None:
        tensors = {f"network.{k}": v for k, v in network.state_dict().items()}
        tensors |= {f"average.{i}": v for i, v in enumerate(average)}
        for name, optimiser in zip(NAMES, optimisers, strict=False):
            for i, state in optimiser.state_dict()["state"].items():
                tensors |= {f"{name}.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
        tensors["generator"] = generator.get_state()
        numbers = {"step": self.step, "total": self.total or 0, "used": self.used}
        save_state(self.path, tensors, {k: str(v) for k, v in numbers.items()})

    def _restore(
        self, network: torch.nn.Module, optimisers: list[torch.optim.Optimizer], average: list[torch.Tensor], generator: torch.Generator
    ) -> None:
        if not self.path.is_file():
            return
        try:
            with safe_open(self.path, "pt") as handle:
                found = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - no mapping
                numbers = handle.metadata()
            network.load_state_dict({k.removeprefix("network."): v for k, v in found.items() if k.startswith("network.")})
            for kind, optimiser in zip(NAMES, optimisers, strict=False):
                state: dict[int, dict[str, torch.Tensor]] = {}
                for name, value in found.items():
                    if name.startswith(f"{kind}."):
                        _, i, key = name.split(".", 2)
                        state.setdefault(int(i), {})[key] = value
                optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
                for weight, values in optimiser.state.items():  # the fused update pairs numbers by their place in memory
                    values.update({k: torch.empty_like(weight).copy_(v) for k, v in values.items() if v.shape == weight.shape})
            for i, mean in enumerate(average):
                mean.copy_(found[f"average.{i}"])
            generator.set_state(found["generator"])
        except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            raise ValueError(f"state {self.path} does not fit this recipe ({reason}); delete it to start the stage anew") from error
        self.step, self.used = int(numbers["step"]), float(numbers["used"])
        self.total = self.steps or int(numbers["total"]) or None
        say(f"{self.name}: goes on at step {self.step}")


def save_state(path: Path, tensors: dict[str, torch.Tensor], numbers: dict[str, str] | None = None) -> None:
    """Write a file of tensors so that it is either the old one or the new one.

    Raises:
        OSError: with the path; says so when the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial, metadata=numbers)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        why = "the disk is full; make room and run the same command again" if full else "check the folder and run the same command again"
        raise OSError(f"{path} cannot be written ({error}): {why}; what was there before is kept") from error
