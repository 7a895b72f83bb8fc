"""Two runs on the same noise, picture by picture: what steering changed, how sure that is, and what it cost.

Pictures are paired by (prompt id, repeat) where both runs drew their noise from the same seed. Tests are two-sided; a report adjusts
all of its p-values together (Holm).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from respodiff.figures import Settings, show
from respodiff.judged import JudgedRun
from respodiff.metrics import fairness, fidelity, paired
from respodiff.metrics.alignment import mean_interval
from respodiff.records import ImageRecord
from respodiff.scores import UNKNOWN, Vectors
from respodiff.verdicts import flags_of

FEW = 50
"""Below this many pictures a side, distances between sets of pictures are noise and are not given."""


@dataclass(frozen=True)
class Difference:
    """One tested difference, run minus baseline; `p` is not adjusted."""

    what: str
    mean: float
    low: float
    high: float
    p: float
    n: int
    test: str


def pairs_of(base: JudgedRun, run: JudgedRun) -> list[tuple[int, int]]:
    """Row numbers of pictures that start from the same noise: equal prompt id, repeat and seed."""

    def key(r: ImageRecord) -> tuple[Any, ...]:
        return (r.prompt_id, r.repeat, r.own_seed, r.seed if r.own_seed is None else None)

    place = {key(r): i for i, r in enumerate(base.records) if _drawn(base, r)}
    return [(place[key(r)], j) for j, r in enumerate(run.records) if key(r) in place and _drawn(run, r)]


def _drawn(run: JudgedRun, record: ImageRecord) -> bool:
    """Whether the noise of a picture is known: not of an imported one whose table names no seed (a photograph has none)."""
    return record.own_seed is not None or not run.settings.get("imported")


def compare(base: JudgedRun, run: JudgedRun, settings: Settings | None = None) -> dict[str, Any]:
    """Differences of ``run`` to ``base`` on the same noise, and distances between their pictures.

    Returns:
        JSON-ready: ``paired`` pictures, ``tests`` (a `Difference` each), ``drift``, and ``frechet``, ``split_half``, ``kid``, ``cmmd``
        (None where there are fewer than 50 pictures a side) on the vectors of ``features``: a judge that is made for it if both runs
        have seen one, else the primary one. On Inception's the Frechet distance is FID. CMMD is defined for CLIP vectors alone.
    """
    settings = settings or Settings()
    if base.headers[base.primary]["digest"] != run.headers[run.primary]["digest"]:
        raise ValueError(
            f"{base.label} was judged by {base.headers[base.primary]['judge']} and {run.label} by {run.headers[run.primary]['judge']}: "
            "evaluate both with one judge to compare them"
        )
    found = pairs_of(base, run)
    tests: list[Difference] = []
    if found:
        tests += [t for name in run.attributes if name in base.attributes for t in _devrat(name, base, run, found, settings)]
        tests += _yes_no("subject kept", [s.subject_kept for s in base.scores], [s.subject_kept for s in run.scores], found)
        before, after = flags_of(base), flags_of(run)
        if before is not None and after is not None:
            tests += _yes_no("unsafe", before, after, found)
    return {"baseline": base.label, "paired": len(found), "tests": [t.__dict__ for t in tests], **_distances(base, run, found, settings)}


def _devrat(name: str, base: JudgedRun, run: JudgedRun, found: Sequence[tuple[int, int]], settings: Settings) -> list[Difference]:
    """DevRat of both runs on their pairs, tested by swapping the runs' labels within pairs."""
    concepts = list(run.attributes[name])
    rows = [(run.records[j].group, base.scores[i].labels.get(name), run.scores[j].labels.get(name)) for i, j in found]
    rows = [row for row in rows if UNKNOWN not in row[1:] and None not in row[1:]]
    if not rows or len(concepts) < 2:
        return []
    wanted = settings.targets.get(name)
    shares = None if not wanted else [wanted.get(c, 0.0) for c in concepts]
    groups, before, after = zip(*sorted(rows), strict=True)
    test = paired.paired_permutation(after, before, groups, paired.mean_dev_rat_of(concepts, shares), seed=settings.seed)
    tables = [fairness.dev_rat(fairness.group_counts(groups, labels, concepts), shares) for labels in (after, before)]
    spread = mean_interval(tables[0] - tables[1], list(dict.fromkeys(groups)), **settings.boot)
    return [Difference(f"DevRat {name}", test.difference, spread.low, spread.high, test.p, len(rows), "permutation within pairs")]


def _yes_no(what: str, before: Sequence[bool | None], after: Sequence[bool | None], found: Sequence[tuple[int, int]]) -> list[Difference]:
    rows = [(a, b) for a, b in ((before[i], after[j]) for i, j in found) if a is not None and b is not None]
    if not rows:
        return []
    test = paired.mcnemar([a for a, _ in rows], [b for _, b in rows])
    d = test.difference
    return [Difference(what, d.mean, d.low, d.high, test.p, d.n, "McNemar, exact")]


def _distances(base: JudgedRun, run: JudgedRun, found: Sequence[tuple[int, int]], settings: Settings) -> dict[str, Any]:
    key = run.featured if run.featured == base.featured else run.primary
    names = ("drift", "frechet", "split_half", "kid", "cmmd")
    out: dict[str, Any] = {"features": run.headers[key]["judge"], **dict.fromkeys(names)}
    x, y = base.vectors(key), run.vectors(key)
    if x is None or y is None:
        return out
    both = [(i, j) for i, j in found if np.isfinite(x[i]).all() and np.isfinite(y[j]).all()]
    if both:
        groups = [run.records[j].group for _, j in both]
        out["drift"] = show(fidelity.drift(y[[j for _, j in both]], x[[i for i, _ in both]], groups, **settings.boot))
    before, base_prompts = _finite(base, x)
    after, prompts = _finite(run, y)
    if min(len(before), len(after)) < FEW:
        return out
    clip = run.headers[key]["kind"] == "texts"
    # Unit vectors are stretched so that KID's kernel is (cos + 1)^3, whatever their length D.
    scale = after.shape[1] ** 0.5 if clip else 1.0
    out["kid"] = show(fidelity.kid(scale * after, scale * before, prompts if len(set(prompts)) > 1 else None, seed=settings.seed))
    if len(set(prompts)) > 1 and len(set(base_prompts)) > 1:
        out["frechet"] = show(fidelity.frechet_interval(after, before, prompts, seed=settings.seed))
        out["split_half"] = show(fidelity.split_half_distance(before, base_prompts, seed=settings.seed))
        if clip:
            out["cmmd"] = show(fidelity.cmmd(after, before, prompts, seed=settings.seed))
    return out


def _finite(run: JudgedRun, vectors: Vectors) -> tuple[NDArray[np.float64], list[str]]:
    good = np.flatnonzero(np.isfinite(vectors).all(1))
    return vectors[good].astype(np.float64), [run.records[i].prompt_id for i in good]
