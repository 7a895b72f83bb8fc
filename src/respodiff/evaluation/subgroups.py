"""Combinations of the attributes of a run: how often each occurs, how far the worst is from its share, whether it was what was asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from respodiff.concepts.intersections import JOIN, subgroups
from respodiff.evaluation.metrics import intersection
from respodiff.evaluation.score_files import UNKNOWN
from respodiff.evaluation.scored_run import ScoredRun
from respodiff.evaluation.statistics import Settings, share, show


def intersection_statistics(run: ScoredRun, settings: Settings) -> dict[str, Any] | None:
    """JSON-ready figures of all combinations of the attributes that the judge was asked for; None with fewer than two.

    Returns:
        ``cells`` (each with count, target, share with interval, deviation), ``worst`` cell and its ``distance`` from its target
        (`metrics.intersection.worst_distance`), ``concept_accuracy``: share of images in which every attribute is perceived as asked for.
    """
    names = sorted(name for name in run.attributes if JOIN not in name)
    if len(names) < 2:
        return None
    classes = {name: list(run.attributes[name]) for name in names}
    labels = {name: [s.labels.get(name, UNKNOWN) for s in run.scores] for name in names}
    about: dict[str, Any] = {"targets": _targets(run, classes), "groups": [r.group for r in run.records], **settings.boot}
    found = intersection.intersection(labels, classes, minimum=settings.min_subgroup, **about)
    worst = intersection.worst_subgroup(found)
    rows = [
        {
            "subgroup": list(c.labels),
            "count": c.count,
            "target": c.target,
            "share": show(c.share),
            "deviation": c.deviation,
            "suppressed": c.suppressed,
        }
        for c in found.cells
    ]
    asked = [(r, s, r.asked(JOIN.join(names))) for r, s in zip(run.records, run.scores, strict=True) if s.problem is None]
    hits = [(r, wanted == JOIN.join(s.labels.get(name, UNKNOWN) for name in names)) for r, s, wanted in asked if wanted is not None]
    return {
        "attributes": names,
        "known": found.known,
        "unknown": found.unknown,
        "worst": None if worst is None else {"subgroup": list(worst[0]), "deviation": worst[1]},
        "distance": show(intersection.worst_distance(labels, classes, **about)),
        "concept_accuracy": share(hits, settings),
        "subgroups": rows,
    }


def _targets(run: ScoredRun, classes: dict[str, list[str]]) -> Any:
    """The wanted proportions: those of the cells that the run was made for, else the product of the attributes'."""
    of_cells = (run.settings.get("target_proportions") or {}).get(JOIN.join(classes))
    every = subgroups(list(classes.values()))
    if of_cells and set(of_cells) <= set(every):
        return np.array([of_cells.get(cell, 0.0) for cell in every]).reshape([len(given) for given in classes.values()])
    return {name: wanted_overall(run, name, given) for name, given in classes.items()}


def wanted_overall(run: ScoredRun, name: str, concepts: Sequence[str]) -> list[float]:
    """Target proportions over all images: the mean of those of their groups."""
    rows = [run.wanted(name, r.group) or dict.fromkeys(concepts, 1 / len(concepts)) for r in run.records]
    if all(row == rows[0] for row in rows):
        return [rows[0].get(c, 0.0) for c in concepts]
    return [sum(row.get(c, 0.0) for row in rows) / len(rows) for c in concepts]
