"""The state of RespoDiff's own training: RAM and SAM in one of the forms of `respodiff.steering.parameterisations`, and its records."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from respodiff.steering.module import ConceptModule, built
from respodiff.steering.parameterisations import Values, length, start_maps
from respodiff.steering.serialization import Header
from respodiff.training.config import TrainConfig

Shift = Tensor | Values
"""What steers rollouts: one constant (1, C, H, W), or another form."""


@dataclass(frozen=True)
class StepRecord:
    """What one iteration did.

    Attributes:
        loss_ram, loss_sam: L_resp and lambda L_sem, means over the batch, before the update.
        unet_forwards: UNet evaluations per sample since the start, the unconditional half included; a re-run decoder counts as one.
        seconds: since the start, earlier parts of a resumed run included.
        values_ram, values_sam: both modules' tensors after this iteration, before train_scale and max_relative_norm.
        h_norm: mean norm of h so far. length: norm of what RAM adds, where that depends on h: the mean over the batch.
        state: live; ``state.tensors()``, to resume from, is of the last finished iteration at any moment, also after an interrupt.
    """

    iteration: int
    iterations: int
    loss_ram: float
    loss_sam: float
    unet_forwards: int
    seconds: float
    values_ram: Values
    values_sam: Values
    h_norm: float
    length: float
    state: TrainState
    header: Header

    @property
    def loss(self) -> float:
        """L_resp, by the name that the records of all methods have."""
        return self.loss_ram

    @property
    def ram(self) -> Tensor:
        """r (1, C, H, W), or of every bin (K, C, H, W)."""
        return self.values_ram.r

    @property
    def sam(self) -> Tensor:
        """s of the same shape."""
        return self.values_sam.r

    @property
    def module(self) -> ConceptModule:
        """The module as it is after this iteration, times the training scale. The limit looks at RAM alone, or it would undo what SAM does."""
        train_scale, limit = self.header.train["train_scale"], self.header.train["max_relative_norm"]
        ram, sam = (v.map(lambda t: t.cpu()) for v in (self.values_ram, self.values_sam))
        if limit:
            long = length(ram) if ram.a is None else self.length
            train_scale = min(train_scale, limit * self.h_norm / max(long, 1e-12))
        return built(ram * train_scale, sam * train_scale, self.header).released(self.header.train.get("release", 0.0))


class TrainState:
    """RAM and SAM, their Adam optimisers, and what a resumed run needs to go on bit by bit as if never stopped.

    ``shape`` (C, H, W) is that of r and s at one bin. With ``modules=shared`` SAM stays zero and both optimisers are RAM's.
    """

    def __init__(self, config: TrainConfig, shape: tuple[int, int, int], device: torch.device) -> None:
        generator = torch.Generator().manual_seed(config.seed)
        bins = config.bins if config.form == "binned" else 1

        def start(trained: bool) -> Tensor:
            # Zero, or U(-range, range): the released code's Linear(10, .) initialisation has range 0.316.
            return (torch.rand(bins, *shape, generator=generator) * 2 - 1) * config.init_range * trained

        two = config.trains_sam and config.modules == "two"
        ram, sam = Values(start(True)), Values(start(two))
        if config.form == "lowrank":
            ram = Values(ram.r, *start_maps(shape[0], config.map_rank, generator))
            sam = Values(sam.r, *start_maps(shape[0], config.map_rank, generator)) if two else sam
        self.values = {name: v.map(lambda t: t.to(device).requires_grad_()) for name, v in (("ram", ram), ("sam", sam))}
        self.adam_ram = _adam(self.values["ram"], config.ram_lr, config)
        self.adam_sam = _adam(self.of_sam(config), config.sam_lr, config)
        self._adams = (("adam_ram", self.adam_ram, self.values["ram"]), ("adam_sam", self.adam_sam, self.of_sam(config)))
        self.iteration, self.forwards, self.seconds = 0, 0, 0.0
        self.h_norm = 0.0  # sum over iterations of the batch's mean norm of h
        self.length = 0.0  # of what RAM adds, in the latest batch, where that depends on h
        self.rounds: list[Shift] = []
        self.begin(config)
        self.commit()

    @property
    def ram(self) -> Tensor:
        """r (1, C, H, W), or of every bin (K, C, H, W)."""
        return self.values["ram"].r

    @property
    def sam(self) -> Tensor:
        """s of the same shape."""
        return self.values["sam"].r

    @property
    def round_start(self) -> Shift:
        """What steers rollouts of the round that is on."""
        return self.rounds[-1]

    def of_sam(self, config: TrainConfig) -> Values:
        """What SAM's loss trains: SAM, or with ``modules=shared`` RAM."""
        return self.values["sam" if config.modules == "two" else "ram"]

    def delta(self, config: TrainConfig) -> Shift:
        """What steers rollouts as it is now: r + s, or r alone."""
        both = config.rollout_modules == "both"
        steering = self.values["ram"] + self.values["sam"] if both else self.values["ram"]
        return _shift(steering.map(lambda t: t.detach().clone()))

    def begin(self, config: TrainConfig) -> None:
        """A round starts: what steers its rollouts is kept beside that of ``replay`` - 1 rounds before."""
        self.rounds = [*self.rounds, self.delta(config)][-config.replay :]

    def record(self, config: TrainConfig, header: Header, losses: tuple[float, float]) -> StepRecord:
        """What the last iteration did."""
        ram, sam = (self.values[name].map(lambda t: t.detach().clone()) for name in ("ram", "sam"))
        return StepRecord(
            iteration=self.iteration,
            iterations=config.iterations,
            loss_ram=losses[0],
            loss_sam=losses[1],
            unet_forwards=self.forwards,
            seconds=self.seconds,
            values_ram=ram,
            values_sam=sam,
            h_norm=self.h_norm / self.iteration,
            length=self.length,
            state=self,
            header=header,
        )

    def commit(self) -> None:
        """What `tensors` gives from now on. An iteration changes its parts one by one; a stop between them must not be saved."""
        out = {k: t.detach() for name, v in self.values.items() for k, t in _named(name, v).items()}
        for age, shift in enumerate(reversed(self.rounds)):
            out |= _named(_round(age), shift if isinstance(shift, Values) else Values(shift))
        counters = [self.iteration, self.forwards, self.seconds, self.h_norm, self.length]
        out["counters"] = torch.tensor(counters, dtype=torch.float64)
        for name, adam, values in self._adams:
            for suffix, p in _named("", values).items():
                out |= {f"{name}.{k}{suffix}": v.detach() for k, v in adam.state.get(p, {}).items()}
        self._committed = {k: v.clone() for k, v in out.items()}

    def tensors(self) -> dict[str, Tensor]:
        """The state after the last finished iteration, as a flat dictionary for a safetensors file."""
        return {k: v.cpu().contiguous().clone() for k, v in self._committed.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` gave. Raises ValueError for anything else, and if the shapes differ."""
        mine = {k: p for name, v in self.values.items() for k, p in _named(name, v).items()}
        if missing := {*mine, "round_start", "counters"} - set(tensors):
            raise ValueError(f"resume has no {sorted(missing)[0]!r}; give record.state.tensors() of an earlier run, or None to start anew")
        for name, p in mine.items():
            if tensors[name].shape != p.shape:
                raise ValueError(f"checkpoint has tensors of shape {tuple(tensors[name].shape)}, this model needs {tuple(p.shape)}")
            with torch.no_grad():
                p.copy_(tensors[name])
        ages = sum(k.startswith("round_start") and not k.endswith((".a", ".b")) for k in tensors)
        found = [{k: tensors[n].to(self.ram.device) for k in "rab" if (n := _key(_round(age), k)) in tensors} for age in range(ages)]
        self.rounds = [_shift(Values(**parts)) for parts in reversed(found)]
        iteration, forwards, self.seconds, self.h_norm, *more = tensors["counters"].tolist()  # earlier versions had no length
        self.iteration, self.forwards, self.length = int(iteration), int(forwards), sum(more)
        for name, adam, values in self._adams:
            for suffix, p in _named("", values).items():
                kept = {k: tensors[f"{name}.{k}{suffix}"] for k in ("step", "exp_avg", "exp_avg_sq") if f"{name}.{k}{suffix}" in tensors}
                if kept:
                    # Copies: Adam works in place, and the caller may resume from these tensors again.
                    adam.state[p] = {k: v.clone() if k == "step" else v.to(p.device, copy=True) for k, v in kept.items()}
        self.commit()


def _adam(values: Values, lr: float, config: TrainConfig) -> torch.optim.Adam:
    """Adam of a form's tensors; A learns ``map_rate`` times as fast as r, and B, which is multiplied by all C channels, a C-th of that."""
    rates = {"r": 1.0, "a": config.map_rate, "b": config.map_rate / values.r.shape[1]}
    groups = [{"params": [p], "rate": rates[k]} for k, p in values.named.items()]
    return torch.optim.Adam(groups, lr, betas=config.betas)


def _shift(values: Values) -> Shift:
    return values.r if values.a is None and len(values.r) == 1 else values


def _round(age: int) -> str:
    return f"round_start-{age}" if age else "round_start"


def _key(name: str, part: str) -> str:
    return name if part == "r" else f"{name}.{part}"


def _named(name: str, values: Values) -> dict[str, Tensor]:
    """Keys of a state file -> tensors: r under ``name`` itself."""
    return {_key(name, k): t for k, t in values.named.items()}
