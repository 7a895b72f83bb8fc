"""What every metric returns: a number, its interval, and how many images are behind it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A number with its interval, and the number of images behind it."""

    mean: float
    low: float
    high: float
    n: int
