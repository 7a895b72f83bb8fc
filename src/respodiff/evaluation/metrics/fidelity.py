"""How far images (``N``, judged) are from a reference set (``M``), as functions of their ``D`` features, each with an interval."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from respodiff.evaluation.metrics.alignment import mean_interval
from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.evaluation.metrics.kernels import cmmd, kid, polynomial_mmd
from respodiff.evaluation.metrics.moments import Floats, Sums, deal, jackknife, pair, ranks, settled, unit

__all__ = [
    "cmmd",
    "drift",
    "frechet_distance",
    "frechet_from_moments",
    "frechet_interval",
    "kid",
    "polynomial_mmd",
    "split_half_distance",
]


def frechet_distance(x: ArrayLike, y: ArrayLike) -> float:
    """Frechet distance of two sets of features, as in FID, from their means and covariances (ddof 1).

    It is biased upwards, by about 1 / N + 1 / M times a constant that grows with D: compare sets of equal size only, and read it
    against `split_half_distance`.

    Args:
        x: (N, D) features. y: (M, D) features; N and M at least 2.

    Returns:
        0 or more, in squared feature units; 0 for identical sets.

    Raises:
        ValueError: features that are not finite (rows, D) tables of one D.

    >>> frechet_distance([[0.0], [2.0]], [[3.0], [5.0]])
    9.0
    """
    first, second = pair(x, y)
    return frechet_from_moments(first.mean(0), _covariance(first), second.mean(0), _covariance(second))


def frechet_from_moments(mean_x: ArrayLike, cov_x: ArrayLike, mean_y: ArrayLike, cov_y: ArrayLike) -> float:
    """``|m - n|^2 + tr(S + T - 2 sqrt(sqrt(T) S sqrt(T)))`` for normal distributions (m, S) and (n, T) (Dowson and Landau 1982).

    Args:
        mean_x, mean_y: (D,). cov_x, cov_y: (D, D), symmetric and positive semi-definite (rounding errors are allowed).

    Returns:
        0 or more, in squared feature units. Singular covariances (fewer images than features) are fine.

    Raises:
        ValueError: shapes do not fit each other, or NaN or infinity among the numbers.

    >>> frechet_from_moments([0.0], [[4.0]], [1.0], [[1.0]])
    2.0
    """
    moments = [np.asarray(a, dtype=np.float64) for a in (mean_x, cov_x, mean_y, cov_y)]
    size = moments[0].size
    if [a.shape for a in moments] != [(size,), (size, size)] * 2 or size == 0 or not all(np.isfinite(a).all() for a in moments):
        raise ValueError(f"moments must be finite (D,), (D, D), (D,), (D, D), got shapes {[a.shape for a in moments]}: compute them anew")
    return _frechet(moments[0], moments[1], moments[2], moments[3], _root(moments[3]))


def frechet_interval(
    x: ArrayLike, y: ArrayLike, groups: Sequence[str], *, blocks: int = 20, seed: int = 0, level: float = 0.95
) -> Estimate:
    """`frechet_distance` with a delete-a-block jackknife interval over the prompts of x; y is held as it is.

    Prompts are dealt at random into blocks. The interval holds the distance expected at this number of images, which the
    bias named at `frechet_distance` is part of.

    Args:
        x: (N, D) features. y: (M, D) features. groups: (N,) prompts of x, 2 or more different ones.
        blocks: 2 or more (fewer prompts make fewer blocks). seed: of the dealing. level: in (0, 1).

    Returns:
        The distance, 0 or more; n is N.

    Raises:
        ValueError: as `frechet_distance`; groups that do not fit x.

    >>> frechet_interval([[0.0], [2.0], [1.0], [3.0]], [[3.0], [5.0]], ["a", "a", "b", "b"]).mean > 0
    True
    """
    first, second = pair(x, y)
    centre = first.mean(0)
    mean, cov = second.mean(0) - centre, _covariance(second)
    root = _root(cov)
    block = deal(groups, len(first), blocks, seed)
    found = jackknife(first - centre, block, lambda part: _frechet(part.mean, part.covariance, mean, cov, root), level)
    return dataclasses.replace(found, low=max(0.0, found.low))


def split_half_distance(x: ArrayLike, groups: Sequence[str], *, splits: int = 5, seed: int = 0) -> Estimate:
    """Frechet distance of two random halves of one set: the random level that no method can be told from.

    Each prompt's images are dealt to both halves at random, as evenly as they go, so that the halves share their prompts like
    the runs that are compared: they are as far apart as two runs on the same prompts with half the images each. Prompts with
    one image go whole to one half, in equal numbers; where all have one, halves share no prompt, and the random level also holds what
    differs between prompts. Its bias is that of two sets of half the size, so it errs on the high side as the random level of the whole.

    Args:
        x: (N, D) features. groups: (N,) prompts; each half gets 2 images or more.
        splits: how many random splits, 1 or more. seed: of the splits.

    Returns:
        The mean over the splits; low and high are the lowest and highest split (a range, no confidence interval); n is N.

    Raises:
        ValueError: as `frechet_distance`; fewer than 4 images, splits below 1, or groups that do not fit x.

    >>> split_half_distance([[0.0], [0.0], [2.0], [2.0]], ["a", "a", "b", "b"]).mean
    0.0
    """
    features, _ = pair(x, x, least=4)
    if len(groups) != len(features):
        raise ValueError(f"groups must name the prompt of each of {len(features)} images, got {len(groups)} entries")
    if splits < 1:
        raise ValueError(f"splits must be 1 or more (5 is usual), got {splits}")
    order = settled(features, groups)
    features, names = features[order], [groups[i] for i in order]
    found = []
    for i in range(splits):
        dealt = np.lexsort((np.random.default_rng((seed + i, 1)).random(len(names)), ranks(names, seed + i)))
        found.append(frechet_distance(features[dealt[::2]], features[dealt[1::2]]))
    return Estimate(float(np.mean(found)), min(found), max(found), len(features))


def drift(x: ArrayLike, y: ArrayLike, groups: Sequence[str], *, n_bootstrap: int = 2000, seed: int = 0, level: float = 0.95) -> Estimate:
    """Mean cosine distance ``1 - cos`` of images and the plain model's images from the same noise.

    The interval is that of `alignment.mean_interval`, a cluster bootstrap over groups.

    Args:
        x: (N, D) image vectors, any length but 0. y: (N, D) those of the plain model, row by row the same prompt and seed.
        groups: (N,) prompts.

    Returns:
        In [0, 2]; 0 says that nothing changed.

    Raises:
        ValueError: x and y of different shape, or as `frechet_distance`; a vector of zeros.

    >>> drift([[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [1.0, 0.0]], ["a", "b"]).mean
    0.5
    """
    first, second = (unit(a) for a in pair(x, y, least=1))
    if first.shape != second.shape:
        raise ValueError(f"x and y must be pairs of one shape, got {first.shape} and {second.shape}: join them by prompt and seed")
    distance = np.clip(1 - (first * second).sum(1), 0.0, 2.0)
    found = mean_interval(distance, groups, n_bootstrap=n_bootstrap, seed=seed, level=level)
    return dataclasses.replace(found, low=max(0.0, found.low), high=min(2.0, found.high))


def _frechet(mean_x: Floats, cov_x: Floats, mean_y: Floats, cov_y: Floats, root_y: Floats) -> float:
    gap = mean_x - mean_y
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root_y @ cov_x @ root_y), 0.0)).sum()
    return max(0.0, float(gap @ gap + np.trace(cov_x) + np.trace(cov_y) - 2 * shared))


def _root(cov: Floats) -> Floats:
    """Symmetric square root, with eigenvalues that rounding made negative taken for 0."""
    values, vectors = np.linalg.eigh((cov + cov.T) / 2)
    root: Floats = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    return root


def _covariance(features: Floats) -> Floats:
    return Sums.of(features - features.mean(0)).covariance
