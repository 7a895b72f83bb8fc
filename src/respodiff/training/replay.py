"""When a pool is rolled out, and which pools a batch is drawn from: the third axis of training.

one pool reused      refresh >= iterations                      (default)
per step             refresh = 1, rollouts = 1, keep = last      (paper)
replaced             refresh = N: every N updates a new pool, rolled out with what is trained as it then is, in place of the old one
replay               refresh = N, replay = M: the same, but the M - 1 pools before it stay, and a batch is drawn from all M
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from respodiff.training.learners import Learner


class Source(Protocol):
    """Where training examples come from."""

    def pool(self, number: int, delta: Any) -> Examples:
        """Those of round ``number``, drawn with what is trained as ``delta`` says it is at the round's start."""


class Examples(Protocol):
    """What a source gives: ``forwards`` UNet evaluations went into it."""

    @property
    def forwards(self) -> int:
        """UNet evaluations."""

    def batch(self, iteration: int, size: int) -> dict[str, Any]:
        """A batch of ``size``, which depends on seed and iteration alone."""


class Replay:
    """The pools of a run: a round every ``refresh_every`` iterations, of which the last ``replay`` are kept."""

    def __init__(self, source: Source, config: Any) -> None:
        self.source, self.config = source, config
        self.pools: deque[Examples] = deque(maxlen=config.replay)
        self.now: Examples | None = None

    def examples(self, state: Learner) -> Examples:
        """What the next iteration draws its batch from; a resumed run rebuilds the pools of its rounds from the same seeds and the same
        tensors, and their forwards are counted once."""
        number, begins = divmod(state.iteration, self.config.refresh_every)
        if begins == 0:
            state.begin(self.config)
        if self.now is None or begins == 0:
            missing = state.rounds[-1:] if self.pools else state.rounds[-1 - number :]
            for i, delta in enumerate(missing, number + 1 - len(missing)):
                self.pools.append(self.source.pool(i, delta))
            state.forwards += self.pools[-1].forwards if begins == 0 else 0
            self.now = merged(tuple(self.pools))
        return self.now


def merged(pools: Sequence[Any]) -> Any:
    """One pool (`respodiff.training.rollouts.Pool`) of the latents of several; batches follow from the seed of the newest, the last."""
    if len(pools) == 1:
        return pools[0]

    def below(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {k: torch.cat([part[k] for part in parts]) for k in parts[0]}

    return replace(pools[-1], columns=below([p.columns for p in pools]), kept=below([p.kept for p in pools]))
