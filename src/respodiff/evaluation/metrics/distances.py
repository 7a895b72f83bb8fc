"""Distances between sets of images by their features: Frechet distance, KID and paired feature distance, each with an interval.

``N`` and ``M`` are the numbers of images of the two sets, ``D`` is the number of their features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student

from respodiff.evaluation.metrics.bootstrap import Codes, Floats, mean_interval
from respodiff.evaluation.metrics.estimate import LEVEL, Estimate

SIGNS = np.array([1.0, 1.0, -2.0])  # of the terms of KID: within x, within y, across
KERNEL_ROWS = 1000  # of the kernel in memory at a time


def frechet_distance(x: ArrayLike, y: ArrayLike) -> float:
    """Frechet distance of two sets of features, as in FID, from their means m, n and covariances S, T (ddof 1).

    ``|m - n|^2 + tr(S + T - 2 sqrt(sqrt(T) S sqrt(T)))`` (Dowson and Landau 1982). Singular covariances (fewer images than features)
    are fine. It is biased upwards, by about 1 / N + 1 / M times a constant that grows with D: compare sets of equal size only, and
    read it against `split_half_distance`.

    Args:
        x: (N, D) features. y: (M, D) features; N and M at least 2.

    Returns:
        0 or more, in squared feature units; 0 for identical sets.

    Raises:
        ValueError: features that are not finite (rows, D) tables of one D.

    >>> frechet_distance([[0.0], [2.0]], [[3.0], [5.0]])
    9.0
    """
    first, second = _pair(x, y)
    cov = _covariance(second)
    return _frechet(first.mean(0), _covariance(first), second.mean(0), cov, _root(cov))


def frechet_interval(x: ArrayLike, y: ArrayLike, groups: Sequence[str], *, blocks: int = 20, seed: int = 0) -> Estimate:
    """`frechet_distance` with a delete-a-block jackknife interval over the prompts of x; y is held as it is.

    The interval holds the distance expected at this number of images, its bias included.

    Args:
        x: (N, D) features. y: (M, D) features. groups: (N,) prompts of x, 2 or more different ones.
        blocks: 2 or more, to which prompts are dealt at random (fewer prompts make fewer blocks).

    Returns:
        The distance, 0 or more; n is N.
    """
    first, second = _pair(x, y)
    centre = first.mean(0)
    mean, cov = second.mean(0) - centre, _covariance(second)
    root, centred = _root(cov), first - centre
    block = deal(groups, len(first), blocks, seed)
    if len(first) - np.bincount(block).max() < 2:
        raise ValueError(f"x must keep 2 images or more when a block of prompts is left out, got {len(first)} in all: give more")
    total = Sums.of(centred)
    kept = [total, *(total.without(Sums.of(centred[block == i])) for i in range(int(block.max()) + 1))]
    found = np.array([_frechet(part.mean, part.covariance, mean, cov, root) for part in kept])
    return _jackknife(found, len(first)).clipped(0.0, np.inf)


def split_half_distance(x: ArrayLike, groups: Sequence[str], *, splits: int = 5, seed: int = 0) -> Estimate:
    """Frechet distance of two random halves of one set: what chance alone makes at half the number of images.

    Each prompt's images are dealt to both halves at random, as evenly as they go: the halves are as far apart as two runs on the same
    prompts with half the images each. Where all prompts have one image, the distance also holds what differs between prompts. Its bias
    is that of two sets of half the size, so it errs on the high side for the whole set.

    Args:
        x: (N, D) features, 4 images or more. groups: (N,) prompts. splits: how many random splits, 1 or more.

    Returns:
        The mean over the splits; low and high are the lowest and highest split (a range, no confidence interval); n is N.

    >>> split_half_distance([[0.0], [0.0], [2.0], [2.0]], ["a", "a", "b", "b"]).mean
    0.0
    """
    features, _ = _pair(x, x, least=4)
    if len(groups) != len(features):
        raise ValueError(f"groups must name the prompt of each of {len(features)} images, got {len(groups)} entries")
    if splits < 1:
        raise ValueError(f"splits must be 1 or more (5 is usual), got {splits}")
    order = _row_order(features, groups)
    features, names = features[order], [groups[i] for i in order]
    found = []
    for i in range(splits):
        dealt = np.lexsort((np.random.default_rng((seed + i, 1)).random(len(names)), _ranks(names, seed + i)))
        found.append(frechet_distance(features[dealt[::2]], features[dealt[1::2]]))
    return Estimate(float(np.mean(found)), min(found), max(found), len(features))


def kid(x: ArrayLike, y: ArrayLike, groups: Sequence[str], other_groups: Sequence[str], *, blocks: int = 20, seed: int = 0) -> Estimate:
    """KID: squared MMD with the kernel ``(a . b / D + 1)^3`` (Binkowski et al. 2018), over all images.

    Images of one prompt are alike, and across two runs every prompt meets itself more often than inside one: the distance would lie
    below 0 where nothing differs. So pairs of images of one prompt are left out of all three means (within x, within y, across).
    The interval is a delete-a-block jackknife that leaves prompts out of both sets. Row order has no influence but rounding.

    Args:
        x: (N, D) features. y: (M, D) features. groups: (N,) prompts of x. other_groups: (M,) prompts of y; 3 different ones or more.
        blocks: 2 or more, to which prompts are dealt at random.

    Returns:
        The distance, below 0 by chance if the distributions are alike; n is N.

    >>> kid([[0.0], [1.0], [2.0]], [[0.0], [1.0], [2.0]], "abc", "abc").mean
    0.0
    """
    first, second = _pair(x, y)
    if len(groups) != len(first) or len(other_groups) != len(second):
        raise ValueError(
            f"groups and other_groups must name the prompt of each of {len(first)} images of x and {len(second)} of y, "
            f"got {len(groups)} groups and {len(other_groups)} other_groups: give one an image"
        )
    names = [*groups, *other_groups]
    block, prompt, n = deal(names, len(names), blocks, seed), _ranks(names, seed), len(first)
    a, b = _Run(first, prompt[:n], block[:n]), _Run(second, prompt[n:], block[n:])
    blocks = 1 + int(block.max())
    sums, pairs = np.stack([_kernel_sums(*runs, blocks) for runs in ((a, a), (b, b), (a, b))], axis=-1)
    if pairs.min() < 1:
        raise ValueError(
            "groups must leave pairs of different prompts in x, in y and across when a block is left out, got none: give 3 prompts or more"
        )
    return _jackknife((sums / pairs) @ SIGNS, n)


def drift(x: ArrayLike, y: ArrayLike, groups: Sequence[str], *, n_bootstrap: int = 2000, seed: int = 0) -> Estimate:
    """Mean cosine distance ``1 - cos`` of images and the baseline's images from the same noise, with `bootstrap.mean_interval`.

    Args:
        x: (N, D) image vectors, any length but 0. y: (N, D) those of the baseline, row by row the same prompt and seed.
        groups: (N,) prompts.

    Returns:
        In [0, 2]; 0 says that nothing changed.

    >>> drift([[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [1.0, 0.0]], ["a", "b"]).mean
    0.5
    """
    first, second = (_unit(a) for a in _pair(x, y, least=1))
    if first.shape != second.shape:
        raise ValueError(f"x and y must be pairs of one shape, got {first.shape} and {second.shape}: join them by prompt and seed")
    distance = np.clip(1 - (first * second).sum(1), 0.0, 2.0)
    return mean_interval(distance, groups, n_bootstrap=n_bootstrap, seed=seed).clipped(0.0, 2.0)


@dataclass(frozen=True)
class Sums:
    """Number of images, sum of their features (D,), and sum of the outer products (D, D)."""

    n: int
    total: Floats
    outer: Floats

    @staticmethod
    def of(features: Floats) -> Sums:
        """Sums over the rows of features (N, D)."""
        return Sums(len(features), features.sum(0), features.T @ features)

    def without(self, other: Sums) -> Sums:
        """The same images less those of other."""
        return Sums(self.n - other.n, self.total - other.total, self.outer - other.outer)

    @property
    def mean(self) -> Floats:
        return self.total / self.n

    @property
    def covariance(self) -> Floats:
        """(D, D), ddof 1; exact to rounding where the features are centred beforehand."""
        return (self.outer - np.outer(self.total, self.mean)) / (self.n - 1)


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


@dataclass(frozen=True)
class _Run:
    """Features (N, D), the place of each image's prompt (N,) among those of both runs, and its block (N,)."""

    features: Floats
    prompt: Codes
    block: Codes


def _kernel_sums(a: _Run, b: _Run, blocks: int) -> Floats:
    """Sum of the kernel over pairs of different prompts, and their number, in all and with each block left out: (2, 1 + blocks)."""
    here, there = (np.eye(blocks)[run.block] for run in (a, b))
    out = np.zeros((2, 1 + blocks))
    for start in range(0, len(a.prompt), KERNEL_ROWS):
        rows = slice(start, start + KERNEL_ROWS)
        apart = (a.prompt[rows, None] != b.prompt).astype(np.float64)
        base = a.features[rows] @ b.features.T / a.features.shape[1] + 1
        for i, table in enumerate((apart * (base * base * base), apart)):
            columns = table @ there
            left = table.sum(1) @ here[rows] + columns.sum(0) - (here[rows] * columns).sum(0)
            out[i] += float(table.sum()) - np.concatenate([[0.0], left])
    return out


def deal(groups: Sequence[str], n: int, blocks: int, seed: int) -> Codes:
    """Deal groups at random into blocks of equal numbers of them: the block of each of n rows, (n,). Row order has no influence.

    >>> sorted(deal(["a", "b", "a", "b"], 4, 2, 0).tolist())
    [0, 0, 1, 1]
    """
    if len(groups) != n or len(set(groups)) < 2 or blocks < 2:
        raise ValueError(
            f"groups must name the prompt of each of {n} images, 2 or more prompts for 2 or more blocks, "
            f"got {len(groups)} entries, {len(set(groups))} prompts, {blocks} blocks"
        )
    return _ranks(groups, seed) % min(blocks, len(set(groups)))


def _ranks(groups: Sequence[str], seed: int) -> Codes:
    """Groups in random order: the place, from 0 on, of the group of each row, (n,). Row order has no influence."""
    names, place = np.unique(np.asarray(list(groups)), return_inverse=True)
    rank = np.empty(len(names), dtype=np.int64)
    rank[np.random.default_rng(seed).permutation(len(names))] = np.arange(len(names))
    return rank[place]


def _row_order(features: Floats, groups: Sequence[str]) -> Codes:
    """An order of the rows (n,) that is the same set of images in whatever order they come: by features, then by group."""
    return np.lexsort((np.unique(np.asarray(list(groups)), return_inverse=True)[1], *features.T[::-1]))


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


def _unit(vectors: Floats) -> Floats:
    """Rows brought to length 1."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    if (length == 0).any():
        raise ValueError(f"vectors must not be all zeros, got {int((length == 0).sum())} such rows: report them as unknown")
    scaled: Floats = vectors / length
    return scaled
