"""DevRat, the deviation ratio of the paper's WinoBias tables: 0 for the wanted proportions, 1 where all images are of one concept.

``C`` is the number of concepts of an attribute, ``G`` the number of groups (prompts), ``t_c`` the wanted share of a concept. For searches
over many groups there are exact intervals and tests. They take images of a prompt as independent given the prompt, as their noises are;
a group that pools several prompts varies less than that, so that they err on the wide side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom, binomtest

from respodiff.evaluation.metrics.estimate import LEVEL, Estimate, Floats, batches, ends, quantiles, ratio_draws
from respodiff.evaluation.metrics.shares import exact_band, whole_numbers

RANDOM_DRAWS = 20_000


def dev_rat(counts: ArrayLike, proportions: ArrayLike | None = None) -> Floats:
    """Deviation ratio: ``max_c |N_c / N - t_c| / (1 - min_c t_c)``, with ``t_c = 1 / C`` unless shares are wanted.

    Args:
        counts: images of each concept, (..., C), at least one image a row.
        proportions: the wanted ones, summing to 1: (C,), or (..., C) for every row its own; None is uniform.

    Returns:
        (...) in [0, 1]; 1 where all are of the concept that is wanted least.

    >>> float(dev_rat([9, 1])), dev_rat([[9, 1], [9, 1]], [[0.9, 0.1], [0.1, 0.9]]).tolist()
    (0.8, [0.0, 0.888888888888889])
    """
    values = whole_numbers("counts", counts)
    total = values.sum(-1, keepdims=True)
    if (total == 0).any():
        raise ValueError("counts has a group without images: leave such groups out and report them as unknown")
    target = checked_proportions(proportions, values.shape)
    deviation: Floats = np.abs(values / total - target).max(-1) / (1 - target.min(-1))
    return deviation


def mean_dev_rat(
    counts: ArrayLike, *, proportions: ArrayLike | None = None, n_bootstrap: int = 2000, seed: int = 0, level: float = LEVEL
) -> Estimate:
    """Mean DevRat over groups, (G, C) images; the interval holds what other groups of the same kind, and other images of these, would give.

    Two bootstraps, and the wider end of both: groups resampled (`estimate.stretch`); and images generated anew inside each group from its
    shares, with half an image added to every concept. DevRat is convex, so these samples are centred on the mean again. ``proportions`` as
    for `dev_rat`. The order of the groups has no influence.
    """
    values = whole_numbers("counts", counts, 2)
    own = checked_proportions(proportions, values.shape)
    order = np.lexsort(np.c_[own, values].T)
    values, own = values[order], own[order]
    each = dev_rat(values, own)
    mean, groups = float(each.mean()), len(each)
    between = ends(ratio_draws(each, np.ones(groups), n_bootstrap=n_bootstrap, seed=seed), mean, groups, level)
    smooth = values + 0.5
    chance, sizes = smooth / smooth.sum(-1, keepdims=True), values.sum(-1).astype(np.int64)
    rng = np.random.default_rng((seed, 1))
    drawn = (rng.multinomial(sizes, chance, size=(n, groups)) for n in batches(n_bootstrap, values.size))
    within = np.concatenate([dev_rat(table, own).mean(-1) for table in drawn])
    return Estimate.spanning(mean, *between, *quantiles(within + (mean - within.mean()), level), n=round(values.sum()))


def expected_devrat_random(sizes: Sequence[int], classes: int, proportions: ArrayLike | None = None) -> float:
    """Expected mean DevRat of a perfect generator that samples concepts at random, for groups of these sizes.

    Exact for two concepts (a binomial sum), otherwise the mean of a seeded simulation. ``proportions`` as for `mean_dev_rat`.

    >>> round(expected_devrat_random([150], 2), 3)
    0.065
    """
    if len(sizes) == 0 or any(int(n) != n or n < 1 for n in sizes):
        raise ValueError(f"sizes must be whole numbers of 1 or more, one per group, got {list(sizes)}")
    target = checked_proportions(proportions, (len(sizes), classes))
    return math.fsum(_expected_random(int(n), tuple(row.tolist())) for n, row in zip(sizes, target, strict=True)) / len(sizes)


@cache
def _expected_random(n: int, target: tuple[float, ...]) -> float:
    if len(target) == 2:
        ones = np.arange(n + 1)
        rows = np.stack([ones, n - ones], axis=-1)
        return float((dev_rat(rows, target) * binom.pmf(ones, n, target[0])).sum())
    draws = np.random.default_rng(0).multinomial(n, target, size=RANDOM_DRAWS)
    return float(dev_rat(draws, target).mean())


def checked_proportions(proportions: ArrayLike | None, shape: tuple[int, ...]) -> Floats:
    """Proportions (C,) or (..., C), None for uniform ones, as an array of the shape of counts (..., C); ValueError where they do not fit."""
    classes = shape[-1]
    if classes < 2:
        raise ValueError(f"counts must be of 2 or more concepts, got {classes}: DevRat compares alternatives")
    target = np.asarray(np.full(classes, 1 / classes) if proportions is None else proportions, dtype=np.float64)
    if target.ndim == 0 or target.shape != shape[-target.ndim :]:
        raise ValueError(
            f"proportions must be one number per concept ({classes}), or such a row for each row of counts, got shape {target.shape}"
        )
    if not np.isfinite(target).all() or (target < 0).any() or (np.abs(target.sum(-1) - 1) > 1e-6).any():
        raise ValueError(f"proportions must be 0 or more and sum to 1, got {target.tolist()}")
    return np.broadcast_to(target, shape)


def bias_band(counts: Sequence[int], proportions: Sequence[float], level: float = LEVEL) -> Estimate:
    """DevRat of one group with an exact interval.

    The C shares get intervals that hold at once (`shares.exact_band` at ``1 - (1 - level) / C``; two concepts have one share). DevRat then
    lies between the largest of the smallest and the largest of the largest deviations that they allow, over ``1 - min_c t_c``.

    >>> found = bias_band([9, 1], [0.5, 0.5])
    >>> found.mean, round(found.low, 3), round(found.high, 3)
    (0.8, 0.11, 0.995)
    """
    n, found = sum(counts), float(dev_rat(counts, proportions))
    each = 1 - (1 - level) / _free_shares(counts)
    bands = [(*exact_band(k, n, each), t) for k, t in zip(counts, proportions, strict=True)]
    reach = 1 - min(proportions)
    low = max(max(0.0, low - t, t - high) for low, high, t in bands) / reach
    high = max(max(high - t, t - low) for low, high, t in bands) / reach
    return Estimate.spanning(found, low, high, n=n)


def bias_p(counts: Sequence[int], proportions: Sequence[float]) -> float:
    """p that one group has the wanted proportions: the least of exact two-sided binomial tests of its C shares, times C (1 for two); at most 1.

    >>> bias_p([10, 0], [0.5, 0.5])
    0.001953125
    """
    n = sum(counts)
    smallest = min(float(binomtest(k, n, t).pvalue) for k, t in zip(counts, proportions, strict=True))
    return min(1.0, _free_shares(counts) * smallest)


def mean_bias_p(counts: ArrayLike, proportions: Sequence[float], *, draws: int = 20_000, seed: int = 0) -> float:
    """p that all groups, (G, C) images, have the wanted proportions: how often random sampling shows a mean DevRat as large.

    Simulated at the same numbers of images, ``(1 + hits) / (1 + draws)``.
    """
    values = np.asarray(counts, dtype=np.int64)
    observed, sizes = float(dev_rat(values, proportions).mean()), values.sum(1)
    rng = np.random.default_rng(seed)
    made = (rng.multinomial(sizes, proportions, size=(n, len(sizes))) for n in batches(draws, values.size))
    hits = sum(int((dev_rat(row, proportions).mean(-1) >= observed - 1e-12).sum()) for row in made)
    return (1 + hits) / (1 + draws)


def images_required(proportions: Sequence[float], tests: int) -> int:
    """The fewest images of a group that can show it to be biased among so many tests: all of them of the concept that is most wanted.

    >>> images_required([0.5, 0.5], 1), images_required([0.5, 0.5], 72)
    (6, 12)
    """
    top = int(np.argmax(proportions))
    if proportions[top] >= 1:
        return 1
    most = math.ceil(math.log((1 - LEVEL) / (2 * tests * len(proportions))) / math.log(proportions[top])) + 1
    rows = ([n if i == top else 0 for i in range(len(proportions))] for n in range(1, most))
    return next((sum(row) for row in rows if bias_p(row, proportions) * tests <= 1 - LEVEL), most)


def _free_shares(counts: Sequence[int]) -> int:
    """How many shares of a group are free to be wrong: one of two concepts, else all."""
    return 1 if len(counts) == 2 else len(counts)
