"""Estimates: a number with its 95 % interval and its number of images, and the cluster bootstraps that give intervals.

A cluster bootstrap draws groups (prompts) with replacement, as images of one prompt are alike. Callers sort the groups, so that the order
of images has no influence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

LEVEL = 0.95
"""Probability with which an interval holds its quantity."""
DRAW_CELLS = 1_000_000  # resampled numbers in memory at a time


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


def batches(n_bootstrap: int, size: int) -> list[int]:
    """Numbers of samples, of `size` numbers each, to draw at a time; they sum to n_bootstrap.

    >>> batches(5, DRAW_CELLS // 2)
    [2, 2, 1]
    """
    if not 1 <= n_bootstrap <= 100_000:
        raise ValueError(f"n_bootstrap must be 1 to 100,000 (2000 is usual), got {n_bootstrap}")
    step = max(1, DRAW_CELLS // size)
    return [min(step, n_bootstrap - start) for start in range(0, n_bootstrap, step)]


def ratio_draws(tops: ArrayLike, bottoms: ArrayLike, *, n_bootstrap: int = 2000, seed: int = 0) -> Floats:
    """Ratios of sums over groups drawn with replacement, (n_bootstrap,), of a number a group (G,) each; bottoms above 0.

    >>> ratio_draws([1, 1], [2, 2], n_bootstrap=3).tolist()
    [0.5, 0.5, 0.5]
    """
    top, bottom = np.asarray(tops, dtype=np.float64), np.asarray(bottoms, dtype=np.float64)
    rng = np.random.default_rng(seed)
    chosen = (rng.integers(len(top), size=(n, len(top))) for n in batches(n_bootstrap, len(top)))
    return np.concatenate([top[rows].sum(1) / bottom[rows].sum(1) for rows in chosen])


def summed_draws(tables: Floats, *, n_bootstrap: int, seed: int | tuple[int, ...]) -> Floats:
    """Sums over groups drawn with replacement: (G, K) numbers a group give (n_bootstrap, K).

    >>> summed_draws(np.ones((3, 2)), n_bootstrap=1, seed=0).tolist()
    [[3.0, 3.0]]
    """
    groups = len(tables)
    rng, even = np.random.default_rng(seed), np.full(groups, 1 / groups)
    return np.concatenate([rng.multinomial(groups, even, size=n) @ tables for n in batches(n_bootstrap, groups)])


def quantiles(draws: Floats, level: float = LEVEL) -> tuple[float, float]:
    """Both ends of the percentile interval of draws (n_bootstrap,)."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return low, high


def stretch(draws: ArrayLike, point: ArrayLike, groups: int, level: float = LEVEL) -> Floats:
    """Bootstrap samples (n_bootstrap, ...) moved away from the estimate (...), by ``t(G - 1) / z * sqrt(G / (G - 1))``.

    Resampling G groups gives (G - 1) / G of the variance of a mean over them, and normal tails where those of Student's t with G - 1
    degrees are due. One group is left as it is. Samples may end outside of a share's range.

    >>> stretch([1.0, 3.0], 2.0, 2).round(2).tolist()
    [-7.17, 11.17]
    """
    values, centre = np.asarray(draws, dtype=np.float64), np.asarray(point, dtype=np.float64)
    if groups < 2:
        return values
    tail = float(student.ppf((1 + level) / 2, groups - 1)) / NormalDist().inv_cdf((1 + level) / 2)
    stretched: Floats = centre + tail * math.sqrt(groups / (groups - 1)) * (values - centre)
    return stretched


def ends(draws: ArrayLike, point: float, groups: int, level: float = LEVEL) -> tuple[float, float]:
    """The percentile interval of draws, stretched as `stretch` does; it holds the point.

    >>> ends([2.0, 2.0], 2.0, 5)
    (2.0, 2.0)
    """
    low, high = quantiles(stretch(draws, point, groups, level), level)
    return min(low, point), max(high, point)


def group_index(groups: Sequence[str]) -> Codes:
    """The place of each row's group among the sorted groups, (N,)."""
    return np.unique(np.asarray(list(groups)), return_inverse=True)[1].astype(np.int64)


def mean_interval(values: ArrayLike, groups: Sequence[str], *, n_bootstrap: int = 2000, seed: int = 0) -> Estimate:
    """Mean over all images (N,), with a cluster bootstrap over their groups (N,); of one group, over its images.

    Raises:
        ValueError: values that are no finite column as long as groups, or n_bootstrap below 1.

    >>> mean_interval([1.0, 3.0], ["a", "b"], n_bootstrap=10).mean
    2.0
    """
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or len(x) == 0 or len(x) != len(groups) or not np.isfinite(x).all():
        raise ValueError(f"values must be finite numbers, one for each of {len(groups)} groups entries, got shape {x.shape}")
    index = group_index(groups) if len(set(groups)) > 1 else x.argsort(kind="stable").argsort()
    sizes = np.bincount(index)
    mean = float(x.mean())
    low, high = ends(ratio_draws(np.bincount(index, weights=x), sizes, n_bootstrap=n_bootstrap, seed=seed), mean, len(sizes))
    return Estimate(mean, low, high, len(x))
