"""Shares of combinations of attributes (gender x tone x ...). Even shares of each attribute do not imply even shares of their combinations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from respodiff.evaluation.metrics.estimate import LEVEL, Estimate
from respodiff.evaluation.metrics.fairness import share_interval, wilson


@dataclass(frozen=True)
class Subgroup:
    """One combination of concepts.

    Attributes:
        labels: one concept per attribute, in the attributes' order.
        count: images perceived so, also when suppressed.
        target: wanted share, in [0, 1].
        share: of the known images, with its interval; None if suppressed.
        deviation: share minus target, in [-1, 1]; None if suppressed.
        suppressed: it holds fewer images than the minimum.
    """

    labels: tuple[str, ...]
    count: int
    target: float
    share: Estimate | None
    deviation: float | None
    suppressed: bool


@dataclass(frozen=True)
class Table:
    """All combinations, the first attribute slowest. `known` images have a known concept of every attribute, `unknown` have not."""

    subgroups: tuple[Subgroup, ...]
    known: int
    unknown: int


def intersection(
    labels: Mapping[str, Sequence[str]],
    classes: Mapping[str, Sequence[str]],
    *,
    targets: Mapping[str, Sequence[float]] | ArrayLike | None = None,
    groups: Sequence[str] | None = None,
    minimum: int = 5,
    n_bootstrap: int = 2000,
    seed: int = 0,
    level: float = LEVEL,
) -> Table:
    """Count every combination of the attributes' concepts and compare its share with the wanted one.

    Args:
        labels: attribute -> (N,) perceived labels, row by row the same images. A label that is no class counts as unknown.
        classes: attribute -> its concepts, the same attributes in the order wanted.
        targets: attribute -> wanted proportions (uniform where left out), multiplied as if independent; or the joint proportions as an array
            with one axis per attribute; None is uniform.
        groups: (N,) prompts: intervals become cluster bootstraps (`fairness.share_interval`); None gives `fairness.wilson`.
        minimum: subgroups with fewer images are suppressed; 0 suppresses none.

    Returns:
        The table. Shares are of the known images; every share is None where there is none.

    Raises:
        ValueError: attributes or lengths that do not fit each other, classes named twice, or targets that are no shares.

    >>> table = intersection({"a": ["x", "y"], "b": ["u", "?"]}, {"a": ["x", "y"], "b": ["u", "v"]}, minimum=0)
    >>> table.unknown, table.subgroups[0].labels, table.subgroups[0].share.mean
    (1, ('x', 'u'), 1.0)
    """
    names = tuple(classes)
    n = _check(labels, classes, groups, minimum)
    wanted = _targets(targets, classes)
    codes = _codes(labels, classes, n)
    known = (codes >= 0).all(0)
    flat = np.ravel_multi_index(tuple(codes[:, known]), wanted.shape)
    index = None if groups is None else _index(groups)[known]
    interval = partial(_share, index=index, n_bootstrap=n_bootstrap, seed=seed, level=level)
    combinations = itertools.product(*(classes[name] for name in names))
    found = (_subgroup(names_, flat == i, float(wanted.flat[i]), minimum, interval) for i, names_ in enumerate(combinations))
    return Table(tuple(found), len(flat), n - len(flat))


def _subgroup(
    labels: tuple[str, ...], inside: NDArray[np.bool_], target: float, minimum: int, interval: Callable[[NDArray[np.bool_]], Estimate]
) -> Subgroup:
    """One combination, from whether each known image shows it."""
    count = int(inside.sum())
    if len(inside) == 0 or count < minimum:
        return Subgroup(labels, count, target, None, None, count < minimum)
    share = interval(inside)
    return Subgroup(labels, count, target, share, share.mean - target, False)


def _share(inside: NDArray[np.bool_], index: NDArray[np.int64] | None, *, n_bootstrap: int, seed: int, level: float) -> Estimate:
    """The share of known images inside, with the interval that groups (their index, or None) ask for."""
    if index is None:
        return wilson(int(inside.sum()), len(inside), level)
    hits, sizes = np.bincount(index, weights=inside), np.bincount(index)
    return share_interval(hits[sizes > 0], sizes[sizes > 0], n_bootstrap=n_bootstrap, seed=seed, level=level)


def worst_subgroup(table: Table) -> Subgroup | None:
    """The combination that is furthest from its target, suppressed ones too; None without a known image.

    >>> worst_subgroup(intersection({"a": ["x"] * 9}, {"a": ["x", "y"]})).labels
    ('x',)
    """
    return max(table.subgroups, key=lambda s: abs(s.count / table.known - s.target)) if table.known else None


def worst_distance(
    labels: Mapping[str, Sequence[str]],
    classes: Mapping[str, Sequence[str]],
    *,
    targets: Mapping[str, Sequence[float]] | ArrayLike | None = None,
    groups: Sequence[str] | None = None,
    n_bootstrap: int = 2000,
    seed: int = 0,
    level: float = LEVEL,
) -> Estimate | None:
    """How far the worst combination is from its target, ``max_c |share_c - target_c|`` in [0, 1]; None without a known image.

    The largest of K noisy distances is too large on average, so its interval is not a bootstrap of itself: the K shares get intervals
    that all hold at once (each at ``1 - (1 - level) / K``, Bonferroni), and the largest distance lies between the largest of the smallest
    and the largest of the largest distances that they allow. Combinations that never occur count. Arguments as for `intersection`.

    >>> found = worst_distance({"a": ["x"] * 40}, {"a": ["x", "y"]})
    >>> found.mean, found.low > 0.3, found.high
    (0.5, True, 0.5)
    """
    each = 1 - (1 - level) / math.prod(len(given) for given in classes.values())
    table = intersection(labels, classes, targets=targets, groups=groups, minimum=0, n_bootstrap=n_bootstrap, seed=seed, level=each)
    found = [(s.share, s.target) for s in table.subgroups if s.share is not None]
    if not found:
        return None
    mean = max(abs(share.mean - target) for share, target in found)
    low = max(max(0.0, share.low - target, target - share.high) for share, target in found)
    high = max(max(share.high - target, target - share.low) for share, target in found)
    return Estimate(mean, low, high, table.known)


def _codes(labels: Mapping[str, Sequence[str]], classes: Mapping[str, Sequence[str]], n: int) -> NDArray[np.int64]:
    """The class of each image by attribute, (A, N); -1 for a label that is none."""
    codes = np.empty((len(classes), n), dtype=np.int64)
    for row, (name, given) in zip(codes, classes.items(), strict=True):
        place = {label: i for i, label in enumerate(given)}
        row[:] = [place.get(label, -1) for label in labels[name]]
    return codes


def _index(groups: Sequence[str]) -> NDArray[np.int64]:
    place = {name: i for i, name in enumerate(sorted(set(groups)))}
    return np.array([place[name] for name in groups], dtype=np.int64)


def _targets(targets: Mapping[str, Sequence[float]] | ArrayLike | None, classes: Mapping[str, Sequence[str]]) -> NDArray[np.float64]:
    """Joint wanted proportions, one axis per attribute."""
    shape = tuple(len(names) for names in classes.values())
    if targets is None or isinstance(targets, Mapping):
        given = targets or {}
        if strange := sorted(set(given) - set(classes)):
            raise ValueError(f"targets names {strange}, which are none of the attributes {list(classes)}: correct the names")
        joint = np.ones(shape)
        for axis, (name, size) in enumerate(zip(classes, shape, strict=True)):
            single = np.asarray(given.get(name, np.full(size, 1 / size)), dtype=np.float64)
            _check_proportions(f"targets of {name}", single, (size,))
            joint = joint * single.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        return joint
    joint = np.asarray(targets, dtype=np.float64)
    _check_proportions("targets", joint, shape)
    return joint


def _check_proportions(what: str, proportions: NDArray[np.float64], shape: tuple[int, ...]) -> None:
    if (
        proportions.shape != shape
        or not np.isfinite(proportions).all()
        or (proportions < 0).any()
        or not math.isclose(proportions.sum(), 1, abs_tol=1e-6)
    ):
        raise ValueError(f"{what} must be {shape} shares of 0 or more that sum to 1, got {proportions.tolist()}")


def _check(labels: Mapping[str, Sequence[str]], classes: Mapping[str, Sequence[str]], groups: Sequence[str] | None, minimum: int) -> int:
    if not classes or set(labels) != set(classes):
        raise ValueError(f"labels and classes must name the same attributes, 1 or more, got {list(labels)} and {list(classes)}")
    if twice := [name for name, given in classes.items() if len(set(given)) != len(given) or not given]:
        raise ValueError(f"classes of {twice} must be 1 or more different concepts: name each once")
    lengths = {name: len(column) for name, column in labels.items()} | ({} if groups is None else {"groups": len(groups)})
    if len(set(lengths.values())) != 1:
        raise ValueError(f"labels and groups must be of one length, got {lengths}")
    if minimum < 0:
        raise ValueError(f"minimum must be 0 or more images, got {minimum}")
    return next(iter(lengths.values()))
