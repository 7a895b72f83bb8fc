"""What distances of feature sets are made of: sums, kernels, and how they vary when a block of prompts is left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from respodiff.evaluation.metrics.estimate import Estimate

Floats = NDArray[np.float64]

WIDTH = 10.0  # of the Gaussian kernel of CMMD
RATE = 1 / WIDTH**2  # of its series in the cosine of unit vectors
SCALE = 1000.0  # CMMD is reported times this


@dataclass(frozen=True)
class Sums:
    """Number of images, sum of their features (D,), and sum of the outer products (D, D)."""

    n: int
    total: Floats
    outer: Floats

    @staticmethod
    def of(features: Floats) -> Sums:
        """Sums over the rows of features (N, D)."""
        return Sums(len(features), features.sum(0), features.T @ features)

    def without(self, other: Sums) -> Sums:
        """The same images less those of other."""
        return Sums(self.n - other.n, self.total - other.total, self.outer - other.outer)

    @property
    def mean(self) -> Floats:
        return self.total / self.n

    @property
    def covariance(self) -> Floats:
        """(D, D), ddof 1; exact to rounding where the features are centred beforehand."""
        return (self.outer - np.outer(self.total, self.mean)) / (self.n - 1)


def deal(groups: Sequence[str], n: int, blocks: int, seed: int) -> NDArray[np.int64]:
    """Deal groups at random into blocks of equal numbers of them: the block of each of n rows, (n,). Row order has no influence.

    >>> sorted(deal(["a", "b", "a", "b"], 4, 2, 0).tolist())
    [0, 0, 1, 1]
    """
    place = {name: i for i, name in enumerate(sorted(set(groups)))}
    if len(groups) != n or len(place) < 2 or blocks < 2:
        raise ValueError(
            f"groups must name the prompt of each of {n} images, 2 or more prompts for 2 or more blocks, "
            f"got {len(groups)} entries, {len(place)} prompts, {blocks} blocks"
        )
    return ranks(groups, seed) % min(blocks, len(place))


def ranks(groups: Sequence[str], seed: int | tuple[int, ...]) -> NDArray[np.int64]:
    """Put groups in random order: the place, from 0 on, of the group of each row, (n,). Row order has no influence.

    >>> sorted(ranks(["b", "a", "b"], 0).tolist()) in ([0, 0, 1], [0, 1, 1])
    True
    """
    place = {name: i for i, name in enumerate(sorted(set(groups)))}
    rank = np.empty(len(place), dtype=np.int64)
    rank[np.random.default_rng(seed).permutation(len(place))] = np.arange(len(place))
    return rank[[place[name] for name in groups]]


def settled(features: Floats, groups: Sequence[str]) -> NDArray[np.int64]:
    """An order of the rows (n,) that is the same set of images in whatever order they come: by features, then by group.

    >>> settled(np.array([[2.0], [1.0]]), ["a", "a"]).tolist()
    [1, 0]
    """
    place = {name: i for i, name in enumerate(sorted(set(groups)))}
    return np.lexsort((np.array([place[name] for name in groups]), *features.T[::-1]))


def jackknife(features: Floats, block: NDArray[np.int64], measure: Callable[[Sums], float], level: float) -> Estimate:
    """A measure of all images, with the error of leaving out one block at a time and a t interval for as many blocks.

    Args:
        features: (N, D). block: (N,) from 0 on, as `deal` gives it. measure: what is estimated, from sums. level: in (0, 1).

    >>> jackknife(np.array([[1.0], [3.0]] * 2), np.array([0, 1] * 2), lambda sums: float(sums.mean[0]), 0.95).mean
    2.0
    """
    if len(features) - np.bincount(block).max() < 2:
        raise ValueError(f"x must keep 2 images or more when a block of prompts is left out, got {len(features)} in all: give more")
    total = Sums.of(features)
    blocks = int(block.max()) + 1
    rest = np.array([measure(total.without(Sums.of(features[block == i]))) for i in range(blocks)])
    return spread(measure(total), rest, len(features), level)


def polynomial_rests(x: Floats, y: Floats, block: NDArray[np.int64], blocks: int) -> Floats:
    """Unbiased squared MMD, kernel ``(a . b / D + 1)^3``, of all of x and y, then of x less one block at a time: (1 + blocks,)."""
    inside = np.zeros((len(x), 1 + blocks))  # the first column leaves nothing out
    inside[np.arange(len(x)), 1 + block] = 1.0
    within, other, across = (cube_kernel(a, b) for a, b in ((x, x), (y, y), (x, y)))
    np.fill_diagonal(within, 0.0)
    np.fill_diagonal(other, 0.0)
    rows = within @ inside
    pairs = within.sum() - 2 * rows.sum(0) + (inside * rows).sum(0)
    kept, n = len(x) - inside.sum(0), len(y)
    if kept.min() < 2:
        raise ValueError(f"x must keep 2 images or more in every subset when a block is left out, got {len(x)}: take larger subsets")
    crossed = across.sum() - inside.T @ across.sum(1)
    rests: Floats = pairs / (kept * (kept - 1)) + other.sum() / (n * (n - 1)) - 2 * crossed / (kept * n)
    return rests


def gaussian_mmd(x: Sums, y: Sums, biased: bool) -> float:
    """Squared MMD of unit vectors times `SCALE`, from the kernel's series in the cosine up to its square."""
    alone = RATE + RATE**2 / 2  # a vector with itself
    within = [cosine_sum(s, s) / s.n**2 if biased else (cosine_sum(s, s) - alone * s.n) / (s.n * (s.n - 1)) for s in (x, y)]
    return SCALE * float(np.exp(-RATE)) * (sum(within) - 2 * cosine_sum(x, y) / (x.n * y.n))


def cosine_sum(x: Sums, y: Sums) -> float:
    """``c / 100 + c^2 / 2e4``, the Gaussian kernel's series less its constant and its factor, summed over all pairs of unit vectors."""
    return float(RATE * (x.total @ y.total) + RATE**2 / 2 * np.vdot(x.outer, y.outer))


def cube_kernel(x: Floats, y: Floats) -> Floats:
    """KID's kernel ``(a . b / D + 1)^3`` of all pairs of rows, (N, M)."""
    base: Floats = x @ y.T / x.shape[1] + 1
    return base * base * base


def spread(mean: float, rest: Floats, n: int, level: float) -> Estimate:
    """The jackknife's t interval around a mean, from what it is with each of the blocks left out, (blocks,)."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1 (0.95 is usual), got {level}")
    blocks = len(rest)
    half = float(student.ppf((1 + level) / 2, blocks - 1) * np.sqrt((blocks - 1) * rest.var()))
    return Estimate(mean, mean - half, mean + half, n)


def pair(x: ArrayLike, y: ArrayLike, least: int = 2) -> tuple[Floats, Floats]:
    """Two sets of features, checked: finite, (N, D) and (M, D), each with so many images at least."""
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    for name, a in (("x", first), ("y", second)):
        if a.ndim != 2 or len(a) < least or a.shape[1] == 0 or a.shape[1] != second.shape[-1]:
            raise ValueError(f"{name} must be (rows, D) with {least} rows or more and one D, got shapes {first.shape} and {second.shape}")
        if not np.isfinite(a).all():
            raise ValueError(f"{name} holds NaN or infinity: leave such images out and report them as unknown")
    return first, second


def unit(vectors: Floats) -> Floats:
    """Rows brought to length 1."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    if (length == 0).any():
        raise ValueError(
            f"vectors must not be all zeros, got {int((length == 0).sum())} such rows: leave them out and report them as unknown"
        )
    scaled: Floats = vectors / length
    return scaled
