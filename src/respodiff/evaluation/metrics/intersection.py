"""Shares of combinations of attributes (gender x tone x ...). Even shares of each attribute do not imply even shares of their combinations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from respodiff.evaluation.metrics.estimate import LEVEL, Estimate, group_index
from respodiff.evaluation.metrics.shares import share_interval

Columns = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Subgroup:
    """One combination of concepts, one per attribute: its number of images, its wanted share and its share of the known images.

    `share` is None without a known image, and if the subgroup is suppressed for holding fewer images than the minimum.
    """

    labels: tuple[str, ...]
    count: int
    target: float
    share: Estimate | None
    suppressed: bool


def intersection(
    labels: Columns,
    classes: Columns,
    targets: ArrayLike,
    groups: Sequence[str],
    *,
    minimum: int = 0,
    n_bootstrap: int = 2000,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[Subgroup, ...]:
    """Count every combination of the attributes' concepts, and give its share of the images with a known concept of every attribute.

    Args:
        labels: attribute -> (N,) perceived labels, row by row the same images. A label that is no class counts as unknown.
        classes: attribute -> its concepts, the same attributes in the order wanted.
        targets: wanted proportions, one axis per attribute.
        groups: (N,) prompts of `shares.share_interval`.
        minimum: subgroups with fewer images are suppressed.

    Returns:
        All combinations, the first attribute slowest.

    Raises:
        ValueError: lengths that differ, or targets that are no shares.

    >>> intersection({"a": ["x", "?"]}, {"a": ["x", "y"]}, [0.5, 0.5], ["g", "g"])[0].share.mean
    1.0
    """
    wanted = np.asarray(targets, dtype=np.float64)
    shape = tuple(len(given) for given in classes.values())
    if wanted.shape != shape or not (wanted >= 0).all() or not math.isclose(wanted.sum(), 1, abs_tol=1e-6):
        raise ValueError(f"targets must be {shape} shares of 0 or more that sum to 1, got {wanted.tolist()}")
    rows = list(zip(*(labels[name] for name in classes), groups, strict=True))
    known = [row for row in rows if all(label in given for label, given in zip(row, classes.values(), strict=False))]
    index = group_index([row[-1] for row in known])
    sizes = np.bincount(index)
    subgroups = []
    for names, target in zip(itertools.product(*classes.values()), wanted.flat, strict=True):
        hits = np.bincount(index[[row[:-1] == names for row in known]], minlength=len(sizes))
        count = int(hits.sum())
        shown = count >= minimum and known
        share = share_interval(hits, sizes, n_bootstrap=n_bootstrap, seed=seed, level=level) if shown else None
        subgroups.append(Subgroup(names, count, float(target), share, count < minimum))
    return tuple(subgroups)


def worst_distance(
    labels: Columns, classes: Columns, targets: ArrayLike, groups: Sequence[str], *, n_bootstrap: int = 2000, seed: int = 0
) -> Estimate | None:
    """How far the worst combination is from its target, ``max_c |share_c - target_c|`` in [0, 1]; None without a known image.

    The largest of K noisy distances is too large on average, so its interval is not a bootstrap of itself: the K shares get intervals
    that all hold at once (each at ``1 - 0.05 / K``, Bonferroni), and the largest distance lies between the largest of the smallest
    and the largest of the largest distances that they allow. Combinations that never occur count. Arguments as for `intersection`.

    >>> found = worst_distance({"a": ["x"] * 40}, {"a": ["x", "y"]}, [0.5, 0.5], ["g"] * 40)
    >>> found.mean, found.low > 0.3, found.high
    (0.5, True, 0.5)
    """
    each = 1 - (1 - LEVEL) / math.prod(len(given) for given in classes.values())
    subgroups = intersection(labels, classes, targets, groups, n_bootstrap=n_bootstrap, seed=seed, level=each)
    found = [(s.share, s.target) for s in subgroups if s.share is not None]
    if not found:
        return None
    mean = max(abs(share.mean - target) for share, target in found)
    low = max(max(0.0, share.low - target, target - share.high) for share, target in found)
    high = max(max(share.high - target, target - share.low) for share, target in found)
    return Estimate(mean, low, high, found[0][0].n)
