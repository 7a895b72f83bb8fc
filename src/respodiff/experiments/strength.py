"""The least scale at which modules do what they are asked for: measured on a few prompts, on the same noise at every scale.

Control accuracy, the share of images in which a judge sees the concept that was asked for, is taken to rise with the scale; what chance
makes fall is smoothed by an isotonic fit. Less scale drifts less from the plain model's images, so the least that reaches is the one to take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.evaluation.metrics.fairness import share_interval

CLOSE = 0.05
"""Scales nearer than this are one to the eye: no bisection goes on."""
DRAWS = 1000


@dataclass(frozen=True)
class Point:
    """What was seen at one scale.

    Attributes:
        groups: group of every judged image. hits: whether the judge sees in it what was asked for.
        kept: share of images that keep their subject, drift: mean cosine distance to the images at scale 0; JSON, None if unknown.
    """

    scale: float
    groups: tuple[str, ...]
    hits: tuple[bool, ...]
    kept: Mapping[str, Any] | None = None
    drift: Mapping[str, Any] | None = None

    def counts(self, names: Sequence[str]) -> np.ndarray[Any, Any]:
        """(hits, images) of each group, (G, 2)."""
        out, place = np.zeros((len(names), 2)), {g: i for i, g in enumerate(names)}
        for group, hit in zip(self.groups, self.hits, strict=True):
            out[place[group]] += (hit, 1)
        return out

    @property
    def concept_accuracy(self) -> Estimate:
        """Share of hits, with an interval over groups."""
        table = self.counts(sorted(set(self.groups)))
        return share_interval(table[:, 0], table[:, 1])


@dataclass(frozen=True)
class Choice:
    """The least scale that reaches a concept accuracy.

    Attributes:
        scale: the one to take. low, high: 95 % interval of the scale at which the fit reaches it, bootstrap over groups (over images of a lone one); ``high`` is None
            where it may lie above all that were drawn. concept_accuracy: at that scale.
        points: all scales that were drawn, rising. fit: their isotonic concept accuracy; None where concept accuracy falls again and the fit stops before.
    """

    scale: float
    low: float
    high: float | None
    concept_accuracy: Estimate
    points: tuple[Point, ...]
    fit: tuple[float | None, ...]


def isotonic(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The never falling sequence nearest to the values in weighted squares (pool adjacent violators).

    >>> isotonic([0.5, 1.0, 0.5, 1.0], [1, 1, 1, 1])
    [0.5, 0.75, 0.75, 1.0]
    """
    blocks: list[list[float]] = []  # mean, weight, length
    for value, weight in zip(values, weights, strict=True):
        blocks.append([value, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, v, m), (b, w, n) = blocks[-2:]
            blocks[-2:] = [[(a * v + b * w) / (v + w) if v + w else a, v + w, m + n]]
    return [mean for mean, _, length in blocks for _ in range(int(length))]


def crossing(scales: Sequence[float], fit: Sequence[float], reach: float) -> float:
    """Where the line through a never falling fit first reaches a value; infinity where it does not.

    >>> crossing([0.0, 1.0, 2.0], [0.5, 0.75, 1.0], 0.875)
    1.5
    """
    for i, value in enumerate(fit):
        if value >= reach:
            if i == 0:
                return scales[0]
            rise = value - fit[i - 1]
            return scales[i - 1] + (reach - fit[i - 1]) / rise * (scales[i] - scales[i - 1])
    return math.inf


def choose(measure: Callable[[float], Point], reach: float = 0.95, most: float = 2.0, rounds: int = 6, seed: int = 0) -> Choice:
    """The least scale that reaches a concept accuracy, by bisection.

    Scale 0 and ``most`` are measured first; where ``most`` does not reach, a half, a quarter and three quarters of it are tried, as concept accuracy
    may fall again where images break. Then the stretch below the least scale that reaches is halved.

    Args:
        measure: what is seen at a scale; asked once for each. reach: concept accuracy, in (0, 1). most: largest scale, above 0.
        rounds: scales that are measured beside 0, 1 or more. seed: of the bootstrap.

    Raises:
        ValueError: settings that make no sense; no image could be judged; no scale reaches, with the best one that was found.
    """
    if not 0 < reach < 1 or not 0 < most < math.inf or rounds < 1:
        raise ValueError(
            f"reach is {reach:g}, most {most:g}, rounds {rounds}; allowed: reach between 0 and 1, most above 0, rounds 1 or more"
        )
    points = {0.0: measure(0.0)}
    coarse = [most, most / 2, most / 4, 3 * most / 4]
    for _ in range(rounds):
        found = _least(points, reach)
        if found is None:
            left = [s for s in coarse if s not in points]
            if not left:
                break
            points[left[0]] = measure(left[0])
            continue
        below = [s for s in points if s < found]
        if not below or found - max(below) <= CLOSE:
            break
        middle = (found + max(below)) / 2
        points[middle] = measure(middle)
    return _chosen(points, reach, most, seed)


def _fitted(points: Mapping[float, Point], reach: float) -> list[tuple[Point, float]]:
    """Points in rising order with their isotonic concept accuracy. Where the whole fit does not reach, that of the part up to the best point."""
    rows = [points[s] for s in sorted(points)]
    if any(not p.hits for p in rows):
        raise ValueError("a scale has no image that the judge could label; give other prompts or another judge")
    raw = [float(np.mean(p.hits)) for p in rows]
    fit = isotonic(raw, [len(p.hits) for p in rows])
    if fit[-1] < reach:
        rows = rows[: raw.index(max(raw)) + 1]
        fit = isotonic(raw[: len(rows)], [len(p.hits) for p in rows])
    return list(zip(rows, fit, strict=True))


def _least(points: Mapping[float, Point], reach: float) -> float | None:
    return next((p.scale for p, value in _fitted(points, reach) if value >= reach), None)


def _chosen(points: Mapping[float, Point], reach: float, most: float, seed: int) -> Choice:
    used = _fitted(points, reach)
    scale = _least(points, reach)
    if scale is None:
        best, value = used[-1]
        raise ValueError(
            f"no scale up to {most:g} reaches concept accuracy {reach:g}: the best is {value:.3f} at {best.scale:g} (n = {len(best.hits)}); "
            "train longer, allow more with --most, or ask for less with --reach"
        )
    if len({g for p, _ in used for g in p.groups}) == 1:  # one group cannot be resampled: its images are
        used = [(replace(p, groups=tuple(map(str, range(len(p.hits))))), value) for p, value in used]
    names = sorted({g for p, _ in used for g in p.groups})
    table = np.stack([p.counts(names) for p, _ in used])  # (S, G, 2)
    rng = np.random.default_rng(seed)
    where = []
    for _ in range(DRAWS):
        sums = table[:, rng.integers(len(names), size=len(names))].sum(1)
        proportions = np.divide(sums[:, 0], sums[:, 1], out=np.zeros(len(sums)), where=sums[:, 1] > 0)
        where.append(crossing([p.scale for p, _ in used], isotonic(proportions.tolist(), sums[:, 1].tolist()), reach))
    low, high = np.quantile(where, [0.025, 0.975], method="nearest").tolist()
    fit = {p.scale: value for p, value in used}
    rows = tuple(points[s] for s in sorted(points))
    ends = (min(low, scale), None if math.isinf(high) else max(high, scale))
    return Choice(scale, *ends, points[scale].concept_accuracy, rows, tuple(fit.get(p.scale) for p in rows))
