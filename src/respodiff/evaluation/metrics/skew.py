"""Exact intervals and tests of how biased the images of one group are, for searches over many groups and attributes.

``C`` is the number of concepts of an attribute, ``t_c`` the wanted share of each. Images of one prompt start from independent noise, so
that a count is binomial given the prompt; where a group pools several prompts it varies less than that, and intervals err on the wide side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import beta, binomtest

from respodiff.evaluation.metrics.bootstrap import batches, check_level
from respodiff.evaluation.metrics.estimate import LEVEL, Estimate
from respodiff.evaluation.metrics.fairness import dev_rat


def exact_band(count: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Clopper-Pearson interval of a share: it holds the truth with at least ``level``, whatever the share and however small n.

    >>> tuple(round(x, 3) for x in exact_band(0, 10)), exact_band(10, 10)[1]
    ((0.0, 0.308), 1.0)
    """
    check_level(level)
    if n < 1 or not 0 <= count <= n:
        raise ValueError(f"count must lie in 0..n with n of 1 or more, got count={count}, n={n}")
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, count, n - count + 1)) if count else 0.0
    high = float(beta.ppf(1 - tail, count + 1, n - count)) if count < n else 1.0
    return low, high


def bias_band(counts: Sequence[int], proportions: Sequence[float], level: float = LEVEL) -> Estimate:
    """DevRat of one group (`fairness.dev_rat`) with an exact interval.

    The C shares get intervals that hold at once (`exact_band` at ``1 - (1 - level) / C``; two concepts have one share). DevRat then lies
    between the largest of the smallest and the largest of the largest deviations that they allow, over ``1 - min_c t_c``.

    >>> found = bias_band([9, 1], [0.5, 0.5])
    >>> found.mean, round(found.low, 3), round(found.high, 3)
    (0.8, 0.11, 0.995)
    """
    n, found = sum(counts), float(dev_rat(counts, proportions))
    each = 1 - (1 - level) / _proportions_of(counts)
    bands = [(*exact_band(k, n, each), t) for k, t in zip(counts, proportions, strict=True)]
    reach = 1 - min(proportions)
    low = max(max(0.0, low - t, t - high) for low, high, t in bands) / reach
    high = max(max(high - t, t - low) for low, high, t in bands) / reach
    return Estimate.spanning(found, low, high, n=n)


def bias_p(counts: Sequence[int], proportions: Sequence[float]) -> float:
    """p of the hypothesis that the group has the wanted proportions: the smallest of exact two-sided binomial tests of its C shares, times C
    (two concepts have one share); at most 1.

    >>> bias_p([10, 0], [0.5, 0.5])
    0.001953125
    """
    n = sum(counts)
    smallest = min(float(binomtest(k, n, t).pvalue) for k, t in zip(counts, proportions, strict=True))
    return min(1.0, _proportions_of(counts) * smallest)


def mean_bias_p(counts: ArrayLike, proportions: Sequence[float], *, draws: int = 20_000, seed: int = 0) -> float:
    """p of the hypothesis that every group has the wanted proportions: how often a perfect generator that samples at random, at the same
    numbers of images, shows a mean DevRat as large. Simulated, ``(1 + hits) / (1 + draws)``.

    Args:
        counts: (G, C) images per group and concept, each group with one at least.
    """
    values = np.asarray(counts, dtype=np.int64)
    observed, sizes = float(dev_rat(values, proportions).mean()), values.sum(1)
    rng = np.random.default_rng(seed)
    made = (rng.multinomial(sizes, proportions, size=(n, len(sizes))) for n in batches(draws, values.size))
    hits = sum(int((dev_rat(row, proportions).mean(-1) >= observed - 1e-12).sum()) for row in made)
    return (1 + hits) / (1 + draws)


def images_required(proportions: Sequence[float], tests: int, level: float = LEVEL) -> int:
    """The fewest images of a group that can show it to be biased among so many tests: all of them of the concept that is most wanted.

    >>> images_required([0.5, 0.5], 1), images_required([0.5, 0.5], 72)
    (6, 12)
    """
    top = int(np.argmax(proportions))
    if proportions[top] >= 1:
        return 1
    most = math.ceil(math.log((1 - level) / (2 * tests * len(proportions))) / math.log(proportions[top])) + 1
    rows = ([n if i == top else 0 for i in range(len(proportions))] for n in range(1, most))
    return next((sum(row) for row in rows if bias_p(row, proportions) * tests <= 1 - level), most)


def _proportions_of(counts: Sequence[int]) -> int:
    """How many shares of a group are free to be wrong: one of two concepts, else all."""
    return 1 if len(counts) == 2 else len(counts)
