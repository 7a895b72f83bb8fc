"""Fairness numbers as functions of counts, each with an interval.

``N`` is a count of images, ``C`` the number of concepts of an attribute, ``G`` the number of groups (prompts).
DevRat is the deviation ratio of the paper's WinoBias tables: 0 is the wanted split, 1 the most lopsided one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom

from respodiff.evaluation.metrics.bootstrap import Floats, batches, check_level, ends, quantiles, ratio_draws
from respodiff.evaluation.metrics.estimate import LEVEL, Estimate

RANDOM_DRAWS = 20_000


def dev_rat(counts: ArrayLike, proportions: ArrayLike | None = None) -> Floats:
    """Deviation ratio: ``max_c |N_c / N - t_c| / (1 - min_c t_c)``, with ``t_c = 1 / C`` unless shares are wanted.

    Args:
        counts: images perceived as each concept, (..., C), not negative, at least one image per row.
        proportions: the wanted proportions, not negative, summing to 1: (C,), or (..., C) for every row its own; None is uniform.

    Returns:
        (...) in [0, 1]; 1 where all are of the concept that is wanted least.

    >>> float(dev_rat([9, 1])), dev_rat([[9, 1], [9, 1]], [[0.9, 0.1], [0.1, 0.9]]).tolist()
    (0.8, [0.0, 0.888888888888889])
    """
    values = whole_numbers("counts", counts)
    total = values.sum(-1, keepdims=True)
    if (total == 0).any():
        raise ValueError("counts has a group without images: leave such groups out and report them as unknown")
    target = _checked_proportions(proportions, values.shape[-1])
    deviation: Floats = np.abs(values / total - target).max(-1) / (1 - target.min(-1))
    return deviation


def mean_dev_rat(
    counts: ArrayLike, *, proportions: ArrayLike | None = None, n_bootstrap: int = 2000, seed: int = 0, level: float = LEVEL
) -> Estimate:
    """Mean DevRat over groups; the interval holds what other groups of the same kind, and other images of these, would give.

    Two bootstraps, and the wider end of both: groups resampled with replacement (`bootstrap.stretch`); and images generated anew inside
    each group from its shares (with half an image added to every concept, so that a group of one kind still varies). DevRat is convex:
    resampled images raise its mean, so these samples are centred on it again. The order of the groups has no influence.

    Args:
        counts: (G, C) images per group and concept. proportions: (C,), or (G, C) for every group its own; None is uniform.
    """
    values = whole_numbers("counts", counts)
    if values.ndim != 2:
        raise ValueError(f"counts must have shape (groups, concepts) with at least one group, got {values.shape}")
    check_level(level)
    target = _checked_proportions(proportions, values.shape[-1])
    if target.ndim == 2 and len(target) != len(values):
        raise ValueError(f"proportions must be one row per group ({len(values)}), got {len(target)}")
    own = np.broadcast_to(target, values.shape)
    order = np.lexsort(np.c_[own, values].T)
    values, own = values[order], own[order]
    each = dev_rat(values, own)
    mean, groups = float(each.mean()), len(each)
    between = ends(ratio_draws(each, np.ones(groups), n_bootstrap=n_bootstrap, seed=seed), mean, groups, level)
    within = _image_draws(values, own, n_bootstrap, seed)
    return Estimate.spanning(mean, *between, *quantiles(within + (mean - within.mean()), level), n=round(values.sum()))


def _image_draws(values: Floats, proportions: Floats, n_bootstrap: int, seed: int) -> Floats:
    """Mean DevRat of the same groups with images generated anew, (n_bootstrap,)."""
    smooth = values + 0.5
    chance, sizes = smooth / smooth.sum(-1, keepdims=True), values.sum(-1).astype(np.int64)
    rng = np.random.default_rng((seed, 1))
    drawn = (rng.multinomial(sizes, chance, size=(n, len(sizes))) for n in batches(n_bootstrap, values.size))
    return np.concatenate([dev_rat(counts, proportions).mean(-1) for counts in drawn])


def expected_devrat_random(sizes: Sequence[int], classes: int, proportions: ArrayLike | None = None) -> float:
    """Expected mean DevRat of a perfect generator that samples concepts at random, for groups of these sizes.

    Exact for two concepts (a binomial sum), otherwise the mean of a seeded simulation. ``proportions`` as for `mean_dev_rat`.

    >>> round(expected_devrat_random([150], 2), 3)
    0.065
    """
    if len(sizes) == 0 or any(int(n) != n or n < 1 for n in sizes):
        raise ValueError(f"sizes must be whole numbers of 1 or more, one per group, got {list(sizes)}")
    target = np.broadcast_to(_checked_proportions(proportions, classes), (len(sizes), classes))
    return math.fsum(_expected_random(int(n), tuple(row.tolist())) for n, row in zip(sizes, target, strict=True)) / len(sizes)


@cache
def _expected_random(n: int, target: tuple[float, ...]) -> float:
    if len(target) == 2:
        ones = np.arange(n + 1)
        rows = np.stack([ones, n - ones], axis=-1)
        return float((dev_rat(rows, target) * binom.pmf(ones, n, target[0])).sum())
    draws = np.random.default_rng(0).multinomial(n, target, size=RANDOM_DRAWS)
    return float(dev_rat(draws, target).mean())


def wilson(successes: float, n: int, level: float = LEVEL) -> Estimate:
    """Wilson score interval of a share from ``n`` independent images.

    >>> wilson(0, 20).high < 0.2
    True
    """
    check_level(level)
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes must lie in 0..n with n of 1 or more, got successes={successes}, n={n}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Estimate.spanning(share, centre - half, centre + half, n=n)


def share_interval(successes: ArrayLike, totals: ArrayLike, *, n_bootstrap: int = 2000, seed: int = 0, level: float = LEVEL) -> Estimate:
    """Share over all images, with an interval that allows for images of one group being alike.

    Cluster bootstrap over groups (`bootstrap.stretch`), never narrower than `wilson` on the pooled images, as a bootstrap cannot see beyond
    what occurred. Two or three groups that are each of one kind may by chance be of the same kind: there 95 % come out as 86 to 90 %.
    The order of the groups has no influence.

    Args:
        successes: (G,) images with the property. totals: (G,) images, each at least 1.
    """
    hits, sizes = whole_numbers("successes", successes, 1), whole_numbers("totals", totals, 1)
    if hits.shape != sizes.shape or (sizes == 0).any() or (hits > sizes).any():
        raise ValueError("totals must be as many as successes, at least 1 and at least as large as successes in every group")
    pooled = wilson(round(hits.sum()), round(sizes.sum()), level)
    if len(hits) == 1:
        return pooled
    order = np.lexsort((sizes, hits))
    draws = ratio_draws(hits[order], sizes[order], n_bootstrap=n_bootstrap, seed=seed)
    return Estimate.spanning(pooled.mean, pooled.low, pooled.high, *ends(draws, pooled.mean, len(hits), level), n=pooled.n)


def whole_numbers(name: str, counts: ArrayLike, *axes: int) -> Floats:
    """Numbers of images as an array, checked: whole numbers of 0 or more, not empty, with one of these numbers of axes (none given: any).

    Raises:
        ValueError: they are not; says which argument.
    """
    values = np.asarray(counts, dtype=np.float64)
    if values.ndim == 0 or values.size == 0 or (axes and values.ndim not in axes):
        wanted = f"must have {' or '.join(map(str, axes))} axes and not be empty, got" if axes else "is empty:"
        raise ValueError(f"{name} {wanted} shape {values.shape}; give at least one group with one image")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinity: count unreadable images as unknown instead")
    if (values < 0).any() or (values != np.round(values)).any():
        raise ValueError(f"{name} must be whole numbers of 0 or more: give numbers of images, not shares")
    return values


def _checked_proportions(proportions: ArrayLike | None, classes: int) -> Floats:
    if classes < 2:
        raise ValueError(f"counts must be of 2 or more concepts, got {classes}: DevRat compares alternatives")
    if proportions is None:
        return np.full(classes, 1 / classes)
    target = np.asarray(proportions, dtype=np.float64)
    if target.ndim == 0 or target.shape[-1] != classes:
        raise ValueError(f"proportions must have one number per concept ({classes}), got shape {target.shape}")
    if not np.isfinite(target).all() or (target < 0).any() or (np.abs(target.sum(-1) - 1) > 1e-6).any():
        raise ValueError(f"proportions must be 0 or more and sum to 1, got {target.tolist()}")
    return target
