"""Compares two methods on the same (prompt, repeat) pairs: tests, the difference of mean DevRat, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

from respodiff.evaluation.metrics.bootstrap import Codes, Floats, batches, ends, group_index, quantiles, ratio_draws, summed_draws
from respodiff.evaluation.metrics.estimate import LEVEL, Estimate
from respodiff.evaluation.metrics.fairness import dev_rat

Statistic = Callable[[NDArray[Any], Codes], Floats]
"""From labels (K, N), K versions of a column, and the group index of each image (N,) to K numbers."""

ROUNDING = 1e-12  # two statistics closer than this are a tie


@dataclass(frozen=True)
class PairedTest:
    """McNemar's test.

    Attributes:
        difference: share after minus share before, in [-1, 1], with a paired interval; n is the number of pairs.
        p: two-sided, exact, in (0, 1].
        gained: pairs that are false before and true after. lost: the reverse.
    """

    difference: Estimate
    p: float
    gained: int
    lost: int


@dataclass(frozen=True)
class PermutationTest:
    """A paired permutation test: ``difference`` of the statistic (a minus b), two-sided ``p`` in (0, 1], ``n`` pairs."""

    difference: float
    p: float
    n: int
    permutations: int


def mcnemar(
    before: ArrayLike, after: ArrayLike, groups: Sequence[str] | None = None, *, n_bootstrap: int = 2000, seed: int = 0
) -> PairedTest:
    """Did a property of images become more or less frequent? McNemar's exact test on the pairs that changed.

    p is a two-sided binomial test of the changed pairs. The interval of the difference adds a pair to each kind of change before Wald's
    formula (Bonett and Price 2012). Both take pairs as independent. With groups, the interval has the wider end of itself and of a cluster
    bootstrap over groups (`bootstrap.stretch`); p stays that of independent pairs; one group leaves all as it is.

    Args:
        before, after: (N,) bool, row by row the same (prompt, repeat).
        groups: (N,) prompts; None takes every pair as its own. The order of the rows has no influence.

    Raises:
        ValueError: not boolean, of different length, or empty; n_bootstrap below 1 with groups.

    >>> found = mcnemar([False] * 6, [True] * 6)
    >>> found.difference.mean, found.p
    (1.0, 0.03125)
    """
    first, second = np.asarray(before), np.asarray(after)
    if first.ndim != 1 or first.shape != second.shape or len(first) == 0 or {first.dtype, second.dtype} != {np.dtype(bool)}:
        raise ValueError(
            f"before and after must be booleans (N,) of one length, got {first.shape} {first.dtype}, {second.shape} {second.dtype}"
        )
    n, gained, lost = len(first), int((~first & second).sum()), int((first & ~second).sum())
    p = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = NormalDist().inv_cdf((1 + LEVEL) / 2) * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    mean = (gained - lost) / n
    bounds = [up - down - half, up - down + half]
    if groups is not None:
        if len(groups) != n:
            raise ValueError(f"groups must name the prompt of each of {n} pairs, got {len(groups)} entries")
        index = group_index(groups)
        changes, sizes = np.bincount(index, weights=second.astype(int) - first), np.bincount(index)
        order = np.lexsort((sizes, changes))
        draws = ratio_draws(changes[order], sizes[order], n_bootstrap=n_bootstrap, seed=seed)
        bounds += ends(draws, mean, len(sizes), LEVEL)
    return PairedTest(Estimate.spanning(mean, *bounds, n=n, least=-1.0), p, gained, lost)


def paired_permutation(
    a: ArrayLike, b: ArrayLike, groups: Sequence[str], statistic: Statistic, *, permutations: int = 1000, seed: int = 0
) -> PermutationTest:
    """Do two methods differ in a statistic of their labels? Labels of a pair are swapped at random, as the null allows.

    Args:
        a, b: (N,) labels of the two methods (texts or numbers), row by row the same (prompt, repeat).
        groups: (N,) prompts, passed on to the statistic as an index in the order of first sight.
        statistic: see `Statistic`; `mean_dev_rat_of` makes one.
        permutations: random swaps of all pairs, 1 or more. seed: of the swaps.

    Returns:
        p counts the observed order as one of the permutations ((hits + 1) / (permutations + 1)), so it is never 0.

    Raises:
        ValueError: columns of different length or empty, or a statistic that is not finite.

    >>> paired_permutation(["x"] * 9, ["y"] * 9, ["g"] * 9, lambda labels, _: (labels == "x").mean(1)).p < 0.01
    True
    """
    first, second, index = _pairs(a, b, groups)
    if permutations < 1:
        raise ValueError(f"permutations must be 1 or more (1000 is usual), got {permutations}")
    observed = float((statistic(first[None], index) - statistic(second[None], index))[0])
    rng = np.random.default_rng(seed)
    hits = 0
    for number in batches(permutations, len(first)):
        swap = rng.random((number, len(first))) < 0.5
        drawn = statistic(np.where(swap, second, first), index) - statistic(np.where(swap, first, second), index)
        if not np.isfinite(drawn).all():
            raise ValueError(
                "statistic must be finite for every permutation, got NaN or infinity: choose one that is defined for any labels"
            )
        hits += int((np.abs(drawn) >= abs(observed) - ROUNDING).sum())
    return PermutationTest(observed, (hits + 1) / (permutations + 1), len(first), permutations)


def mean_dev_rat_of(classes: Sequence[Any], proportions: ArrayLike | None = None) -> Statistic:
    """A `Statistic` for `paired_permutation`: mean DevRat over groups (`fairness.dev_rat`), of labels that are one of classes.

    Other labels (unknown) count for no class; groups where no label is a class are left out of the mean.

    Args:
        classes: (C,) 2 or more labels, of the columns' type.
        proportions: the wanted ones, (C,) or (G, C) with the groups in the order of their index; None is uniform.

    >>> mean_dev_rat_of(["x", "y"])(np.array([["x", "y", "x", "x"]]), np.array([0, 0, 1, 1])).tolist()
    [0.5]
    """
    _check_classes(classes)

    def measure(labels: NDArray[Any], index: Codes) -> Floats:
        versions, groups = len(labels), int(index.max()) + 1
        cells = np.arange(versions)[:, None] * groups + index
        counts = np.stack([np.bincount(cells[labels == name], minlength=versions * groups) for name in classes], axis=-1)
        each, known = _each_dev_rat(counts.reshape(versions, groups, -1), proportions)
        with np.errstate(invalid="ignore"):
            mean: Floats = each.sum(1) / known.sum(1)
        return mean

    return measure


def devrat_difference(
    a: ArrayLike,
    b: ArrayLike,
    groups: Sequence[str],
    classes: Sequence[Any],
    *,
    proportions: ArrayLike | None = None,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Mean DevRat of a minus that of b over groups (`fairness.dev_rat`), with an interval: the size to the p of `paired_permutation`.

    Two bootstraps, and the wider end of both, as for `fairness.mean_dev_rat`: groups drawn with replacement, both methods of a group
    together (`bootstrap.stretch`; not with one group); and pairs sampled anew inside each group from its own table of both labels (with
    ``C / 2`` pairs in all added over the C x C combinations of classes), centred on the difference. The order of the rows has no influence.

    Args:
        a, b: (N,) labels of the two methods (texts or numbers), row by row the same (prompt, repeat). Labels that are no class
            (unknown) count for none; a group without a known label of a method is left out of that method's mean.
        groups: (N,) prompts. classes: (C,) 2 or more labels, of the columns' type.
        proportions: the wanted ones, (C,) or (G, C) with the groups in the order of first sight; None is uniform.

    Returns:
        In [-1, 1], below 0 where a is the fairer one, and equal to the difference of `paired_permutation`; n is the number of pairs.

    Raises:
        ValueError: columns of different length or empty, classes or shares that are none, or a method without a known label.

    >>> devrat_difference(["x"] * 8, ["x", "y"] * 4, ["g"] * 8, ["x", "y"]).mean
    1.0
    """
    _check_classes(classes)
    *columns, index = _pairs(a, b, groups)
    number, size = int(index.max()) + 1, len(classes) + 1
    codes = [np.select([column == name for name in classes], range(size - 1), size - 1) for column in columns]
    tables = np.zeros((number, size, size))  # pairs of each group by both labels, the last row and column for unknown
    np.add.at(tables, (index, *codes), 1.0)
    if proportions is not None and np.ndim(proportions) == 2 and len(np.asarray(proportions)) != number:
        raise ValueError(f"proportions must be one row per group ({number}), got {len(np.asarray(proportions))}")
    own = np.broadcast_to(1 / (size - 1) if proportions is None else proportions, (number, size - 1)).astype(np.float64)
    order = np.lexsort(np.c_[own, tables.reshape(number, -1)].T)
    tables, own = tables[order], own[order]
    parts = _parts(tables, own)
    if not parts[:, 1::2].any(0).all():
        raise ValueError(f"a and b must each hold a label of classes {list(classes)}, got none: correct the labels or leave the test out")
    mean = float(_ratio(parts.sum(0)))
    bounds: tuple[float, ...] = ()
    if number > 1:
        draws = _ratio(summed_draws(parts, n_bootstrap=n_bootstrap, seed=seed))
        bounds = ends(draws[np.isfinite(draws)], mean, number, LEVEL)
    within = _pair_draws(tables, own, n_bootstrap, seed)
    within = within[np.isfinite(within)]
    return Estimate.spanning(mean, *bounds, *quantiles(within + mean - within.mean()), n=round(tables.sum()), least=-1.0)


def _pairs(a: ArrayLike, b: ArrayLike, groups: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any], Codes]:
    """Two columns of labels, checked, and the group of each row as an index in the order of first sight."""
    first, second = np.asarray(a), np.asarray(b)
    if first.ndim != 1 or len(first) == 0 or first.shape != second.shape or len(groups) != len(first):
        raise ValueError(f"a, b and groups must be (N,) of one length and not empty, got {first.shape}, {second.shape} and {len(groups)}")
    place = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    return first, second, np.array([place[name] for name in groups], dtype=np.int64)


def _check_classes(classes: Sequence[Any]) -> None:
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise ValueError(f"classes must be 2 or more different labels, got {list(classes)}: DevRat compares alternatives")


def _each_dev_rat(counts: NDArray[Any], proportions: ArrayLike | None) -> tuple[Floats, NDArray[np.bool_]]:
    """DevRat of each group, 0 where none of its images is known, and whether one is: two (..., G) of counts (..., G, C)."""
    known = counts.sum(-1) > 0
    each = np.zeros(known.shape)
    if known.any():
        each[known] = dev_rat(counts[known], None if proportions is None else np.broadcast_to(proportions, counts.shape)[known])
    return each, known


def _parts(tables: Floats, proportions: Floats) -> Floats:
    """DevRat of a group and whether it is known, for a then b: (..., 4) of tables (..., C + 1, C + 1)."""
    found = [part for axis in (-1, -2) for part in _each_dev_rat(tables.sum(axis)[..., :-1], proportions)]
    return np.stack([part.astype(np.float64) for part in found], axis=-1)


def _ratio(parts: Floats) -> Floats:
    """Mean of a less mean of b from sums of `_parts`; NaN where a method has no known group."""
    with np.errstate(invalid="ignore", divide="ignore"):
        difference: Floats = parts[..., 0] / parts[..., 1] - parts[..., 2] / parts[..., 3]
    return difference


def _pair_draws(tables: Floats, proportions: Floats, n_bootstrap: int, seed: int) -> Floats:
    """Differences of the same groups with pairs sampled anew, (n_bootstrap,)."""
    groups, size = tables.shape[:2]
    smooth = tables.copy()
    smooth[:, :-1, :-1] += 1 / (2 * (size - 1))
    chance = smooth.reshape(groups, -1) / smooth.sum((1, 2))[:, None]
    pairs = tables.sum((1, 2)).astype(np.int64)
    rng = np.random.default_rng((seed, 1))
    drawn = (rng.multinomial(pairs, chance, size=(n, groups)).astype(np.float64) for n in batches(n_bootstrap, tables.size))
    return np.concatenate([_ratio(_parts(counts.reshape(-1, groups, size, size), proportions).sum(1)) for counts in drawn])


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
