"""Forms of what is added to h, one small function each, all of one signature: delta(values, h, t) -> (B or 1, C, H, W).

    constant   delta = r                    r (C, H, W)
    channel    delta = r                    r (C, 1, 1), the same at every position
    binned     delta = r[b(t)]              r (K, C, H, W), b(t) = random level(K t / 1000)
    lowrank    delta = r + A B^T h          A, B (C, k), at every position: adds less, or takes away, where h is already there

RAM and SAM are of one form, and their sum is too: r + s, with the columns of A and B side by side. A scale is a factor on r and A.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from respodiff.pipelines.bottleneck import channels_first

TIMESTEPS = 1000
"""Timesteps of every model that is steered, 999 the noisiest."""


@dataclass(frozen=True)
class Values:
    """Tensors of one form: r (K, C, H, W), K 1 or the number of bins; a and b (C, k), or None where h is not read."""

    r: Tensor
    a: Tensor | None = None
    b: Tensor | None = None

    @property
    def named(self) -> dict[str, Tensor]:
        """The tensors that there are, by name."""
        return {k: v for k, v in (("r", self.r), ("a", self.a), ("b", self.b)) if v is not None}

    def map(self, change: Callable[[Tensor], Tensor]) -> Values:
        """The same with ``change`` made to every tensor."""
        return Values(**{k: change(v) for k, v in self.named.items()})

    def __add__(self, other: Values) -> Values:
        """What adds both: r of one bin is added to every bin of the other; the maps side by side."""
        if not isinstance(other, Values):
            return NotImplemented
        sides = [v for v in (self, other) if v.a is not None]
        a, b = (torch.cat([v.named[k] for v in sides], 1) if sides else None for k in "ab")
        return Values(self.r + other.r, a, b)

    def __mul__(self, factor: float) -> Values:
        """What adds ``factor`` times as much."""
        return Values(self.r * factor, None if self.a is None else self.a * factor, self.b)


Delta = Callable[[Values, Tensor, Tensor], Tensor]
"""(values, h, t) -> (B or 1, C, H, W): h (B, C, H, W) or (B, N, C) as the site gives it, t (B,), (1,) or () its timesteps, 0 to 999."""


def constant(values: Values, h: Tensor, t: Tensor) -> Tensor:
    """r, whatever h and t are (paper)."""
    return values.r


def bin_of(t: Tensor, bins: int, total: int = TIMESTEPS) -> Tensor:
    """Which bin (0 to bins - 1) timesteps t (0 to total - 1) belong to: random level(bins t / total)."""
    return (t.long() * bins // total).clamp(0, bins - 1)


def binned(values: Values, h: Tensor, t: Tensor) -> Tensor:
    """r[b(t)]: another constant for every part of the way from noise to image."""
    return values.r[bin_of(t.reshape(-1), len(values.r)).to(values.r.device)]


def lowrank(values: Values, h: Tensor, t: Tensor) -> Tensor:
    """r + A B^T h at every position; a sum of modules may have r in bins beside it."""
    assert values.a is not None and values.b is not None
    x = channels_first(h).to(values.r)
    mapped = values.a @ (values.b.T @ x.flatten(2))
    return (constant if len(values.r) == 1 else binned)(values, h, t) + mapped.view_as(x)


FORMS: Mapping[str, Delta] = {"constant": constant, "channel": constant, "binned": binned, "lowrank": lowrank}
"""Name -> function, as ``TrainConfig.form`` and module files name them."""


def form_of(values: Values) -> str:
    """The form's name, from the tensors alone.

    >>> form_of(Values(torch.zeros(1, 8, 4, 4))), form_of(Values(torch.zeros(5, 8, 1, 1)))
    ('constant', 'binned')
    """
    if values.a is not None:
        return "lowrank"
    if len(values.r) > 1:
        return "binned"
    return "channel" if values.r.shape[2:] == (1, 1) else "constant"


def delta(values: Values, h: Tensor, t: Tensor) -> Tensor:
    """What is added to h (B, C, H, W) or (B, N, C) at timesteps t, in the form that the tensors are of."""
    return FORMS[form_of(values)](values, h, t)


def delta_at(added: Any, t: Tensor) -> Any:
    """What ``added`` adds at timesteps t: of `Values` a function of h; a tensor, or None, as it is."""
    return (lambda h: delta(added, h, t)) if isinstance(added, Values) else added


def length(values: Values, h: Tensor | None = None, t: Tensor | None = None) -> float:
    """Norm of what is added: of the longest bin, or, where h is read, the mean over a batch of h at t."""
    if values.a is None or h is None or t is None:
        return float(max(r.norm().item() for r in values.r))
    return float(delta(values, h, t).flatten(1).norm(dim=1).mean())


def start_maps(channels: int, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A = 0, so that nothing is added at first, and B ~ N(0, 1 / C), so that B^T h is about as large as an element of h."""
    return torch.zeros(channels, rank), torch.randn(channels, rank, generator=generator) / channels**0.5
