"""Provides the state of a training run, and `fit_tensors`, the loop of all methods that train tensors with one loss."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from respodiff.pipelines.bottleneck import eager, frozen
from respodiff.pipelines.denoiser import Denoiser
from respodiff.training.config import OptimizerConfig, RolloutConfig, TrainConfig

Tensors = dict[str, Tensor]

MakePool = Callable[[int, Tensors], Any]
"""(number of the round, tensors as they were when it began) -> its examples; their ``batch(iteration, size)`` gives the same at each call."""


@dataclass(frozen=True)
class StepRecord:
    """What one iteration did.

    Attributes:
        iteration, iterations: how many are done, and of how many.
        loss: mean over the batch, before the update; RespoDiff's is L_resp. loss_sam: lambda L_sem; 0 where SAM is not trained.
        unet_forwards, seconds: evaluations per sample (a re-run decoder counts as one) and time since the start of the whole run.
        state: live; ``state.tensors()``, to resume from, is of the last finished iteration at any moment, also after an interrupt.
    """

    iteration: int
    iterations: int
    loss: float
    unet_forwards: int
    seconds: float
    state: Any
    make: Callable[[], Any]
    loss_sam: float = 0.0

    @property
    def module(self) -> Any:
        """The adapter as it is after this iteration."""
        return self.make()


class TrainState:
    """Tensors ``values``, their optimisers and counters. A resumed run goes on bit by bit as if it had never stopped.

    With ``keep`` false (for tensors of the size of a model) there are no copies to resume from, and records show the newest values.
    ``verdict`` is given what the last record holds, and gives it back with its verdict; RuntimeError for a training that failed.
    """

    def __init__(
        self,
        model: Denoiser,
        config: OptimizerConfig | TrainConfig,
        values: Tensors,
        optimizers: Sequence[Optimizer],
        keep: bool = True,
        verdict: Callable[[Any], Any] | None = None,
    ) -> None:
        self.verdict, self.model, self.config, self.values, self.optimizers, self.keep = verdict, model, config, values, optimizers, keep
        self.iteration, self.seconds, self._values, self._committed = 0, 0.0, values, Tensors()
        self.round_start = self._copies()
        self._commit()

    def batches(self, make_pool: MakePool, refresh_every: int = 0) -> Iterator[Any]:
        """A batch for every iteration that is left; a new pool every ``refresh_every`` iterations (0: one for all)."""
        self._began, pool = time.perf_counter() - self.seconds, None
        while self.iteration < self.config.iterations:
            number, since = divmod(self.iteration, refresh_every or self.config.iterations)
            if since == 0:
                self.round_start = self._copies()
                pool = make_pool(number, self.round_start)
            elif pool is None:  # a resumed run makes its pool again; the forwards are counted already
                counted, pool = self.model.forwards, make_pool(number, self.round_start)
                self.model.forwards = counted
            yield pool.batch(self.iteration, self.config.batch)

    def finish(self, make: Callable[[Tensors], Any], loss: float, loss_sam: float = 0.0) -> StepRecord:
        """Ends an iteration. RuntimeError if a loss or a value is not finite."""
        self.iteration += 1
        self.seconds = time.perf_counter() - self._began
        if not math.isfinite(loss + loss_sam):
            raise self.diverged(f"the loss is {loss_sam if math.isfinite(loss) else loss}", self.iteration)
        norm = get_total_norm([v.detach().float() for v in self.values.values()])  # asks a GPU once, not for each of a UNet's weights
        if not norm.isfinite() and (broken := [k for k, v in self.values.items() if not v.isfinite().all()]):
            raise self.diverged(f"tensor {broken[0]!r} holds NaN or infinite values", self.iteration)
        self._commit()
        return self.record(make, loss, loss_sam)

    def record(self, make: Callable[[Tensors], Any], loss: float = math.nan, loss_sam: float = math.nan) -> StepRecord:
        """What the last iteration did; of a finished run that is resumed the losses are not known."""
        now: Callable[[], Any] = partial(make, self._values)
        if self.verdict and self.iteration >= self.config.iterations:
            judged = self.verdict(now())
            now = lambda: judged  # noqa: E731
        return StepRecord(self.iteration, self.config.iterations, loss, self.model.forwards, self.seconds, self, now, loss_sam)

    def diverged(self, what: str, iteration: int) -> RuntimeError:
        """The error of a training that diverged in an iteration."""
        rate = "ram_lr" if hasattr(self.config, "ram_lr") else "lr"
        return RuntimeError(f"{what} at iteration {iteration}: training diverged; lower {rate}, which is {getattr(self.config, rate):g}")

    def tensors(self) -> Tensors:
        """The state after the last finished iteration, as a flat dictionary for a safetensors file; empty without ``keep``."""
        return {k: v.cpu().contiguous().clone() for k, v in self._committed.items()}

    def restore(self, tensors: Mapping[str, Tensor] | None) -> None:
        """Takes over what `tensors` gave, or nothing; ValueError for anything else, and if shapes differ."""
        if tensors is None:
            return
        if not self.keep:
            raise ValueError("resume is given, but this method trains weights of the model, whose state is not kept; train anew")
        if missing := {"counters", *(f"{part}.{k}" for part in ("value", "round") for k in self.values)} - set(tensors):
            raise ValueError(
                f"resume has no {sorted(missing)[0]!r}; give record.state.tensors() of an earlier run by this version, or None to start anew"
            )
        for name, p in self.values.items():
            if (found := tensors[f"value.{name}"]).shape != p.shape:
                raise ValueError(f"checkpoint has tensors of shape {tuple(found.shape)}, this model needs {tuple(p.shape)}")
            p.data.copy_(found)
            self.round_start[name] = tensors[f"round.{name}"].to(p.device)
        for name, p, optimizer in self._trained():
            kept = {k.split(".")[1]: v for k, v in tensors.items() if k.startswith("adam.") and k.split(".", 2)[2] == name}
            if kept:  # copies: Adam works in place, and the caller may resume from these tensors again
                optimizer.state[p] = {k: v.clone() if k == "step" else v.to(p.device, copy=True) for k, v in kept.items()}
        iteration, forwards, self.seconds = tensors["counters"].tolist()
        self.iteration, self.model.forwards = int(iteration), int(forwards)
        self._commit()

    def _trained(self) -> Iterator[tuple[str, Tensor, Optimizer]]:
        names = {id(p): name for name, p in self.values.items()}
        for optimizer in self.optimizers:
            yield from ((names[id(p)], p, optimizer) for group in optimizer.param_groups for p in group["params"])

    def _copies(self) -> Tensors:
        return {k: v.detach().clone() for k, v in self.values.items() if self.keep}

    def _commit(self) -> None:
        """Copies what is saved: an iteration changes its parts one by one, and a stop between them must not be saved."""
        if not self.keep:
            return
        self._values = self._copies()
        out = {f"value.{k}": v for k, v in self._values.items()} | {f"round.{k}": v for k, v in self.round_start.items()}
        for name, p, optimizer in self._trained():
            out |= {f"adam.{k}.{name}": v.detach().clone() for k, v in optimizer.state.get(p, {}).items()}
        self._committed = out | {"counters": torch.tensor([self.iteration, self.model.forwards, self.seconds], dtype=torch.float64)}


def open_model(pipe: Any, config: RolloutConfig, sites: Sequence[str] = ()) -> Denoiser:
    """The model at the size and guidance of the settings, at sites of those names. ValueError for float16, and for an unknown site."""
    model = Denoiser(pipe, config.height, config.width, config.rollout_guidance, sites)
    if model.dtype == torch.float16:
        raise ValueError("dtype is float16, in which small gradients become zero; train in float32 or bfloat16")
    return model


def fit_tensors(
    model: Denoiser,
    tensors: Mapping[str, Tensor],
    examples: MakePool,
    loss: Callable[[Tensors, Any], float],
    config: OptimizerConfig,
    make: Callable[[Tensors], Any],
    *,
    resume: Mapping[str, Tensor] | None = None,
    refresh_every: int = 0,
    weight_decay: float = 0.0,
    keep: bool = True,
    verdict: Callable[[Any, Tensors], Any] | None = None,
) -> Iterator[StepRecord]:
    """Train copies of ``tensors`` with one loss and AdamW; yields a record after every iteration.

    Args:
        examples: makes the pool of a round, which has ``refresh_every`` iterations (0: all).
        loss: (tensors, batch) -> loss, having called ``backward`` itself, so that hooks it needs may be active meanwhile.
        make: makes the adapter of copies on the CPU in float32. resume: ``record.state.tensors()`` of an earlier run.
        keep: see `TrainState`. verdict: (adapter, trained tensors) -> the adapter with its verdict.

    Raises:
        RuntimeError: for a training that diverged or changed nothing.
    """
    values = {k: v.detach().clone().requires_grad_() for k, v in tensors.items()}
    adam = torch.optim.AdamW(list(values.values()), config.lr, betas=config.betas, weight_decay=weight_decay)

    def checked(adapter: Any) -> Any:
        if all(torch.equal(v, tensors[k]) for k, v in values.items()):
            raise RuntimeError(f"training changed nothing; raise lr, which is {config.lr:g}")
        return verdict(adapter, values) if verdict else adapter

    state = TrainState(model, config, values, [adam], keep, checked)
    state.restore(resume)

    def made(values: Tensors) -> Any:
        return make({k: v.detach().cpu().float().clone() for k, v in values.items()})

    with frozen(model.model), eager(model.model):
        if state.iteration >= config.iterations:
            yield state.record(made)
        for batch in state.batches(examples, refresh_every):
            adam.zero_grad()
            found = loss(values, batch)
            adam.param_groups[0]["lr"] = config.lr * learning_rate(config, state.iteration)
            adam.step()
            yield state.finish(made, found)


def learning_rate(config: OptimizerConfig | TrainConfig, iteration: int) -> float:
    """Share of the learning rate at an iteration."""
    return (1 - iteration / config.iterations) ** 0.5 if config.decay == "sqrt" else 1.0


def adam_step(adam: Optimizer, rates: Sequence[float], loss: Tensor) -> None:
    """One step on a loss, at a learning rate for each group of parameters."""
    adam.zero_grad()
    loss.backward()
    for group, lr in zip(adam.param_groups, rates, strict=True):
        group["lr"] = lr
    adam.step()


def share_step(adam: Optimizer, other: Optimizer, rates: Sequence[float], loss: Tensor) -> None:
    """A step of ``adam`` along its own first moment, divided by the root of the mean second moment of ``other``, tensor by tensor.

    Unlike Adam's own step it is proportional to the loss. The mean, as ``other`` may have hardly any gradient for one number. Both have as many
    groups of tensors of the same shapes; ``other`` has made a step.
    """
    adam.zero_grad()
    loss.backward()
    group, divisor = adam.param_groups[0], other.param_groups[0]
    groups = zip(adam.param_groups, other.param_groups, rates, strict=True)
    with torch.no_grad():
        for p, q, lr in ((p, q, lr) for a, b, lr in groups for p, q in zip(a["params"], b["params"], strict=True)):
            own, theirs = adam.state[p], other.state[q]
            if not own:
                own |= {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            own["step"] += 1
            own["exp_avg"].lerp_(p.grad, 1 - group["betas"][0])
            m = own["exp_avg"] / (1 - group["betas"][0] ** own["step"].item())
            v = theirs["exp_avg_sq"] / (1 - divisor["betas"][1] ** theirs["step"].item())
            p -= lr * m / (v.mean().sqrt() + group["eps"])
