"""Corrects shares of concepts for the judge's errors, which are known from labelled images.

``C`` is the number of true classes, ``J`` the number of answers of the judge: ``C``, or ``C + 1`` when the last one is unknown. Rows of a
confusion matrix are the truth, columns the answer, entries numbers of labelled images. ``G`` is the number of groups (prompts).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from respodiff.evaluation.metrics.bootstrap import Floats, stretch, summed_draws
from respodiff.evaluation.metrics.estimate import LEVEL, Estimate
from respodiff.evaluation.metrics.fairness import whole_numbers

LEAST_GAIN = 0.1


def corrected_proportions(counts: ArrayLike, confusion: ArrayLike, *, n_bootstrap: int = 2000, seed: int = 0) -> list[Estimate]:
    """Share of every true class, with the errors of the judge taken back out: Rogan and Gladen (1978) for any number of classes.

    With ``q`` the shares of the answers and ``M`` the confusion matrix as probabilities, ``q = p M`` is solved for ``p`` (by least
    squares if unknown is an answer) under ``sum p = 1``; the result is the point nearest to it without a negative share. For
    two classes that is ``(q + specificity - 1) / (sensitivity + specificity - 1)``, clipped to [0, 1].

    The interval is a parametric bootstrap: answers and every confusion row are sampled from their Dirichlet distribution, with one image
    in all spread over the answers. That takes images as independent. With one row of counts a group, it has the wider end of itself and
    of a cluster bootstrap over groups (`bootstrap.stretch`) against the same draws of the matrix.

    Args:
        counts: images an answer, (J,) or a group and an answer, (G, J): whole numbers, at least one image. Give groups wherever
            images share prompts; one group is taken as (J,), and a group without an image is left out.
        confusion: labelled images, (C, J), J equal to C or C + 1 (the last is unknown), each true class with at least one.

    Returns:
        C estimates in [0, 1] whose means sum to 1; their n is the sum of counts (unknown answers are images too).

    Raises:
        ValueError: shapes or entries that do not fit, or a judge that hardly tells the classes apart.

    >>> [round(share.mean, 2) for share in corrected_proportions([40, 60], [[90, 10], [10, 90]])]
    [0.38, 0.62]
    """
    table, labelled = np.atleast_2d(whole_numbers("counts", counts, 1, 2)), whole_numbers("confusion", confusion, 2)
    answers = table.sum(0)
    _check(answers, labelled)
    point = _solve(answers / answers.sum(), labelled / labelled.sum(1, keepdims=True))
    rng = np.random.default_rng(seed)
    extra = 1 / len(answers)
    proportions = rng.dirichlet(answers + extra, size=n_bootstrap)
    rows = np.stack([rng.dirichlet(row + extra, size=n_bootstrap) for row in labelled], axis=1)
    found = [_solve(proportions, rows)]
    if len(table := table[table.sum(1) > 0]) > 1:
        drawn = summed_draws(table[np.lexsort(table.T)], n_bootstrap=n_bootstrap, seed=(seed, 1))
        found.append(_solve(stretch(drawn / drawn.sum(1, keepdims=True), answers / answers.sum(), len(table), LEVEL), rows))
    bounds = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    low, high = bounds[0].min(0), bounds[1].max(0)
    n = round(answers.sum())
    return [Estimate(p, min(a, p), max(b, p), n) for p, a, b in zip(point.tolist(), low.tolist(), high.tolist(), strict=True)]


def confusion_matrix(true: Sequence[Any], perceived: Sequence[Any], classes: Sequence[Any]) -> NDArray[np.int64]:
    """Count labelled images by what they show and what the judge answers: (C, C + 1), the last column is any other answer (unknown).

    Args:
        true: (N,) known labels, each one of classes. perceived: (N,) answers of the judge. classes: (C,) different labels.

    >>> confusion_matrix(["a", "a", "b"], ["a", "?", "b"], ["a", "b"]).tolist()
    [[1, 0, 1], [0, 1, 0]]
    """
    if len(true) != len(perceived):
        raise ValueError(f"true and perceived must be of one length, got {len(true)} and {len(perceived)}")
    place = {name: i for i, name in enumerate(classes)}
    if len(place) != len(classes):
        raise ValueError(f"classes must differ from each other, got {list(classes)}: name each once")
    if strange := sorted({str(label) for label in true if label not in place}):
        raise ValueError(f"true holds {strange}, which are none of classes {list(classes)}: leave out images without a known class")
    table = np.zeros((len(classes), len(classes) + 1), dtype=np.int64)
    for label, answer in zip(true, perceived, strict=True):
        table[place[label], place.get(answer, len(classes))] += 1
    return table


def _solve(proportions: Floats, rows: Floats) -> Floats:
    """True shares (..., C) from shares of answers (..., J) and probabilities (..., C, J)."""
    size = rows.shape[-2]
    system = np.ones((*rows.shape[:-2], size + 1, size + 1))  # normal equations, bordered by the sum
    system[..., :size, :size] = rows @ rows.swapaxes(-1, -2)
    system[..., size, size] = 0.0
    right = np.ones((*rows.shape[:-2], size + 1, 1))
    right[..., :size, :] = rows @ proportions[..., None]
    free: Floats = np.linalg.solve(system, right)[..., :size, 0]
    return _nearest_proportions(free)


def _nearest_proportions(values: Floats) -> Floats:
    """The point of the simplex nearest to values (..., C): lower all by one amount, cut at 0, so that the rest sums to 1."""
    falling = -np.sort(-values, axis=-1)
    excess = (falling.cumsum(-1) - 1) / np.arange(1, values.shape[-1] + 1)
    kept = (falling > excess).sum(-1, keepdims=True)
    nearest: Floats = np.maximum(values - np.take_along_axis(excess, kept - 1, axis=-1), 0.0)
    return nearest


def _check(answers: Floats, labelled: Floats) -> None:
    classes, columns = labelled.shape
    if classes < 2 or columns not in (classes, classes + 1) or len(answers) != columns:
        raise ValueError(f"confusion must be (C, C) or (C, C + 1) with as many columns of counts, got {labelled.shape} and {answers.shape}")
    if answers.sum() == 0 or (labelled.sum(1) == 0).any():
        raise ValueError("counts and every row of confusion must hold at least one image: label some of each true class")
    gain = float(np.linalg.svd(labelled / labelled.sum(1, keepdims=True), compute_uv=False)[-1])
    if gain < LEAST_GAIN:
        raise ValueError(
            f"confusion is near singular (smallest singular value {gain:.3f}, at least {LEAST_GAIN} is allowed): "
            "the judge hardly tells some classes apart, merge them or take a better judge"
        )
