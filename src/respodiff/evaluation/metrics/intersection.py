"""Shares of combinations of attributes (gender x tone x ...). Even shares of each attribute do not imply even shares of their combinations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from respodiff.evaluation.metrics.bootstrap import Codes, Floats, group_index
from respodiff.evaluation.metrics.estimate import LEVEL, Estimate
from respodiff.evaluation.metrics.fairness import share_interval

Targets = Mapping[str, Sequence[float]] | ArrayLike | None


@dataclass(frozen=True)
class Subgroup:
    """One combination of concepts, one per attribute: its number of images, and its share of the known images.

    `deviation` is share minus target, in [-1, 1]. Both are None if the subgroup is suppressed for holding fewer images than the minimum.
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
    targets: Targets = None,
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
        groups: (N,) prompts of `fairness.share_interval`; None takes images as independent.
        minimum: subgroups with fewer images are suppressed; 0 suppresses none.

    Returns:
        The table. Shares are of the known images; every share is None where there is none.

    Raises:
        ValueError: attributes or lengths that do not fit each other, classes named twice, or targets that are no shares.

    >>> table = intersection({"a": ["x", "y"], "b": ["u", "?"]}, {"a": ["x", "y"], "b": ["u", "v"]}, minimum=0)
    >>> table.unknown, table.subgroups[0].labels, table.subgroups[0].share.mean
    (1, ('x', 'u'), 1.0)
    """
    n = _check(labels, classes, groups, minimum)
    wanted = _targets(targets, classes)
    codes = _codes(labels, classes, n)
    known = (codes >= 0).all(0)
    flat = np.ravel_multi_index(tuple(codes[:, known]), wanted.shape)
    index = group_index(["all"] * n if groups is None else groups)[known]
    sizes = np.bincount(index)
    subgroups = []
    for i, names in enumerate(itertools.product(*classes.values())):
        hits, target = np.bincount(index[flat == i], minlength=len(sizes)), float(wanted.flat[i])
        count = int(hits.sum())
        if count < minimum or not len(flat):
            subgroups.append(Subgroup(names, count, target, None, None, count < minimum))
            continue
        share = share_interval(hits[sizes > 0], sizes[sizes > 0], n_bootstrap=n_bootstrap, seed=seed, level=level)
        subgroups.append(Subgroup(names, count, target, share, share.mean - target, False))
    return Table(tuple(subgroups), len(flat), n - len(flat))


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
    targets: Targets = None,
    groups: Sequence[str] | None = None,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> Estimate | None:
    """How far the worst combination is from its target, ``max_c |share_c - target_c|`` in [0, 1]; None without a known image.

    The largest of K noisy distances is too large on average, so its interval is not a bootstrap of itself: the K shares get intervals
    that all hold at once (each at ``1 - 0.05 / K``, Bonferroni), and the largest distance lies between the largest of the smallest
    and the largest of the largest distances that they allow. Combinations that never occur count. Arguments as for `intersection`.

    >>> found = worst_distance({"a": ["x"] * 40}, {"a": ["x", "y"]})
    >>> found.mean, found.low > 0.3, found.high
    (0.5, True, 0.5)
    """
    each = 1 - (1 - LEVEL) / math.prod(len(given) for given in classes.values())
    table = intersection(labels, classes, targets=targets, groups=groups, minimum=0, n_bootstrap=n_bootstrap, seed=seed, level=each)
    found = [(s.share, s.target) for s in table.subgroups if s.share is not None]
    if not found:
        return None
    mean = max(abs(share.mean - target) for share, target in found)
    low = max(max(0.0, share.low - target, target - share.high) for share, target in found)
    high = max(max(share.high - target, target - share.low) for share, target in found)
    return Estimate(mean, low, high, table.known)


def _codes(labels: Mapping[str, Sequence[str]], classes: Mapping[str, Sequence[str]], n: int) -> Codes:
    """The class of each image by attribute, (A, N); -1 for a label that is none."""
    codes = np.empty((len(classes), n), dtype=np.int64)
    for row, (name, given) in zip(codes, classes.items(), strict=True):
        place = {label: i for i, label in enumerate(given)}
        row[:] = [place.get(label, -1) for label in labels[name]]
    return codes


def _targets(targets: Targets, classes: Mapping[str, Sequence[str]]) -> Floats:
    """Joint wanted proportions, one axis per attribute."""
    shape = tuple(len(names) for names in classes.values())
    if targets is not None and not isinstance(targets, Mapping):
        return _proportions("targets", targets, shape)
    given = targets or {}
    if strange := sorted(set(given) - set(classes)):
        raise ValueError(f"targets names {strange}, which are none of the attributes {list(classes)}: correct the names")
    joint = np.ones(())
    for name, size in zip(classes, shape, strict=True):
        joint = np.multiply.outer(joint, _proportions(f"targets of {name}", given.get(name, np.full(size, 1 / size)), (size,)))
    return joint


def _proportions(what: str, given: ArrayLike, shape: tuple[int, ...]) -> Floats:
    found = np.asarray(given, dtype=np.float64)
    if found.shape != shape or not np.isfinite(found).all() or (found < 0).any() or not math.isclose(found.sum(), 1, abs_tol=1e-6):
        raise ValueError(f"{what} must be {shape} shares of 0 or more that sum to 1, got {found.tolist()}")
    return found


def _check(labels: Mapping[str, Sequence[str]], classes: Mapping[str, Sequence[str]], groups: Sequence[str] | None, minimum: int) -> int:
    """The number of images; ValueError for arguments that do not fit each other."""
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
