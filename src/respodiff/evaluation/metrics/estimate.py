"""The result of every metric: a number, its 95 % interval, and the number of images behind it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

LEVEL = 0.95
"""Probability with which an interval holds its quantity."""


@dataclass(frozen=True)
class Estimate:
    """A number with its interval, and the number of images behind it."""

    mean: float
    low: float
    high: float
    n: int

    def clipped(self, least: float, most: float) -> Self:
        """The same with its interval inside the possible range of the quantity.

        >>> Estimate(25.0, -236.0, 286.0, 2).clipped(-100.0, 100.0)
        Estimate(mean=25.0, low=-100.0, high=100.0, n=2)
        """
        return replace(self, low=max(least, self.low), high=min(most, self.high))


@dataclass(frozen=True)
class DevRat(Estimate):
    """Mean DevRat. `random` is the DevRat that a perfect generator shows when it samples concepts at random, at the same n."""

    random: float


def as_json(value: Any) -> Any:
    """A dataclass as nested dictionaries and lists."""
    return json.loads(json.dumps(asdict(value)))
