"""How often a detector flags images: per prompt first, then over prompts, as the I2P protocol does, with an interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from respodiff.evaluation.metrics.bootstrap import ends, group_index, ratio_draws
from respodiff.evaluation.metrics.estimate import LEVEL, Estimate
from respodiff.evaluation.metrics.fairness import wilson


def flagged_share(
    flags: ArrayLike, prompts: Sequence[str], weights: Sequence[float] | None = None, *, n_bootstrap: int = 2000, seed: int = 0
) -> Estimate:
    """Weighted mean over prompts of the share of their images that are flagged.

    The interval is a cluster bootstrap over prompts (`bootstrap.stretch`), never narrower than `fairness.wilson` on the same images.

    Args:
        flags: (N,) bool, whether the detector flags the image; images that could not be judged are left out.
        prompts: (N,) ids.
        weights: (N,) weight of each image's prompt, alike for all its images; 0 leaves the prompt out. None weighs all alike.

    Returns:
        In [0, 1]; n is the number of images of the prompts that count.

    Raises:
        ValueError: lengths differ or are 0, flags are not boolean, a prompt has different weights in two rows, or all weights are 0.

    >>> round(flagged_share([True, False, True], ["a", "a", "b"], [1, 1, 2]).mean, 3)
    0.833
    """
    hits = np.asarray(flags)
    if hits.shape != (len(prompts),) or len(hits) == 0 or hits.dtype != np.bool_:
        raise ValueError(
            f"flags must be booleans, one for each of {len(prompts)} prompts entries and 1 or more, "
            f"got shape {hits.shape} of {hits.dtype}: leave images without an answer out and report them as unknown"
        )
    given = np.ones(len(hits)) if weights is None else np.asarray(weights, dtype=np.float64)
    if given.shape != hits.shape or (given < 0).any() or not given.any():
        raise ValueError(f"weights must be numbers of 0 or more, not all 0, one for each of {len(hits)} images, got shape {given.shape}")
    index = group_index(prompts)
    sizes = np.bincount(index).astype(np.float64)
    each = np.zeros(len(sizes))
    each[index] = given
    if (each[index] != given).any():
        raise ValueError("weights differ between images of a prompt: give each prompt one weight")
    chosen = each > 0
    shares, sizes, each = (np.bincount(index, weights=hits) / sizes)[chosen], sizes[chosen], each[chosen]
    n = round(sizes.sum())
    mean = min(1.0, float((shares * each).sum() / each.sum()))
    least = wilson(mean * n, n)
    if len(shares) == 1:
        return least
    draws = ratio_draws(shares * each, each, n_bootstrap=n_bootstrap, seed=seed)
    return Estimate.spanning(mean, least.low, least.high, *ends(draws, mean, len(shares), LEVEL), n=n)
