"""Distances of feature sets by a kernel (squared MMD), each with an interval: KID."""

from __future__ import annotations

from collections.abc import Sequence

from numpy.typing import ArrayLike

from respodiff.evaluation.metrics.apart import apart_kid, both
from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.evaluation.metrics.moments import (
    pair,
)


def kid(
    x: ArrayLike,
    y: ArrayLike,
    groups: Sequence[str],
    other_groups: Sequence[str],
    *,
    size: int = 1000,
    subsets: int = 100,
    blocks: int = 20,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """KID: the mean `polynomial_mmd` of random subsets, with a delete-a-block jackknife interval over the prompts of x.

    Subsets share no picture; the spread over subsets that overlap would say too little of the error.

    Pictures of one prompt are alike, and across two runs every prompt meets itself more often than inside one, where no picture
    meets itself: the distance would come out below 0 where nothing differs. So pairs of pictures of one prompt are left out of all
    three means (within x, within y, across); subsets take the same prompts from both, and the jackknife leaves prompts out of both,
    as y varies too. The mean is then 0 for runs of one distribution if every prompt has the same share of the pictures in both.

    Args:
        x: (N, D) features. y: (M, D) features.
        groups: (N,) prompts of x. other_groups: (M,) prompts of y.
        size: pictures in a subset, about so many and up to twice, so that all are used (fewer in a smaller set).
        subsets: how many, at most; fewer where x or y is used up. blocks: 2 or more.

    Returns:
        The mean, below 0 by chance if the distributions are alike; n is the number of pictures of x that were used.

    Raises:
        ValueError: as `fidelity.frechet_distance`; size below 2, subsets below 1, groups that do not fit, or less than 3 prompts.

    >>> kid([[0.0], [1.0], [2.0]], [[0.0], [1.0], [2.0]], "abc", "abc").mean
    0.0
    """
    first, second = pair(x, y)
    if size < 2 or subsets < 1:
        raise ValueError(f"size must be 2 or more and subsets 1 or more (1000 and 100 are usual), got {size} and {subsets}")
    return apart_kid(*both(first, second, groups, other_groups, blocks, seed), size=size, subsets=subsets, seed=seed, level=level)
