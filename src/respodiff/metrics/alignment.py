"""Means of scores per picture (CLIP alignment), with intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from respodiff.metrics.estimate import Estimate
from respodiff.metrics.fairness import ratio_draws


def mean_interval(values: ArrayLike, groups: Sequence[str], *, n_boot: int = 2000, seed: int = 0, level: float = 0.95) -> Estimate:
    """Mean over all pictures, with a cluster bootstrap over groups (prompts); one group falls back to its pictures.

    Args:
        values: (N,) finite numbers, one a picture. groups: (N,) what each picture belongs to.

    >>> mean_interval([1.0, 3.0], ["a", "b"], n_boot=10).mean
    2.0
    """
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or len(x) == 0 or len(x) != len(groups) or not np.isfinite(x).all():
        raise ValueError(f"values must be finite numbers, one for each of {len(groups)} groups entries, got shape {x.shape}")
    place = {name: i for i, name in enumerate(sorted(set(groups)))}
    index = np.array([place[g] for g in groups]) if len(place) > 1 else np.arange(len(x))
    draws = ratio_draws(np.bincount(index, weights=x), np.bincount(index), n_boot=n_boot, seed=seed)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(x.mean()), float(low), float(high), len(x))
