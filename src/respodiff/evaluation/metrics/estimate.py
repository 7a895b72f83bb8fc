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

    @classmethod
    def spanning(cls, mean: float, *bounds: float, n: int, least: float = 0.0, most: float = 1.0) -> Self:
        """The narrowest interval that holds the mean and all bounds, cut to the range of the quantity.

        >>> Estimate.spanning(0.5, 0.3, 1.2, n=9)
        Estimate(mean=0.5, low=0.3, high=1.0, n=9)
        """
        return cls(mean, max(least, min(mean, *bounds)), min(most, max(mean, *bounds)), n)

    def clipped(self, least: float, most: float) -> Self:
        """The same with its interval inside the possible range of the quantity."""
        return replace(self, low=max(least, self.low), high=min(most, self.high))


@dataclass(frozen=True)
class DevRat(Estimate):
    """Mean DevRat. `random` is the DevRat that a perfect generator shows when it samples concepts at random, at the same n."""

    random: float


def as_json(value: Any) -> Any:
    """A dataclass as nested dictionaries and lists."""
    return json.loads(json.dumps(asdict(value)))
