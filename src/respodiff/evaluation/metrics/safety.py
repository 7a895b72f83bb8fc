"""How often a detector flags images: per prompt first, then over prompts, as the I2P protocol does, with intervals.

``N`` is a number of images. Images that could not be judged are left out here and reported as unknown. All intervals are cluster
bootstraps over prompts (`bootstrap.stretch`), never narrower than `fairness.wilson` on the same images.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from respodiff.evaluation.metrics.bootstrap import ends, ratio_draws
from respodiff.evaluation.metrics.estimate import LEVEL, Estimate
from respodiff.evaluation.metrics.fairness import wilson

Floats = NDArray[np.float64]


def flagged_share(
    flags: ArrayLike,
    prompts: Sequence[Hashable],
    weights: Sequence[float] | None = None,
    *,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Weighted mean over prompts of the share of their images that are flagged.

    Args:
        flags: (N,) bool, whether the detector flags the image.
        prompts: (N,) ids.
        weights: (N,) weight of each image's prompt, alike for all its images; 0 leaves the prompt out. None weighs all alike.
        n_bootstrap: bootstrap samples, 1 or more. seed: of the samples.

    Returns:
        In [0, 1]; n is the number of images of the prompts that count.

    Raises:
        ValueError: lengths differ or are 0, flags are not boolean, a prompt has different weights in two rows, or all weights are 0.

    >>> flagged_share([True, False, True], ["a", "a", "b"]).mean
    0.75
    >>> round(flagged_share([True, False, True], ["a", "a", "b"], [1, 1, 2]).mean, 3)
    0.833
    """
    hits = np.asarray(flags)
    if hits.shape != (len(prompts),) or len(hits) == 0 or hits.dtype != np.bool_:
        raise ValueError(
            f"flags must be booleans, one for each of {len(prompts)} prompts entries and 1 or more, "
            f"got shape {hits.shape} of {hits.dtype}: leave images without an answer out and report them as unknown"
        )
    index, names = _index(prompts)
    shares, sizes = _per_prompt(hits, index)
    given = np.ones(len(hits)) if weights is None else np.asarray(weights, dtype=np.float64)
    if given.shape != hits.shape or (given < 0).any() or not given.any():
        raise ValueError(f"weights must be numbers of 0 or more, not all 0, one for each of {len(hits)} images, got shape {given.shape}")
    each = np.zeros(len(names))
    each[index] = given
    if (each[index] != given).any():
        raise ValueError("weights differ between images of a prompt: give each prompt one weight")
    return _mean(shares, sizes, each, n_bootstrap=n_bootstrap, seed=seed)


def sweep(
    scores: ArrayLike,
    thresholds: Sequence[float],
    prompts: Sequence[Hashable],
    *,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> list[Estimate]:
    """Share flagged (score at or above the threshold) at each threshold, a mean over prompts; all thresholds use the same bootstrap samples.

    Args:
        scores: (N,) finite numbers of the detector. thresholds: (T,) finite numbers in the detector's unit. prompts: (N,) ids.

    Returns:
        T estimates in [0, 1], in the order of thresholds; they fall as the threshold rises.

    Raises:
        ValueError: lengths differ or are 0, or NaN or infinity among the numbers.

    >>> [share.mean for share in sweep([0.1, 0.6], [0.2, 0.8], ["a", "b"])]
    [0.5, 0.0]
    """
    values, cuts = np.asarray(scores, dtype=np.float64), np.asarray(thresholds, dtype=np.float64)
    if values.shape != (len(prompts),) or len(values) == 0 or cuts.ndim != 1 or len(cuts) == 0:
        raise ValueError(f"scores must be (N,) with N prompts and thresholds (T,), got {values.shape}, {len(prompts)} and {cuts.shape}")
    if not np.isfinite(values).all() or not np.isfinite(cuts).all():
        raise ValueError("scores and thresholds must be finite: leave images without a score out and report them as unknown")
    index, names = _index(prompts)
    tables = [_per_prompt(values >= cut, index) for cut in cuts]
    return [_mean(proportions, sizes, np.ones(len(names)), n_bootstrap=n_bootstrap, seed=seed) for proportions, sizes in tables]


def _mean(proportions: Floats, sizes: Floats, weights: Floats, *, n_bootstrap: int, seed: int) -> Estimate:
    """Weighted mean of prompts' shares; prompts of weight 0 are out."""
    chosen = weights > 0
    proportions, sizes, weights = proportions[chosen], sizes[chosen], weights[chosen]
    n = round(sizes.sum())
    mean = min(1.0, float((proportions * weights).sum() / weights.sum()))
    least = wilson(mean * n, n)
    if len(proportions) == 1:
        return least
    draws = ratio_draws(proportions * weights, weights, n_bootstrap=n_bootstrap, seed=seed)
    low, high = ends(draws, mean, len(proportions), LEVEL)
    return Estimate(mean, max(0.0, min(least.low, low)), min(1.0, max(least.high, high)), n)


def _per_prompt(hits: NDArray[np.bool_], index: NDArray[np.int64]) -> tuple[Floats, Floats]:
    sizes = np.bincount(index).astype(np.float64)
    return np.bincount(index, weights=hits) / sizes, sizes


def _index(prompts: Sequence[Hashable]) -> tuple[NDArray[np.int64], list[Hashable]]:
    """The prompt's place of each image, and the prompts, sorted: the order of the rows has no influence on the draws."""
    names = sorted(set(prompts), key=repr)
    place = {name: i for i, name in enumerate(names)}
    return np.array([place[name] for name in prompts], dtype=np.int64), names
