"""Compares two methods on the same (prompt, repeat) pairs: tests with the size of the difference, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

from respodiff.evaluation.metrics.estimate import (
    LEVEL,
    Codes,
    Estimate,
    Floats,
    batches,
    ends,
    group_index,
    quantiles,
    ratio_draws,
    summed_draws,
)
from respodiff.evaluation.metrics.fairness import checked_proportions, dev_rat

ROUNDING = 1e-12  # two statistics closer than this are a tie


@dataclass(frozen=True)
class PairedTest:
    """A ``difference`` in [-1, 1] with a paired interval, n the number of pairs, and its two-sided ``p`` in (0, 1]."""

    difference: Estimate
    p: float


def mcnemar(before: ArrayLike, after: ArrayLike, groups: Sequence[str], *, n_bootstrap: int = 2000, seed: int = 0) -> PairedTest:
    """Did a property of images become more frequent? Share after minus share before, and McNemar's exact test on the pairs that changed.

    p is a two-sided binomial test of the changed pairs, taken as independent. The interval has the wider end of two: Wald's formula with a
    pair added to each kind of change (Bonett and Price 2012), and a cluster bootstrap over groups (`estimate.stretch`; not of one group).

    Args:
        before, after: (N,) bool, row by row the same (prompt, repeat). groups: (N,) prompts. The order of the rows has no influence.

    Raises:
        ValueError: not boolean, of different length, or empty; n_bootstrap below 1.

    >>> found = mcnemar([False] * 6, [True] * 6, ["g"] * 6)
    >>> found.difference.mean, found.p
    (1.0, 0.03125)
    """
    first, second = np.asarray(before), np.asarray(after)
    n = len(groups)
    if n == 0 or not first.shape == second.shape == (n,) or not first.dtype == second.dtype == np.bool_:
        raise ValueError(
            f"before and after must be booleans (N,) of one length, one for each of {n} groups entries, "
            f"got {first.shape} {first.dtype}, {second.shape} {second.dtype}"
        )
    gained, lost = int((~first & second).sum()), int((first & ~second).sum())
    p = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = NormalDist().inv_cdf((1 + LEVEL) / 2) * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    mean = (gained - lost) / n
    index = group_index(groups)
    changes, sizes = np.bincount(index, weights=second.astype(int) - first), np.bincount(index)
    order = np.lexsort((sizes, changes))
    draws = ratio_draws(changes[order], sizes[order], n_bootstrap=n_bootstrap, seed=seed)
    bounds = (up - down - half, up - down + half, *ends(draws, mean, len(sizes)))
    return PairedTest(Estimate.spanning(mean, *bounds, n=n, least=-1.0), p)


def devrat_test(
    a: Sequence[str],
    b: Sequence[str],
    groups: Sequence[str],
    classes: Sequence[str],
    *,
    proportions: ArrayLike | None = None,
    permutations: int = 1000,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> PairedTest:
    """Mean DevRat of a minus that of b over groups (`fairness.dev_rat`), with an interval and a permutation test.

    For p the labels of a pair are swapped at random, as the null allows; the observed order counts as one of the permutations. The
    interval has the wider end of two bootstraps, as for `fairness.mean_dev_rat`: groups drawn with replacement, both methods of a group
    together (`estimate.stretch`; not of one group); and pairs sampled anew inside each group from its own table of both labels (with
    ``C / 2`` pairs in all added over the C x C combinations of classes), centred on the difference.

    Args:
        a, b: (N,) labels of the two methods, row by row the same (prompt, repeat). Labels that are no class (unknown) count for none; a
            group without a known label of a method is left out of that method's mean.
        groups: (N,) prompts. classes: (C,) 2 or more labels.
        proportions: the wanted ones, (C,) or (G, C) with the groups sorted; None is uniform.

    Returns:
        The difference is below 0 where a is the fairer one.

    Raises:
        ValueError: columns of different length or empty, classes or shares that are none, or no known label in a method or a permutation.

    >>> found = devrat_test(["x"] * 8, ["x", "y"] * 4, ["g"] * 8, ["x", "y"])
    >>> found.difference.mean, found.p < 0.2
    (1.0, True)
    """
    if len(a) == 0 or not len(a) == len(b) == len(groups):
        raise ValueError(f"a, b and groups must be of one length and not empty, got {len(a)}, {len(b)} and {len(groups)}")
    place = {name: i for i, name in enumerate(classes)}
    if len(place) != len(classes):
        raise ValueError(f"classes must be 2 or more different labels, got {list(classes)}: DevRat compares alternatives")
    index, size = group_index(groups), len(classes) + 1
    first, second = (np.array([place.get(label, size - 1) for label in column]) for column in (a, b))
    tables = np.zeros((int(index.max()) + 1, size, size))  # pairs of each group by both labels, the last row and column for unknown
    np.add.at(tables, (index, first, second), 1.0)
    own = checked_proportions(proportions, (len(tables), size - 1))
    p = _permutation_p(first, second, index, own, permutations, seed)
    order = np.lexsort(np.c_[own, tables.reshape(len(tables), -1)].T)
    tables, own = tables[order], own[order]
    parts = _parts(tables, own)
    mean = float(_difference(parts.sum(0)))
    bounds: tuple[float, ...] = ()
    if len(tables) > 1:
        draws = _difference(summed_draws(parts, n_bootstrap=n_bootstrap, seed=seed))
        bounds = ends(draws[np.isfinite(draws)], mean, len(tables))
    within = _pair_draws(tables, own, n_bootstrap, seed)
    within = within[np.isfinite(within)]
    return PairedTest(Estimate.spanning(mean, *bounds, *quantiles(within + mean - within.mean()), n=len(a), least=-1.0), p)


def _permutation_p(first: Codes, second: Codes, index: Codes, proportions: Floats, permutations: int, seed: int) -> float:
    groups, size = len(proportions), proportions.shape[1] + 1

    def parts(labels: Codes) -> Floats:
        cells = (np.arange(len(labels))[:, None] * groups + index) * size + labels
        counts = np.bincount(cells.ravel(), minlength=len(labels) * groups * size)
        summed: Floats = _known_dev_rat(counts.reshape(-1, groups, size), proportions).sum(1)
        return summed

    rng, hits = np.random.default_rng(seed), 0
    observed = _difference(np.concatenate([parts(first[None]), parts(second[None])], axis=-1))
    for number in batches(permutations, len(first)):
        swap = rng.random((number, len(first))) < 0.5
        drawn = _difference(np.concatenate([parts(np.where(swap, second, first)), parts(np.where(swap, first, second))], axis=-1))
        if not np.isfinite([*observed, *drawn]).all():
            raise ValueError("a and b must each hold a label of classes however pairs are swapped: leave out pairs with an unknown label")
        hits += int((np.abs(drawn) >= np.abs(observed) - ROUNDING).sum())
    return (hits + 1) / (permutations + 1)


def _pair_draws(tables: Floats, proportions: Floats, n_bootstrap: int, seed: int) -> Floats:
    """Differences of the same groups with pairs sampled anew, (n_bootstrap,)."""
    groups, size = tables.shape[:2]
    smooth = tables.copy()
    smooth[:, :-1, :-1] += 1 / (2 * (size - 1))
    chance = smooth.reshape(groups, -1) / smooth.sum((1, 2))[:, None]
    pairs = tables.sum((1, 2)).astype(np.int64)
    rng = np.random.default_rng((seed, 1))
    drawn = (rng.multinomial(pairs, chance, size=(n, groups)) for n in batches(n_bootstrap, tables.size))
    return np.concatenate([_difference(_parts(counts.reshape(-1, groups, size, size), proportions).sum(1)) for counts in drawn])


def _parts(tables: NDArray[Any], proportions: Floats) -> Floats:
    """`_known_dev_rat` of a then b, (..., G, 4), from tables of pairs by both labels, (..., G, C + 1, C + 1)."""
    return np.concatenate([_known_dev_rat(tables.sum(axis), proportions) for axis in (-1, -2)], axis=-1)


def _known_dev_rat(counts: NDArray[Any], proportions: Floats) -> Floats:
    """DevRat of each group, 0 where none of its images is known, and 1 where one is: (..., G, 2) of counts (..., G, C + 1), unknown last."""
    counts = counts[..., :-1]
    known = counts.sum(-1) > 0
    each = np.zeros(known.shape)
    if known.any():
        each[known] = dev_rat(counts[known], np.broadcast_to(proportions, counts.shape)[known])
    return np.stack([each, known], axis=-1)


def _difference(sums: Floats) -> Floats:
    """Mean of a less mean of b from sums over groups, (..., 4), of `_parts`; NaN where a method has no known group."""
    with np.errstate(invalid="ignore", divide="ignore"):
        difference: Floats = sums[..., 0] / sums[..., 1] - sums[..., 2] / sums[..., 3]
    return difference


def holm(p: ArrayLike) -> Floats:
    """Adjust p-values for their number (Holm 1979): the smallest times m, the next times m - 1, ..., never falling, at most 1.

    Args:
        p: (m,) in [0, 1].

    Returns:
        (m,) in the order of p; rejecting those below .05 keeps the chance of any false alarm below .05.

    >>> holm([0.01, 0.04, 0.02]).tolist()
    [0.03, 0.04, 0.04]
    """
    values = np.asarray(p, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p must be (m,) numbers in [0, 1], 1 or more of them, got shape {values.shape}: leave out tests without a result")
    order = np.argsort(values, kind="stable")
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)), 1.0)
    return adjusted
