"""The difference in mean DevRat of two methods on the same (prompt, repeat) pairs, with an interval."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from respodiff.evaluation.metrics.bootstrap import DRAW_CELLS, ends, summed_draws
from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.evaluation.metrics.fairness import dev_rat

Floats = NDArray[np.float64]


def devrat_difference(
    a: ArrayLike,
    b: ArrayLike,
    groups: Sequence[Hashable],
    classes: Sequence[Any],
    *,
    proportions: ArrayLike | None = None,
    n_bootstrap: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Mean DevRat of a minus that of b over groups (`fairness.dev_rat`), with an interval: the size to the p of `paired_permutation`.

    Two bootstraps, and the wider end of both, as for `fairness.mean_dev_rat`: groups drawn with replacement, both methods of a group
    together, stretched as few groups need it (`bootstrap.stretch`); and pairs drawn anew inside each group from its own table of
    both labels (with ``C / 2`` pairs in all added over the C x C combinations of classes, so that a group of one kind still varies),
    moved back onto the difference. One group has the second only; a group of one pair never varies, its DevRat is 1. The order of the rows has no influence.

    Args:
        a, b: (N,) labels of the two methods (texts or numbers), row by row the same (prompt, repeat). Labels that are no class
            (unknown) count for none; a group without a known label of a method is left out of that method's mean.
        groups: (N,) prompts. classes: (C,) 2 or more labels, of the columns' type. proportions: the wanted proportions, (C,) or (G, C) with
            the groups in order of first sight; None is uniform.
        n_bootstrap: draws, 1 or more. seed: of the draws. level: in (0, 1).

    Returns:
        In [-1, 1], below 0 where a is the fairer one, and equal to the difference of `paired_permutation`; n is the number of pairs.

    Raises:
        ValueError: columns of different length or empty, classes or shares that are none, or a method without a known label.

    >>> devrat_difference(["x"] * 8, ["x", "y"] * 4, ["g"] * 8, ["x", "y"]).mean
    1.0
    """
    tables, order = _tables(np.asarray(a), np.asarray(b), groups, classes)
    if proportions is not None and np.ndim(proportions) == 2:
        if len(np.asarray(proportions)) != len(tables):
            raise ValueError(f"proportions must be one row per group ({len(tables)}), got {len(np.asarray(proportions))}")
        own = np.asarray(proportions, dtype=np.float64)[order]
        again = np.lexsort(np.c_[own, tables.reshape(len(tables), -1)].T)
        tables, proportions = tables[again], own[again]
    if n_bootstrap < 1 or not 0 < level < 1:
        raise ValueError(
            f"n_bootstrap must be 1 or more and level between 0 and 1 (2000 and 0.95 are usual), got {n_bootstrap} and {level}"
        )
    parts = _parts(tables, proportions)
    if not parts[:, 1::2].any(0).all():
        raise ValueError(f"a and b must each hold a label of classes {list(classes)}, got none: correct the labels or leave the test out")
    mean = float(_ratio(parts.sum(0)))
    low, high = mean, mean
    if len(tables) > 1:
        draws = _ratio(summed_draws(parts, n_bootstrap=n_bootstrap, seed=seed))
        low, high = ends(draws[np.isfinite(draws)], mean, len(tables), level)
    within = _pair_draws(tables, proportions, n_bootstrap, seed)
    within = within[np.isfinite(within)]
    inner = np.quantile(within + mean - within.mean(), [(1 - level) / 2, (1 + level) / 2]).tolist()
    return Estimate(mean, max(-1.0, min(low, inner[0])), min(1.0, max(high, inner[1])), round(tables.sum()))


def _tables(a: NDArray[Any], b: NDArray[Any], groups: Sequence[Hashable], classes: Sequence[Any]) -> tuple[Floats, NDArray[np.int64]]:
    """Pairs of each group by both labels, the last row and column for unknown: (G, C + 1, C + 1), in an order of their own, and that order."""
    if a.ndim != 1 or len(a) == 0 or a.shape != b.shape or len(groups) != len(a):
        raise ValueError(f"a, b and groups must be (N,) of one length and not empty, got {a.shape}, {b.shape} and {len(groups)}")
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise ValueError(f"classes must be 2 or more different labels, got {list(classes)}: DevRat compares alternatives")
    size = len(classes) + 1
    place = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    codes = [np.select([column == name for name in classes], range(size - 1), size - 1) for column in (a, b)]
    tables = np.zeros((len(place), size, size))
    np.add.at(tables, (np.array([place[name] for name in groups]), codes[0], codes[1]), 1.0)
    order: NDArray[np.int64] = np.lexsort(tables.reshape(len(place), -1).T)
    return tables[order], order


def _parts(tables: Floats, proportions: ArrayLike | None) -> Floats:
    """DevRat of a group and whether it is known, for a then b, zeros where it is not: (..., 4) of tables (..., C + 1, C + 1)."""
    parts = np.zeros((*tables.shape[:-2], 4))
    for i, axis in ((0, -1), (2, -2)):
        counts = tables.sum(axis)[..., :-1]
        known = counts.sum(-1) > 0
        if known.any():
            parts[known, i] = dev_rat(counts[known], None if proportions is None else np.broadcast_to(proportions, counts.shape)[known])
        parts[..., i + 1] = known
    return parts


def _ratio(parts: Floats) -> Floats:
    """Mean of a less mean of b from sums of `_parts`; NaN where a method has no known group."""
    with np.errstate(invalid="ignore", divide="ignore"):
        difference: Floats = parts[..., 0] / parts[..., 1] - parts[..., 2] / parts[..., 3]
    return difference


def _pair_draws(tables: Floats, proportions: ArrayLike | None, n_bootstrap: int, seed: int) -> Floats:
    """Differences of the same groups with pairs drawn anew, (n_bootstrap,)."""
    groups, size = tables.shape[:2]
    smooth = tables.copy()
    smooth[:, :-1, :-1] += 1 / (2 * (size - 1))
    chance = smooth.reshape(groups, -1) / smooth.sum((1, 2))[:, None]
    pairs = tables.sum((1, 2)).astype(np.int64)
    rng = np.random.default_rng((seed, 1))
    step = max(1, DRAW_CELLS // tables.size)
    drawn = []
    for start in range(0, n_bootstrap, step):
        counts = rng.multinomial(pairs, chance, size=(min(step, n_bootstrap - start), groups)).astype(np.float64)
        drawn.append(_ratio(_parts(counts.reshape(*counts.shape[:2], size, size), proportions).sum(1)))
    return np.concatenate(drawn)
