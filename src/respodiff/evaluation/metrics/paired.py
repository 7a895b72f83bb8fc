"""Tests of two methods on the same (prompt, repeat) pairs, and the correction for testing many times."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

from respodiff.evaluation.metrics.bootstrap import ends, ratio_draws
from respodiff.evaluation.metrics.devrat_pairs import devrat_difference
from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.evaluation.metrics.fairness import dev_rat

__all__ = [
    "PairedTest",
    "PermutationTest",
    "Statistic",
    "devrat_difference",
    "holm",
    "mcnemar",
    "mean_dev_rat_of",
    "paired_permutation",
]

Floats = NDArray[np.float64]
Statistic = Callable[[NDArray[Any], NDArray[np.int64]], Floats]
"""From labels (K, N), K versions of a column, and the group index of each image (N,) to K numbers."""

LABEL_CELLS = 500_000  # permuted labels in memory at a time
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
    before: ArrayLike,
    after: ArrayLike,
    groups: Sequence[Hashable] | None = None,
    *,
    n_bootstrap: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> PairedTest:
    """Did a property of images become more or less frequent? McNemar's exact test on the pairs that changed.

    Under the null each of the changed pairs is a fair coin, so p is a binomial tail, doubled. The interval of the difference adds
    a pair to each kind of change before Wald's formula (Bonett and Price 2012), which covers well also with few changes.

    Both take pairs as independent. Where prompts differ in how much changes, that interval is too narrow for what other prompts would
    give: with groups, it has the wider end of itself and of a cluster bootstrap over groups, stretched as few groups need it
    (`bootstrap.stretch`). p stays that of independent pairs; one group leaves all as it is.

    Args:
        before, after: (N,) bool, row by row the same (prompt, repeat).
        groups: (N,) prompts; None takes every pair as its own. The order of the rows has no influence.
        n_bootstrap: draws, 1 or more. seed: of the draws. level: of the interval, in (0, 1).

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
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1 (0.95 is usual), got {level}")
    n, gained, lost = len(first), int((~first & second).sum()), int((first & ~second).sum())
    p = min(1.0, 2 * float(binom.cdf(min(gained, lost), gained + lost, 0.5)))
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    mean = (gained - lost) / n
    low, high = min(mean, up - down - half), max(mean, up - down + half)
    if groups is not None:
        wide = _clustered(second.astype(int) - first, groups, mean, n_bootstrap, seed, level)
        low, high = min(low, wide[0]), max(high, wide[1])
    return PairedTest(Estimate(mean, max(-1.0, low), min(1.0, high), n), p, gained, lost)


def _clustered(
    change: NDArray[np.int64], groups: Sequence[Hashable], mean: float, n_bootstrap: int, seed: int, level: float
) -> tuple[float, float]:
    """The interval of a mean change of pairs over other groups; the mean itself for one group."""
    if len(groups) != len(change):
        raise ValueError(f"groups must name the prompt of each of {len(change)} pairs, got {len(groups)} entries")
    place = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    index = [place[name] for name in groups]
    changes, sizes = np.bincount(index, weights=change), np.bincount(index)
    order = np.lexsort((sizes, changes))
    return ends(ratio_draws(changes[order], sizes[order], n_bootstrap=n_bootstrap, seed=seed), mean, len(sizes), level)


def paired_permutation(
    a: ArrayLike, b: ArrayLike, groups: Sequence[Hashable], statistic: Statistic, *, permutations: int = 1000, seed: int = 0
) -> PermutationTest:
    """Do two methods differ in a statistic of their labels? Labels of a pair are swapped at random, as the null allows.

    Args:
        a, b: (N,) labels of the two methods (texts or numbers), row by row the same (prompt, repeat).
        groups: (N,) prompts, passed on to the statistic as an index.
        statistic: see `Statistic`; `mean_dev_rat_of` makes one.
        permutations: random swaps of all pairs, 1 or more. seed: of the swaps.

    Returns:
        p counts the observed order as one of the permutations ((hits + 1) / (permutations + 1)), so it is never 0.

    Raises:
        ValueError: columns of different length or empty, or a statistic that is not finite.

    >>> paired_permutation(["x"] * 9, ["y"] * 9, ["g"] * 9, lambda labels, _: (labels == "x").mean(1)).p < 0.01
    True
    """
    first, second = np.asarray(a), np.asarray(b)
    if first.ndim != 1 or len(first) == 0 or first.shape != second.shape or len(groups) != len(first):
        raise ValueError(f"a, b and groups must be (N,) of one length and not empty, got {first.shape}, {second.shape} and {len(groups)}")
    if permutations < 1:
        raise ValueError(f"permutations must be 1 or more (1000 is usual), got {permutations}")
    place = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    index = np.array([place[name] for name in groups], dtype=np.int64)
    observed = float((statistic(first[None], index) - statistic(second[None], index))[0])
    rng = np.random.default_rng(seed)
    step = max(1, LABEL_CELLS // len(first))
    hits = 0
    for start in range(0, permutations, step):
        swap = rng.random((min(step, permutations - start), len(first))) < 0.5
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
        classes: (C,) 2 or more labels, of the columns' type. proportions: the wanted proportions, (C,) or (G, C) with the groups in the order of
            their index; None is uniform.

    >>> mean_dev_rat_of(["x", "y"])(np.array([["x", "y", "x", "x"]]), np.array([0, 0, 1, 1])).tolist()
    [0.5]
    """
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise ValueError(f"classes must be 2 or more different labels, got {list(classes)}: DevRat compares alternatives")

    def measure(labels: NDArray[Any], index: NDArray[np.int64]) -> Floats:
        versions, groups = len(labels), int(index.max()) + 1
        cells = np.arange(versions)[:, None] * groups + index
        counts = np.stack([np.bincount(cells[labels == name], minlength=versions * groups) for name in classes], axis=-1)
        known = counts.sum(-1) > 0
        each = np.zeros(versions * groups)
        if known.any():
            own = (
                None
                if proportions is None
                else np.broadcast_to(proportions, (versions, groups, len(classes))).reshape(-1, len(classes))[known]
            )
            each[known] = dev_rat(counts[known], own)
        with np.errstate(invalid="ignore"):
            mean: Floats = each.reshape(versions, groups).sum(1) / known.reshape(versions, groups).sum(1)
        return mean

    return measure


def holm(p: ArrayLike) -> Floats:
    """Adjust p-values for their number (Holm 1979): the smallest times m, the next times m - 1, ..., never falling, at most 1.

    Args:
        p: (m,) in [0, 1].

    Returns:
        (m,) in the order of p; rejecting those below .05 keeps the chance of any false alarm below .05.

    Raises:
        ValueError: not (m,), empty, or outside [0, 1].

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
