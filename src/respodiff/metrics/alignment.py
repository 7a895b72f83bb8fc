"""Means of scores per picture (CLIP alignment), with intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from respodiff.metrics.estimate import Estimate


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
    names = sorted(set(groups))
    index = np.asarray([names.index(g) for g in groups]) if len(names) > 1 else np.arange(len(x))
    sums, sizes = np.bincount(index, weights=x), np.bincount(index)
    chosen = np.random.default_rng(seed).integers(len(sums), size=(n_boot, len(sums)))
    draws = sums[chosen].sum(1) / sizes[chosen].sum(1)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(x.mean()), float(low), float(high), len(x))
