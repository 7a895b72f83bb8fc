"""Errors of judges: agreement of two of them, confusion matrices from labelled images, and shares of concepts corrected for them.

``C`` is the number of true classes, ``J`` the number of answers of the judge: ``C``, or ``C + 1`` when the last one is unknown. Rows of a
confusion matrix are the truth, columns the answer, entries numbers of labelled images. ``G`` is the number of groups (prompts).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from respodiff.evaluation.metrics.estimate import LEVEL, Estimate, Floats, ends, group_index, stretch, summed_draws
from respodiff.evaluation.metrics.shares import share_interval, whole_numbers

LEAST_GAIN = 0.1


def agreement(
    first: Sequence[str], second: Sequence[str], groups: Sequence[str], *, n_bootstrap: int = 2000, seed: int = 0
) -> tuple[Estimate, Estimate | None]:
    """Raw agreement p of two judges in [0, 1], and Cohen's kappa ``(p - e) / (1 - e)`` in [-1, 1], e the agreement by chance.

    Intervals are cluster bootstraps over groups. That of p is `shares.share_interval`; that of kappa is never narrower than its bounds in
    the formula, so that full agreement is not [1, 1].

    Args:
        first, second: (N,) labels of two judges, row by row the same images; unknown is a label like any other. groups: (N,) prompts.

    Returns:
        Both; kappa is None where both judges give all images one same label.

    Raises:
        ValueError: columns of different length or empty, or n_bootstrap below 1.

    >>> raw, kappa = agreement(["x", "x", "y", "y"], ["x", "x", "y", "x"], ["a", "b", "c", "d"])
    >>> raw.mean, kappa.mean
    (0.75, 0.5)
    """
    if len(first) == 0 or len(first) != len(second) or len(first) != len(groups):
        raise ValueError(f"first, second and groups must be of one length and not empty, got {len(first)}, {len(second)} and {len(groups)}")
    place = {name: i for i, name in enumerate(sorted({*first, *second}))}
    index, size = group_index(groups), len(place)
    tables = np.zeros((index.max() + 1, size, size))
    rows, columns = (np.array([place[name] for name in labels]) for labels in (first, second))
    np.add.at(tables, (index, rows, columns), 1.0)
    raw = share_interval(np.trace(tables, axis1=1, axis2=2), tables.sum((1, 2)), n_bootstrap=n_bootstrap, seed=seed)
    pooled = tables.sum(0)
    kappa = float(_kappa(pooled))
    if np.isnan(kappa):
        return raw, None
    chance = float(pooled.sum(0) @ pooled.sum(1)) / pooled.sum() ** 2
    bounds = [(share - chance) / (1 - chance) for share in (raw.low, raw.high)]
    draws = _kappa(summed_draws(tables.reshape(-1, size * size), n_bootstrap=n_bootstrap, seed=seed).reshape(-1, size, size))
    if len(tables) > 1 and (known := draws[~np.isnan(draws)]).size:
        bounds += ends(known, kappa, len(tables))
    return raw, Estimate.spanning(kappa, *bounds, n=raw.n, least=-1.0)


def _kappa(tables: Floats) -> Floats:
    """Cohen's kappa of tables (..., C, C); NaN where chance alone agrees fully."""
    total = tables.sum((-2, -1))
    agreed = np.trace(tables, axis1=-2, axis2=-1) / total
    chance = (tables.sum(-1) * tables.sum(-2)).sum(-1) / total**2
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa: Floats = np.where(chance >= 1, np.nan, (agreed - chance) / (1 - chance))
    return kappa


def confusion_matrix(true: Sequence[str], perceived: Sequence[str], classes: Sequence[str]) -> NDArray[np.int64]:
    """Count labelled images by what they show and what the judge answers: (C, C + 1), the last column is any other answer (unknown).

    Args:
        true: (N,) known labels, each one of classes. perceived: (N,) answers of the judge. classes: (C,) different labels.

    >>> confusion_matrix(["a", "a", "b"], ["a", "?", "b"], ["a", "b"]).tolist()
    [[1, 0, 1], [0, 1, 0]]
    """
    place = {name: i for i, name in enumerate(classes)}
    if strange := sorted({*true} - {*place}):
        raise ValueError(f"true holds {strange}, which are none of classes {list(classes)}: leave out images without a known class")
    table = np.zeros((len(classes), len(classes) + 1), dtype=np.int64)
    for label, answer in zip(true, perceived, strict=True):
        table[place[label], place.get(answer, len(classes))] += 1
    return table


def corrected_proportions(counts: ArrayLike, confusion: ArrayLike, *, n_bootstrap: int = 2000, seed: int = 0) -> list[Estimate]:
    """Share of every true class, with the errors of the judge taken back out: Rogan and Gladen (1978) for any number of classes.

    With ``q`` the shares of the answers and ``M`` the confusion matrix as probabilities, ``q = p M`` is solved for ``p`` (by least
    squares if unknown is an answer) under ``sum p = 1``; the result is the point nearest to it without a negative share. For
    two classes that is ``(q + specificity - 1) / (sensitivity + specificity - 1)``, clipped to [0, 1].

    The interval is a parametric bootstrap: answers and every confusion row are sampled from their Dirichlet distribution, with one image
    in all spread over the answers. With more than one group it has the wider end of itself and of a cluster bootstrap over groups
    (`estimate.stretch`) against the same draws of the matrix.

    Args:
        counts: images an answer, (J,) or a group and an answer, (G, J), at least one. A group without an image is left out.
        confusion: labelled images, (C, J), each true class with at least one.

    Returns:
        C estimates in [0, 1] whose means sum to 1; their n is the sum of counts (unknown answers are images too).

    Raises:
        ValueError: shapes or entries that do not fit, or a judge that hardly tells the classes apart.

    >>> [round(share.mean, 2) for share in corrected_proportions([40, 60], [[90, 10], [10, 90]])]
    [0.38, 0.62]
    """
    table, labelled = np.atleast_2d(whole_numbers("counts", counts, 1, 2)), whole_numbers("confusion", confusion, 2)
    answers, (classes, columns) = table.sum(0), labelled.shape
    if classes < 2 or columns not in (classes, classes + 1) or len(answers) != columns:
        raise ValueError(f"confusion must be (C, C) or (C, C + 1) with as many columns of counts, got {labelled.shape} and {answers.shape}")
    if answers.sum() == 0 or (labelled.sum(1) == 0).any():
        raise ValueError("counts and every row of confusion must hold at least one image: label some of each true class")
    shares, matrix = answers / answers.sum(), labelled / labelled.sum(1, keepdims=True)
    gain = float(np.linalg.svd(matrix, compute_uv=False)[-1])
    if gain < LEAST_GAIN:
        raise ValueError(
            f"confusion is near singular (smallest singular value {gain:.3f}, at least {LEAST_GAIN} is allowed): "
            "the judge hardly tells some classes apart, merge them or take a better judge"
        )
    rng = np.random.default_rng(seed)
    extra = 1 / columns
    sampled = rng.dirichlet(answers + extra, size=n_bootstrap)
    rows = np.stack([rng.dirichlet(row + extra, size=n_bootstrap) for row in labelled], axis=1)
    found = [_solve(sampled, rows)]
    if len(table := table[table.sum(1) > 0]) > 1:
        drawn = summed_draws(table[np.lexsort(table.T)], n_bootstrap=n_bootstrap, seed=(seed, 1))
        found.append(_solve(stretch(drawn / drawn.sum(1, keepdims=True), shares, len(table)), rows))
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    ranges = zip(_solve(shares, matrix).tolist(), low.min(0).tolist(), high.max(0).tolist(), strict=True)
    return [Estimate(p, min(a, p), max(b, p), round(answers.sum())) for p, a, b in ranges]


def _solve(proportions: Floats, rows: Floats) -> Floats:
    """True shares (..., C) from shares of answers (..., J) and probabilities (..., C, J): the nearest that are 0 or more and sum to 1."""
    size = rows.shape[-2]
    system = np.ones((*rows.shape[:-2], size + 1, size + 1))  # normal equations, bordered by the sum
    system[..., :size, :size] = rows @ rows.swapaxes(-1, -2)
    system[..., size, size] = 0.0
    right = np.ones((*rows.shape[:-2], size + 1, 1))
    right[..., :size, :] = rows @ proportions[..., None]
    free: Floats = np.linalg.solve(system, right)[..., :size, 0]
    falling = -np.sort(-free, axis=-1)
    excess = (falling.cumsum(-1) - 1) / np.arange(1, size + 1)  # lower all by one amount and cut at 0, so that the rest sums to 1
    kept = (falling > excess).sum(-1, keepdims=True)
    nearest: Floats = np.maximum(free - np.take_along_axis(excess, kept - 1, axis=-1), 0.0)
    return nearest
