"""Fairness numbers as functions of counts, each with an interval.

``N`` is a count of images, ``C`` the number of concepts of an attribute, ``G`` the number of groups (prompts).
DevRat is the deviation ratio of the paper's WinoBias tables: 0 is the wanted split, 1 the most lopsided one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from respodiff.metrics.estimate import Estimate

Floats = NDArray[np.float64]

FLOOR_DRAWS = 20_000


def dev_rat(counts: ArrayLike, shares: Sequence[float] | None = None) -> Floats:
    """Deviation ratio: ``max_c |N_c / N - t_c| / (1 - min_c t_c)``, with ``t_c = 1 / C`` unless shares are wanted.

    For uniform shares this is the paper's ``max_c |N_c / N - 1 / C| / (1 - 1 / C)``.

    Args:
        counts: images perceived as each concept, (..., C), not negative, at least one image per row.
        shares: the wanted shares (C,), not negative, summing to 1; None is uniform.

    Returns:
        (...) in [0, 1].

    >>> float(dev_rat([9, 1]))
    0.8
    """
    values = _check_counts(counts)
    total = values.sum(-1, keepdims=True)
    if (total == 0).any():
        raise ValueError("counts has a group without images: leave such groups out and report them as unknown")
    target = _check_shares(shares, values.shape[-1])
    deviation: Floats = np.abs(values / total - target).max(-1) / (1 - target.min())
    return deviation


def mean_dev_rat(
    counts: ArrayLike,
    *,
    shares: Sequence[float] | None = None,
    n_boot: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Mean DevRat over groups with a cluster bootstrap interval.

    Groups are drawn with replacement and, inside each, images anew from its shares (with half an image added to every
    concept, so that a group of one kind still varies). DevRat is convex: resampled images raise its mean, which would
    push the interval off the number itself, so the draws are moved back onto it before the percentiles are taken.

    Args:
        counts: (G, C) images per group and concept.
    """
    values = _check_counts(counts)
    if values.ndim != 2 or len(values) == 0:
        raise ValueError(f"counts must have shape (groups, concepts) with at least one group, got {values.shape}")
    _check_level(level)
    mean = float(dev_rat(values, shares).mean())
    smooth = values + 0.5
    chance = smooth / smooth.sum(-1, keepdims=True)
    sizes = values.sum(-1).astype(np.int64)
    rng = np.random.default_rng(seed)
    means = np.empty(n_boot)
    for i in range(n_boot):
        chosen = rng.integers(len(values), size=len(values))
        means[i] = dev_rat(rng.multinomial(sizes[chosen], chance[chosen]), shares).mean()
    low, high = np.quantile(means - means.mean() + mean, [(1 - level) / 2, (1 + level) / 2])
    return _estimate(mean, float(low), float(high), int(sizes.sum()))


def noise_floor(sizes: Sequence[int], classes: int, shares: Sequence[float] | None = None) -> float:
    """Expected mean DevRat of a perfect generator that draws concepts at random, for groups of these sizes.

    Exact for two concepts (a binomial sum), otherwise the mean of a seeded simulation.

    >>> round(noise_floor([150], 2), 3)
    0.065
    """
    if classes < 2:
        raise ValueError(f"classes must be 2 or more, got {classes}: DevRat compares alternatives")
    if len(sizes) == 0 or any(int(n) != n or n < 1 for n in sizes):
        raise ValueError(f"sizes must be whole numbers of 1 or more, one per group, got {list(sizes)}")
    target = tuple(_check_shares(shares, classes).tolist())
    return math.fsum(_floor(int(n), target) for n in sizes) / len(sizes)


@cache
def _floor(n: int, target: tuple[float, ...]) -> float:
    if len(target) == 2:
        ones = np.arange(n + 1)
        rows = np.stack([ones, n - ones], axis=-1)
        return float((dev_rat(rows, target) * _binomial(n, target[0])).sum())
    draws = np.random.default_rng(0).multinomial(n, target, size=FLOOR_DRAWS)
    return float(dev_rat(draws, target).mean())


def _binomial(n: int, p: float) -> Floats:
    """Probabilities of 0..n successes, (n + 1,); in logarithms, as the coefficients overflow from n = 1030 on."""
    if p in (0.0, 1.0):
        point = np.zeros(n + 1)
        point[round(n * p)] = 1.0
        return point
    logs = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p) for k in range(n + 1)
    ]
    chances: Floats = np.exp(np.array(logs))
    return chances


def wilson(successes: int, n: int, level: float = 0.95) -> Estimate:
    """Wilson score interval of a share from ``n`` independent images.

    >>> wilson(0, 20).high < 0.2
    True
    """
    _check_level(level)
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes must lie in 0..n with n of 1 or more, got successes={successes}, n={n}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return _estimate(share, centre - half, centre + half, n)


def share_interval(successes: ArrayLike, totals: ArrayLike, *, n_boot: int = 2000, seed: int = 0, level: float = 0.95) -> Estimate:
    """Share over all images, with an interval that allows for images of one group being alike.

    Cluster bootstrap over groups. It cannot see beyond what occurred (no success at all would give [0, 0]) nor work
    with one group, so the interval is never narrower than `wilson` on the pooled images.

    Args:
        successes: (G,) images with the property.
        totals: (G,) images, each at least 1.
    """
    hits, sizes = _check_counts(successes), _check_counts(totals)
    if hits.ndim != 1 or hits.shape != sizes.shape or len(hits) == 0:
        raise ValueError(f"successes and totals must be (groups,) alike and not empty, got {hits.shape}, {sizes.shape}")
    if (sizes == 0).any() or (hits > sizes).any():
        raise ValueError("totals must be at least 1 and at least as large as successes in every group")
    pooled = wilson(round(hits.sum()), round(sizes.sum()), level)
    if len(hits) == 1:
        return pooled
    chosen = np.random.default_rng(seed).integers(len(hits), size=(n_boot, len(hits)))
    draws = hits[chosen].sum(1) / sizes[chosen].sum(1)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return _estimate(pooled.mean, min(pooled.low, float(low)), max(pooled.high, float(high)), pooled.n)


def group_counts(groups: Sequence[str], labels: Sequence[Any], classes: Sequence[Any]) -> NDArray[np.int64]:
    """Count labels per group, groups in order of first sight: (G, C). Labels that are no class are left out.

    >>> group_counts(["a", "a", "b"], ["x", "y", "?"], ["x", "y"]).tolist()
    [[1, 1], [0, 0]]
    """
    if len(groups) != len(labels):
        raise ValueError(f"groups and labels must be of one length, got {len(groups)} and {len(labels)}")
    row = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    column: Callable[[Any], int | None] = {name: i for i, name in enumerate(classes)}.get
    counts = np.zeros((len(row), len(classes)), dtype=np.int64)
    for group, label in zip(groups, labels, strict=True):
        if (at := column(label)) is not None:
            counts[row[group], at] += 1
    return counts


def _estimate(mean: float, low: float, high: float, n: int) -> Estimate:
    return Estimate(mean, max(0.0, min(low, mean)), min(1.0, max(high, mean)), n)


def _check_counts(counts: ArrayLike) -> Floats:
    values = np.asarray(counts, dtype=np.float64)
    if values.ndim == 0 or values.size == 0:
        raise ValueError(f"counts is empty (shape {values.shape}): give at least one group with one image")
    if not np.isfinite(values).all():
        raise ValueError("counts holds NaN or infinity: count unreadable images as unknown instead")
    if (values < 0).any() or (values != np.round(values)).any():
        raise ValueError("counts must be whole numbers of 0 or more: give numbers of images, not shares")
    return values


def _check_shares(shares: Sequence[float] | None, classes: int) -> Floats:
    if classes < 2:
        raise ValueError(f"counts must have 2 or more concepts in its last axis, got {classes}")
    if shares is None:
        return np.full(classes, 1 / classes)
    target = np.asarray(shares, dtype=np.float64)
    if target.shape != (classes,):
        raise ValueError(f"shares must have one number per concept ({classes}), got shape {target.shape}")
    if not np.isfinite(target).all() or (target < 0).any() or abs(target.sum() - 1) > 1e-6:
        raise ValueError(f"shares must be 0 or more and sum to 1, got {target.tolist()}")
    return target


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1 (0.95 is usual), got {level}")
