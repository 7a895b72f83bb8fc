"""Distances between sets of images by their features: Frechet distance, KID and paired feature distance, each with an interval.

``N`` and ``M`` are the numbers of images of the two sets, ``D`` is the number of their features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student

from respodiff.evaluation.metrics.estimate import LEVEL, Codes, Estimate, Floats, group_index, mean_interval

SIGNS = np.array([1.0, 1.0, -2.0])  # of the terms of KID: within x, within y, across
KERNEL_ROWS = 1000  # of the kernel in memory at a time

Side = tuple[Floats, Codes, Codes]
"""A set of images: features (N, D), the place of each image's prompt (N,) among those of both sets, and its block (N,)."""


class Sums(NamedTuple):
    """Of some images: their number, the sum of their features (D,), and the sum of the outer products (D, D)."""

    n: int
    total: Floats
    outer: Floats

    def without(self, other: Sums) -> Sums:
        """Those of the same images less the others."""
        return Sums(self.n - other.n, self.total - other.total, self.outer - other.outer)


def frechet_distance(x: ArrayLike, y: ArrayLike) -> float:
    """Frechet distance of two sets of features, as in FID, from their means m, n and covariances S, T (ddof 1).

    ``|m - n|^2 + tr(S + T - 2 sqrt(sqrt(T) S sqrt(T)))`` (Dowson and Landau 1982). Fewer images than features are fine. It is biased
    upwards, by about 1 / N + 1 / M times a constant that grows with D: compare sets of equal size, and read it against
    `split_half_distance`.

    Args:
        x: (N, D) features. y: (M, D) features; N and M at least 2.

    Returns:
        0 or more, in squared feature units.

    Raises:
        ValueError: features that are not finite (rows, D) tables of one D.

    >>> frechet_distance([[0.0], [2.0]], [[3.0], [5.0]])
    9.0
    """
    first, second = _pair(x, y)
    cov = _covariance(second)
    return _frechet(first.mean(0), _covariance(first), second.mean(0), cov, _root(cov))


def frechet_interval(x: ArrayLike, y: ArrayLike, groups: Sequence[str], *, blocks: int = 20, seed: int = 0) -> Estimate:
    """`frechet_distance` with a delete-a-block jackknife interval over the prompts of x, (N,); y is held as it is.

    The interval holds the distance expected at this number of images, its bias included. Prompts are dealt to the blocks at random.
    """
    first, second = _pair(x, y)
    _check_groups("groups", groups, len(first))
    centre = first.mean(0)
    mean, cov = second.mean(0) - centre, _covariance(second)
    root, centred = _root(cov), first - centre
    block = deal(groups, blocks, seed)
    if len(first) - np.bincount(block).max() < 2:
        raise ValueError(f"x must keep 2 images or more when a block of prompts is left out, got {len(first)} in all: give more")
    every = _sums(centred)
    kept = [every, *(every.without(_sums(centred[block == i])) for i in range(int(block.max()) + 1))]
    found = np.array([_frechet(*_moments(sums), mean, cov, root) for sums in kept])
    return _jackknife(found, len(first)).clipped(0.0, np.inf)


def split_half_distance(x: ArrayLike, groups: Sequence[str], *, splits: int = 5, seed: int = 0) -> Estimate:
    """Frechet distance of two random halves of one set: what chance alone makes at half the number of images.

    Each prompt's images are dealt to both halves at random, as evenly as they go. Where all prompts have one image, the distance also holds
    what differs between prompts. Its bias is that of two sets of half the size, so it errs on the high side for the whole set.

    Args:
        x: (N, D) features, 4 images or more. groups: (N,) prompts. splits: how many random splits.

    Returns:
        The mean over the splits; low and high are the lowest and highest split (a range, no confidence interval); n is N.

    >>> split_half_distance([[0.0], [0.0], [2.0], [2.0]], ["a", "a", "b", "b"]).mean
    0.0
    """
    features, _ = _pair(x, x, least=4)
    _check_groups("groups", groups, len(features))
    order = np.lexsort((group_index(groups), *features.T[::-1]))  # the same whatever the order of the images
    features, names = features[order], [groups[i] for i in order]
    found = []
    for i in range(splits):
        dealt = np.lexsort((np.random.default_rng((seed + i, 1)).random(len(names)), _ranks(names, seed + i)))
        found.append(frechet_distance(features[dealt[::2]], features[dealt[1::2]]))
    return Estimate(float(np.mean(found)), min(found), max(found), len(features))


def kid(x: ArrayLike, y: ArrayLike, groups: Sequence[str], other_groups: Sequence[str], *, seed: int = 0) -> Estimate:
    """KID: squared MMD with the kernel ``(a . b / D + 1)^3`` (Binkowski et al. 2018), over all images.

    Across two runs every prompt meets itself more often than inside one: the distance would lie below 0 where nothing differs. So pairs of
    images of one prompt are left out of all three means (within x, within y, across). The interval is a delete-a-block jackknife that
    leaves prompts out of both sets, dealt to 20 blocks at random.

    Args:
        x: (N, D) features. y: (M, D) features. groups: (N,) prompts of x. other_groups: (M,) prompts of y; 3 different ones or more.

    Returns:
        The distance, below 0 by chance if the distributions are alike; n is N.

    >>> kid([[0.0], [1.0], [2.0]], [[0.0], [1.0], [2.0]], "abc", "abc").mean
    0.0
    """
    first, second = _pair(x, y)
    _check_groups("groups", groups, len(first))
    _check_groups("other_groups", other_groups, len(second))
    names, n = [*groups, *other_groups], len(first)
    block, prompt = deal(names, 20, seed), _ranks(names, seed)
    a, b = (first, prompt[:n], block[:n]), (second, prompt[n:], block[n:])
    sums, pairs = np.stack([_kernel_sums(*sides, 1 + int(block.max())) for sides in ((a, a), (b, b), (a, b))], axis=-1)
    if pairs.min() < 1:
        raise ValueError(
            "groups must leave pairs of different prompts in x, in y and across when a block is left out, got none: give 3 prompts or more"
        )
    return _jackknife((sums / pairs) @ SIGNS, n)


def drift(x: ArrayLike, y: ArrayLike, groups: Sequence[str], *, n_bootstrap: int = 2000, seed: int = 0) -> Estimate:
    """Mean cosine distance ``1 - cos`` of images and the baseline's images from the same noise, with `estimate.mean_interval`.

    Args:
        x: (N, D) image vectors, any length but 0. y: (N, D) those of the baseline, row by row the same prompt and seed.
        groups: (N,) prompts.

    Returns:
        In [0, 2]; 0 says that nothing changed.

    >>> drift([[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [1.0, 0.0]], ["a", "b"]).mean
    0.5
    """
    first, second = _pair(x, y, least=1)
    if first.shape != second.shape:
        raise ValueError(f"x and y must be pairs of one shape, got {first.shape} and {second.shape}: join them by prompt and seed")
    length, other = (np.linalg.norm(a, axis=1, keepdims=True) for a in (first, second))
    if zeros := int((length == 0).sum() + (other == 0).sum()):
        raise ValueError(f"x and y must not hold vectors of all zeros, got {zeros} such rows: report them as unknown")
    distance = np.clip(1 - (first / length * (second / other)).sum(1), 0.0, 2.0)
    return mean_interval(distance, groups, n_bootstrap=n_bootstrap, seed=seed).clipped(0.0, 2.0)


def _sums(features: Floats) -> Sums:
    return Sums(len(features), features.sum(0), features.T @ features)


def _moments(sums: Sums) -> tuple[Floats, Floats]:
    """Mean (D,) and covariance (D, D), ddof 1; exact to rounding where the features were centred beforehand."""
    n, total, outer = sums
    mean = total / n
    return mean, (outer - np.outer(total, mean)) / (n - 1)


def _covariance(features: Floats) -> Floats:
    return _moments(_sums(features - features.mean(0)))[1]


def _frechet(mean_x: Floats, cov_x: Floats, mean_y: Floats, cov_y: Floats, root_y: Floats) -> float:
    gap = mean_x - mean_y
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root_y @ cov_x @ root_y), 0.0)).sum()
    return max(0.0, float(gap @ gap + np.trace(cov_x) + np.trace(cov_y) - 2 * shared))


def _root(cov: Floats) -> Floats:
    """Symmetric square root, with eigenvalues that rounding made negative taken for 0."""
    values, vectors = np.linalg.eigh((cov + cov.T) / 2)
    root: Floats = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    return root


def _kernel_sums(a: Side, b: Side, blocks: int) -> Floats:
    """Sum of the kernel over pairs of different prompts, and their number, in all and with each block left out: (2, 1 + blocks)."""
    (features, prompts, block), (others, other_prompts, other_block) = a, b
    here, there = np.eye(blocks)[block], np.eye(blocks)[other_block]
    out = np.zeros((2, 1 + blocks))
    for start in range(0, len(prompts), KERNEL_ROWS):
        rows = slice(start, start + KERNEL_ROWS)
        apart = (prompts[rows, None] != other_prompts).astype(np.float64)
        base = features[rows] @ others.T / features.shape[1] + 1
        for i, table in enumerate((apart * (base * base * base), apart)):
            columns = table @ there
            left = table.sum(1) @ here[rows] + columns.sum(0) - (here[rows] * columns).sum(0)
            out[i] += float(table.sum()) - np.concatenate([[0.0], left])
    return out


def deal(groups: Sequence[str], blocks: int, seed: int) -> Codes:
    """Deal groups at random into blocks of equal numbers of them: the block of each row, (N,). Row order has no influence.

    >>> sorted(deal(["a", "b", "a", "b"], 2, 0).tolist())
    [0, 0, 1, 1]
    """
    number = len(set(groups))
    if number < 2:
        raise ValueError(f"groups must name 2 prompts or more, got {number}: an interval over prompts needs several")
    return _ranks(groups, seed) % min(blocks, number)


def _ranks(groups: Sequence[str], seed: int) -> Codes:
    """Groups in random order: the place, from 0 on, of the group of each row, (N,). Row order has no influence."""
    place = group_index(groups)
    return np.random.default_rng(seed).permutation(place.max() + 1).argsort()[place]


def _jackknife(found: Floats, n: int) -> Estimate:
    """The first number, that of all, with the jackknife's t interval from the others, each with one block left out."""
    mean, rest = float(found[0]), found[1:]
    half = float(student.ppf((1 + LEVEL) / 2, len(rest) - 1) * np.sqrt((len(rest) - 1) * rest.var()))
    return Estimate(mean, mean - half, mean + half, n)


def _pair(x: ArrayLike, y: ArrayLike, least: int = 2) -> tuple[Floats, Floats]:
    """Two sets of features, checked: finite, (N, D) and (M, D), each with so many images at least."""
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    for name, a in (("x", first), ("y", second)):
        if a.ndim != 2 or len(a) < least or a.shape[1] == 0 or a.shape[1] != second.shape[-1]:
            raise ValueError(f"{name} must be (rows, D) with {least} rows or more and one D, got shapes {first.shape} and {second.shape}")
        if not np.isfinite(a).all():
            raise ValueError(f"{name} holds NaN or infinity: leave such images out and report them as unknown")
    return first, second


def _check_groups(name: str, groups: Sequence[str], n: int) -> None:
    if len(groups) != n:
        raise ValueError(f"{name} must name the prompt of each of {n} images, got {len(groups)} entries")
