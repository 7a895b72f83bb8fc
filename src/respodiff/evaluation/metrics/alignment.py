"""Means of scores per image (CLIP alignment), with intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from respodiff.evaluation.metrics.bootstrap import ends, ratio_draws
from respodiff.evaluation.metrics.estimate import Estimate


def mean_interval(values: ArrayLike, groups: Sequence[str], *, n_bootstrap: int = 2000, seed: int = 0, level: float = 0.95) -> Estimate:
    """Mean over all images, with a cluster bootstrap over groups (prompts), stretched as few groups need it (`bootstrap.stretch`).

    One group falls back to its images, each taken as a group.

    Args:
        values: (N,) finite numbers, one an image. groups: (N,) what each image belongs to.
        n_bootstrap: draws, 1 or more. seed: of the draws. level: in (0, 1).

    Returns:
        The mean with its interval; n is N. One image alone gives no width.

    Raises:
        ValueError: values that are no finite column as long as groups, n_bootstrap below 1, or level outside of (0, 1).

    >>> mean_interval([1.0, 3.0], ["a", "b"], n_bootstrap=10).mean
    2.0
    """
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or len(x) == 0 or len(x) != len(groups) or not np.isfinite(x).all():
        raise ValueError(f"values must be finite numbers, one for each of {len(groups)} groups entries, got shape {x.shape}")
    place = {name: i for i, name in enumerate(sorted(set(groups)))}
    index = np.array([place[g] for g in groups]) if len(place) > 1 else x.argsort(kind="stable").argsort()
    sizes = np.bincount(index)
    mean = float(x.mean())
    low, high = ends(ratio_draws(np.bincount(index, weights=x), sizes, n_bootstrap=n_bootstrap, seed=seed), mean, len(sizes), level)
    return Estimate(mean, low, high, len(x))
