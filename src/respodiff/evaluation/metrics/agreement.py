"""Agreement of two judges on the same images: raw agreement and Cohen's kappa, with intervals."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from respodiff.evaluation.metrics.bootstrap import ends, summed_draws
from respodiff.evaluation.metrics.estimate import LEVEL, Estimate
from respodiff.evaluation.metrics.fairness import share_interval

Floats = NDArray[np.float64]


def agreement(
    first: Sequence[str], second: Sequence[str], groups: Sequence[Hashable], *, n_bootstrap: int = 2000, seed: int = 0
) -> tuple[Estimate, Estimate | None]:
    """Raw agreement of two judges, and Cohen's kappa ``(p - e) / (1 - e)``.

    p is the agreement, e that of judges who choose labels at random from their own proportions. Intervals are cluster bootstraps over
    groups (`bootstrap.stretch`). That of raw agreement is never narrower than `fairness.wilson`. That of kappa is never narrower than these
    bounds in its formula, so that full agreement is not [1, 1]; with one group it has these bounds only.

    Args:
        first, second: (N,) labels of two judges, row by row the same images; unknown is a label like any other.
        groups: (N,) prompts. n_bootstrap: bootstrap samples, 1 or more. seed: of the samples.

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
    if n_bootstrap < 1:
        raise ValueError(f"n_bootstrap must be 1 or more (2000 is usual), got {n_bootstrap}")
    labels = tuple(sorted(set(first) | set(second)))
    place = {name: i for i, name in enumerate(labels)}
    group = {name: i for i, name in enumerate(sorted(set(groups), key=repr))}
    tables = np.zeros((len(group), len(labels), len(labels)))
    at = ([group[g] for g in groups], [place[name] for name in first], [place[name] for name in second])
    np.add.at(tables, at, 1.0)
    raw = share_interval(np.trace(tables, axis1=1, axis2=2), tables.sum((1, 2)), n_bootstrap=n_bootstrap, seed=seed)
    return raw, _kappa_interval(tables, raw, n_bootstrap, seed)


def _kappa_interval(tables: Floats, raw: Estimate, n_bootstrap: int, seed: int) -> Estimate | None:
    pooled = tables.sum(0)
    kappa = float(_kappa(pooled))
    if np.isnan(kappa):
        return None
    chance = float(pooled.sum(0) @ pooled.sum(1)) / pooled.sum() ** 2
    bounds = [(share - chance) / (1 - chance) for share in (raw.low, raw.high)]
    if len(tables) > 1:
        draws = _draws(tables, n_bootstrap, seed)
        if (found := draws[~np.isnan(draws)]).size:
            bounds += ends(found, kappa, len(tables), LEVEL)
    return Estimate(kappa, max(-1.0, min(*bounds, kappa)), min(1.0, max(*bounds, kappa)), raw.n)


def _draws(tables: Floats, n_bootstrap: int, seed: int) -> Floats:
    """Kappa of groups drawn with replacement, (n_bootstrap,); NaN where a draw has one label only."""
    groups, size = len(tables), tables.shape[-1]
    return _kappa(summed_draws(tables.reshape(groups, size * size), n_bootstrap=n_bootstrap, seed=seed).reshape(n_bootstrap, size, size))


def _kappa(tables: Floats) -> Floats:
    """Cohen's kappa of tables (..., C, C); NaN where chance alone agrees fully."""
    total = tables.sum((-2, -1))
    agreed = np.trace(tables, axis1=-2, axis2=-1) / total
    chance = (tables.sum(-1) * tables.sum(-2)).sum(-1) / total**2
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa: Floats = np.where(chance >= 1, np.nan, (agreed - chance) / (1 - chance))
    return kappa
