"""Shares of images with a property, each with an interval: Wilson's, exact, and over groups (prompts) of images that are alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import beta

from respodiff.evaluation.metrics.estimate import LEVEL, Estimate, Floats, ends, group_index, ratio_draws


def wilson(successes: float, n: int, level: float = LEVEL) -> Estimate:
    """Wilson score interval of a share from ``n`` independent images.

    >>> wilson(0, 20).high < 0.2
    True
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes must lie in 0..n with n of 1 or more, got successes={successes}, n={n}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Estimate.spanning(share, centre - half, centre + half, n=n)


def exact_band(count: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Clopper-Pearson interval of a share: it holds the truth with at least ``level``, whatever the share and however small n.

    >>> tuple(round(x, 3) for x in exact_band(0, 10)), exact_band(10, 10)[1]
    ((0.0, 0.308), 1.0)
    """
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, count, n - count + 1)) if count else 0.0
    high = float(beta.ppf(1 - tail, count + 1, n - count)) if count < n else 1.0
    return low, high


def share_interval(successes: ArrayLike, totals: ArrayLike, *, n_bootstrap: int = 2000, seed: int = 0, level: float = LEVEL) -> Estimate:
    """Share over all images, from images with the property (G,) and images (G,) a group, each group with one at least.

    Cluster bootstrap over groups (`estimate.stretch`), never narrower than `wilson` on the pooled images. Two or three groups that are each
    of one kind may by chance be of the same kind: there nominal 95 % are 86 to 90 %.
    """
    hits, sizes = whole_numbers("successes", successes, 1), whole_numbers("totals", totals, 1)
    if hits.shape != sizes.shape or (sizes == 0).any() or (hits > sizes).any():
        raise ValueError("totals must be as many as successes, at least 1 and at least as large as successes in every group")
    pooled = wilson(round(hits.sum()), round(sizes.sum()), level)
    if len(hits) == 1:
        return pooled
    order = np.lexsort((sizes, hits))
    draws = ratio_draws(hits[order], sizes[order], n_bootstrap=n_bootstrap, seed=seed)
    return Estimate.spanning(pooled.mean, pooled.low, pooled.high, *ends(draws, pooled.mean, len(hits), level), n=pooled.n)


def flagged_share(
    flags: Sequence[bool], prompts: Sequence[str], weights: Mapping[str, float], *, n_bootstrap: int = 2000, seed: int = 0
) -> Estimate:
    """Weighted mean over prompts of the share of their images that are flagged, as in the I2P protocol.

    The interval is a cluster bootstrap over prompts (`estimate.stretch`), never narrower than `wilson` on the same images.

    Args:
        flags, prompts: (N,) whether each image that could be judged is flagged, and the id of its prompt.
        weights: of each prompt, 0 or more, not all 0; prompts of weight 0 and their images are left out.

    >>> round(flagged_share([True, False, True], ["a", "a", "b"], {"a": 1, "b": 2}).mean, 3)
    0.833
    """
    index = group_index(prompts)
    sizes, each = np.bincount(index).astype(np.float64), np.array([float(weights[name]) for name in sorted(set(prompts))])
    chosen = each > 0
    if not chosen.any():
        raise ValueError(f"weights must be above 0 for one of the {len(each)} prompts with flags at least: leave the metric out otherwise")
    shares, sizes, each = (np.bincount(index, weights=flags) / sizes)[chosen], sizes[chosen], each[chosen]
    n = round(sizes.sum())
    mean = min(1.0, float((shares * each).sum() / each.sum()))
    least = wilson(mean * n, n)
    if len(shares) == 1:
        return least
    draws = ratio_draws(shares * each, each, n_bootstrap=n_bootstrap, seed=seed)
    return Estimate.spanning(mean, least.low, least.high, *ends(draws, mean, len(shares)), n=n)


def whole_numbers(name: str, counts: ArrayLike, *axes: int) -> Floats:
    """Numbers of images as an array; ValueError unless whole, 0 or more, not empty, and of one of these numbers of axes (none given: any)."""
    values = np.asarray(counts, dtype=np.float64)
    if values.ndim == 0 or values.size == 0 or (axes and values.ndim not in axes):
        wanted = f"{' or '.join(map(str, axes))} axes" if axes else "an axis"
        raise ValueError(f"{name} must have {wanted} and not be empty, got shape {values.shape}; give at least one group with one image")
    if not np.isfinite(values).all() or (values < 0).any() or (values != np.round(values)).any():
        raise ValueError(f"{name} must be whole numbers of 0 or more, not NaN: give numbers of images, not shares")
    return values
