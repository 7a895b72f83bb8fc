"""Agreement of two judges on the same images: raw agreement and Cohen's kappa, with intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from respodiff.evaluation.metrics.bootstrap import Floats, ends, group_index, summed_draws
from respodiff.evaluation.metrics.estimate import LEVEL, Estimate
from respodiff.evaluation.metrics.fairness import share_interval


def agreement(
    first: Sequence[str], second: Sequence[str], groups: Sequence[str], *, n_bootstrap: int = 2000, seed: int = 0
) -> tuple[Estimate, Estimate | None]:
    """Raw agreement of two judges, and Cohen's kappa ``(p - e) / (1 - e)``.

    p is the agreement, e that of judges who choose labels at random from their own proportions. Intervals are cluster bootstraps over
    groups. That of raw agreement is `fairness.share_interval`. That of kappa is never narrower than these bounds in its formula, so that
    full agreement is not [1, 1]; with one group it has these bounds only.

    Args:
        first, second: (N,) labels of two judges, row by row the same images; unknown is a label like any other. groups: (N,) prompts.

    Returns:
        The share of images with the same label, in [0, 1]; and kappa in [-1, 1], None where both judges give all images one same label.

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
    at = (index.tolist(), [place[name] for name in first], [place[name] for name in second])
    np.add.at(tables, at, 1.0)
    raw = share_interval(np.trace(tables, axis1=1, axis2=2), tables.sum((1, 2)), n_bootstrap=n_bootstrap, seed=seed)
    pooled = tables.sum(0)
    kappa = float(_kappa(pooled))
    if np.isnan(kappa):
        return raw, None
    chance = float(pooled.sum(0) @ pooled.sum(1)) / pooled.sum() ** 2
    bounds = [(share - chance) / (1 - chance) for share in (raw.low, raw.high)]
    draws = _kappa(summed_draws(tables.reshape(-1, size * size), n_bootstrap=n_bootstrap, seed=seed).reshape(-1, size, size))
    if len(tables) > 1 and (known := draws[~np.isnan(draws)]).size:
        bounds += ends(known, kappa, len(tables), LEVEL)
    return raw, Estimate.spanning(kappa, *bounds, n=raw.n, least=-1.0)


def _kappa(tables: Floats) -> Floats:
    """Cohen's kappa of tables (..., C, C); NaN where chance alone agrees fully."""
    total = tables.sum((-2, -1))
    agreed = np.trace(tables, axis1=-2, axis2=-1) / total
    chance = (tables.sum(-1) * tables.sum(-2)).sum(-1) / total**2
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa: Floats = np.where(chance >= 1, np.nan, (agreed - chance) / (1 - chance))
    return kappa
