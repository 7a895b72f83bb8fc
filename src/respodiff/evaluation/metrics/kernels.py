"""Distances of feature sets by a kernel (squared MMD), each with an interval: KID and CMMD."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from respodiff.evaluation.metrics.apart import apart_gaussian, apart_kid, both
from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.evaluation.metrics.moments import (
    Floats,
    Sums,
    cube_kernel,
    deal,
    gaussian_mmd,
    jackknife,
    pair,
    polynomial_rests,
    spread,
    unit,
)


def polynomial_mmd(x: ArrayLike, y: ArrayLike) -> float:
    """Unbiased squared MMD with the kernel ``(a . b / D + 1)^3`` (Gretton et al. 2012; Binkowski et al. 2018); may be below 0.

    >>> polynomial_mmd([[0.0], [0.0]], [[1.0], [1.0]])
    7.0
    """
    first, second = pair(x, y)
    within, other, across = (cube_kernel(a, b) for a, b in ((first, first), (second, second), (first, second)))
    same = sum(float(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (within, other))
    return same - 2 * float(across.mean())


def kid(
    x: ArrayLike,
    y: ArrayLike,
    groups: Sequence[str] | None = None,
    *,
    other_groups: Sequence[str] | None = None,
    size: int = 1000,
    subsets: int = 100,
    blocks: int = 20,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """KID: the mean `polynomial_mmd` of random subsets, with a delete-a-block jackknife interval over the prompts of x.

    Subsets share no image; the spread over subsets that overlap would say too little of the error.

    Two runs that share prompts need ``other_groups``. Images of one prompt are alike, and across the runs every prompt meets
    itself more often than inside one, where no image meets itself: the distance comes out below 0 where nothing differs. So
    pairs of images of one prompt are left out of all three means (within x, within y, across); subsets take the same prompts
    from both, and the jackknife leaves prompts out of both, as y varies too. The mean is then 0 for runs of one distribution if
    every prompt has the same share of the images in both.

    Args:
        x: (N, D) features. y: (M, D) features.
        groups: (N,) prompts of x for the jackknife (see `fidelity.frechet_interval`); None takes every image as its own.
        other_groups: (M,) prompts of y, where y is a run like x; None takes y for a fixed reference that shares no prompt.
        size: images in a subset, at most (fewer in a smaller set); with other_groups about so many, up to twice, so that all are used.
        subsets: how many, at most; fewer where x or y is used up. blocks: 2 or more.

    Returns:
        The mean, below 0 by chance if the distributions are alike; n is the number of images of x that were used.

    Raises:
        ValueError: as `fidelity.frechet_distance`; size below 2, subsets below 1, or so few that a block left out leaves less than 2;
            other_groups that do not fit y, without groups, or with less than 3 prompts.

    >>> kid([[0.0]] * 20, [[1.0]] * 20).mean
    7.0
    >>> kid([[0.0], [1.0], [2.0]], [[0.0], [1.0], [2.0]], "abc", other_groups="abc").mean
    0.0
    """
    first, second = pair(x, y)
    if size < 2 or subsets < 1:
        raise ValueError(f"size must be 2 or more and subsets 1 or more (1000 and 100 are usual), got {size} and {subsets}")
    if other_groups is not None:
        return apart_kid(*both(first, second, groups, other_groups, blocks, seed), size=size, subsets=subsets, seed=seed, level=level)
    return _subset_kid(first, second, deal(_prompts(groups, first), len(first), blocks, seed), size, subsets, seed, level)


def _subset_kid(first: Floats, second: Floats, block: NDArray[np.int64], size: int, subsets: int, seed: int, level: float) -> Estimate:
    """KID with y as a fixed reference."""
    size = min(size, len(first), len(second))
    subsets = min(subsets, min(len(first), len(second)) // size)
    rng = np.random.default_rng(seed)
    order, other = rng.permutation(len(first)), rng.permutation(len(second))
    total = np.zeros(block.max() + 2)
    for start in range(0, subsets * size, size):
        chosen, matched = order[start : start + size], other[start : start + size]
        total += polynomial_rests(first[chosen], second[matched], block[chosen], block.max() + 1) / subsets
    return spread(float(total[0]), total[1:], subsets * size, level)


def cmmd(
    x: ArrayLike,
    y: ArrayLike,
    groups: Sequence[str] | None = None,
    *,
    other_groups: Sequence[str] | None = None,
    biased: bool = False,
    blocks: int = 20,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """CMMD (arXiv 2401.09603): squared MMD of unit CLIP vectors, Gaussian kernel of width 10, times 1000.

    For unit vectors the kernel is ``exp((c - 1) / 100)`` with ``c`` the cosine. Its series up to ``c^2`` needs only sums of
    vectors and of their outer products, so all images are used in O(N D^2). What is left out, ``c^3 / 6e6`` and beyond, changes
    the result by 7e-4 at the very most and usually by less than a hundredth of itself.

    Two runs that share prompts need ``other_groups``, for the reason given at `kid`: the sums over pairs of images of one prompt
    are then subtracted from all three terms, and the jackknife leaves prompts out of both runs.

    Args:
        x: (N, D), y: (M, D): vectors of any length but 0, they are brought to length 1; N and M at least 2.
        groups: (N,) prompts of x for the jackknife (see `fidelity.frechet_interval`); None takes every image as its own.
        other_groups: (M,) prompts of y, where y is a run like x; None takes y for a fixed reference that shares no prompt.
        biased: keep pairs of an image with itself, as the paper's code does (a few / N + a few / M higher; never below 0).

    Returns:
        The distance (below 0 by chance if unbiased and the distributions are alike); n is N.

    Raises:
        ValueError: as `fidelity.frechet_distance`; a vector of zeros; groups that do not fit x; other_groups as for `kid`, or biased.

    >>> round(cmmd([[1.0, 0.0]] * 4, [[0.0, 1.0]] * 4).mean, 2)
    19.9
    """
    first, second = (unit(a) for a in pair(x, y))
    if other_groups is not None:
        if biased:
            raise ValueError(
                "biased must be False with other_groups, got True: pairs of one prompt are left out, so also those of one image"
            )
        return apart_gaussian(*both(first, second, groups, other_groups, blocks, seed), level)
    block = deal(_prompts(groups, first), len(first), blocks, seed)
    other = Sums.of(second)
    return jackknife(first, block, lambda part: gaussian_mmd(part, other, biased), level)


def _prompts(groups: Sequence[str] | None, features: Floats) -> Sequence[str]:
    return [str(i) for i in range(len(features))] if groups is None else groups
