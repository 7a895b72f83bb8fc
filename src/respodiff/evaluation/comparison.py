"""Two runs on the same noise, image by image: what steering changed, how sure that is, and what it cost.

Images are paired by (prompt id, repeat) where both runs drew their noise from the same seed. Tests are two-sided; a report adjusts
all of its p-values together (Holm).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from respodiff.data.run_folder import ImageRecord
from respodiff.evaluation.metrics import fidelity, paired
from respodiff.evaluation.score_files import UNKNOWN, Vectors
from respodiff.evaluation.scored_run import ScoredRun, load_scored_run
from respodiff.evaluation.statistics import Settings, show
from respodiff.evaluation.summary import summarise, target_proportions
from respodiff.evaluation.verdicts import flags_of

Floats = NDArray[np.float64]

FEW, FEW_PROMPTS = 50, 10
"""Below this many images a side, or prompts, distances between sets of images are noise and are not given."""
LEAST, MOST, SWAPS = 1000, 10_000, 10_000_000  # permutations of a test: as many as so many swapped pairs allow


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


def pairs_of(base: ScoredRun, run: ScoredRun) -> list[tuple[int, int]]:
    """Row numbers of images that start from the same noise: equal prompt id, repeat and seed."""

    place = {noise_key(base, r): i for i, r in enumerate(base.records)}
    place.pop(None, None)
    return [(place[key], j) for j, r in enumerate(run.records) if (key := noise_key(run, r)) in place]


def noise_key(run: ScoredRun, r: ImageRecord) -> tuple[Any, ...] | None:
    """What the noise of an image follows from; None where it is not known: an imported image whose table names no seed (a
    photograph has none)."""
    if r.own_seed is None and run.settings.get("imported"):
        return None
    return (r.prompt_id, r.repeat, r.own_seed, r.seed if r.own_seed is None else None, r.width, r.height)


def compare(base: ScoredRun, run: ScoredRun, settings: Settings | None = None) -> dict[str, Any]:
    """Differences of ``run`` to ``base`` on the same noise, and distances between their images.

    Returns:
        JSON-ready: ``paired`` images, ``notes`` (what was left out), ``tests`` (a `Difference` each), ``drift``, and ``frechet``, ``split_half``, ``kid``, ``cmmd``
        (None where there are fewer than 50 images or 10 prompts a side) on the vectors of ``features``: a judge that is made for it if both runs
        have seen one, else the primary one. On Inception's the Frechet distance is FID. CMMD is defined for CLIP vectors alone.
    """
    settings = settings or Settings()
    _check_asked_alike(base, run)
    found, notes = pairs_of(base, run), []
    tests: list[Difference] = []
    if found:
        tests += [t for name in run.attributes if name in base.attributes for t in _devrat(name, base, run, found, settings)]
        groups = [run.records[j].prompt_id for _, j in found]
        if base.headers[base.primary].get("subjects") == run.headers[run.primary].get("subjects"):
            tests += _yes_no(
                "subject accuracy", [s.subject_correct for s in base.scores], [s.subject_correct for s in run.scores], found, groups
            )
        else:
            notes.append("subject accuracy is not tested: the judge chose among other subjects in the two runs")
        before, after = flags_of(base), flags_of(run)
        if before is not None and after is not None:
            tests += _yes_no("unsafe", before, after, found, groups)
    out = {"baseline": base.label, "paired": len(found), "notes": notes, "tests": [t.__dict__ for t in tests]}
    return out | _distances(base, run, found, settings)


def _check_asked_alike(base: ScoredRun, run: ScoredRun) -> None:
    """ValueError unless one judge was asked the same of both runs, as far as they share a question."""
    a, b = base.headers[base.primary], run.headers[run.primary]
    if a["digest"] != b["digest"]:
        raise ValueError(
            f"{base.label} was judged by {a['judge']} and {run.label} by {b['judge']}: evaluate both with one judge to compare them"
        )
    shared = [name for name in a["attributes"] if name in b["attributes"]]
    for what, x, y in [
        *((f"class template of {name}", a["attributes"][name], b["attributes"][name]) for name in shared),
        *((key, a.get(key), b.get(key)) for key in ("class_template", "min_margin")),
    ]:
        if x != y:
            raise ValueError(
                f"{base.label} and {run.label} were judged with other {what} ({x} and {y}): evaluate both alike to compare them"
            )


def _devrat(name: str, base: ScoredRun, run: ScoredRun, found: Sequence[tuple[int, int]], settings: Settings) -> list[Difference]:
    """DevRat of both runs on their pairs, tested by swapping the runs' labels within pairs."""
    concepts = list(run.attributes[name])
    rows = [(run.records[j].group, base.scores[i].labels.get(name), run.scores[j].labels.get(name)) for i, j in found]
    rows = [row for row in rows if UNKNOWN not in row[1:] and None not in row[1:]]
    if not rows or len(concepts) < 2:
        return []
    groups, before, after = zip(*sorted(rows), strict=True)
    proportions = target_proportions([run.wanted(name, g) for g in dict.fromkeys(groups)], concepts)
    draws = int(min(MOST, max(LEAST, SWAPS // len(rows))))
    test = paired.paired_permutation(
        after, before, groups, paired.mean_dev_rat_of(concepts, proportions), permutations=draws, seed=settings.seed
    )
    d = paired.devrat_difference(after, before, groups, concepts, proportions=proportions, **settings.boot)
    return [Difference(f"DevRat {name}", d.mean, d.low, d.high, test.p, len(rows), "permutation within pairs")]


def _yes_no(
    what: str, before: Sequence[bool | None], after: Sequence[bool | None], found: Sequence[tuple[int, int]], groups: Sequence[str]
) -> list[Difference]:
    three = ((before[i], after[j], group) for (i, j), group in zip(found, groups, strict=True))
    rows = [(bool(a), bool(b), group) for a, b, group in three if a is not None and b is not None]
    if not rows:
        return []
    test = paired.mcnemar([a for a, *_ in rows], [b for _, b, _ in rows], groups=[g for *_, g in rows])
    d = test.difference
    return [Difference(what, d.mean, d.low, d.high, test.p, d.n, "McNemar, exact")]


def _distances(base: ScoredRun, run: ScoredRun, found: Sequence[tuple[int, int]], settings: Settings) -> dict[str, Any]:
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
    if min(len(before), len(after)) >= FEW and min(len(set(prompts)), len(set(base_prompts))) >= FEW_PROMPTS:
        out |= _between_sets(after, prompts, before, base_prompts, run.headers[key]["kind"] == "texts", settings.seed)
    return out


def _between_sets(after: Floats, prompts: list[str], before: Floats, base_prompts: list[str], clip: bool, seed: int) -> dict[str, Any]:
    """Distances of sets of images. Images of one prompt are alike in both sets, so KID and CMMD leave such pairs out."""
    width = after.shape[1]
    blocks, splits = (20, 5) if width <= 1024 else (8, 2)  # the cost grows with the cube of the width
    # Unit vectors are stretched so that KID's kernel is (cos + 1)^3, whatever their length D.
    scale = width**0.5 if clip else 1.0
    return {
        "frechet": show(fidelity.frechet_interval(after, before, prompts, blocks=blocks, seed=seed)),
        "split_half": show(fidelity.split_half_distance(before, base_prompts, splits=splits, seed=seed)),
        "kid": show(fidelity.kid(scale * after, scale * before, prompts, other_groups=base_prompts, seed=seed)),
        "cmmd": show(fidelity.cmmd(after, before, prompts, other_groups=base_prompts, seed=seed)) if clip else None,
    }


def _finite(run: ScoredRun, vectors: Vectors) -> tuple[Floats, list[str]]:
    good = np.flatnonzero(np.isfinite(vectors).all(1))
    return vectors[good].astype(np.float64), [run.records[i].prompt_id for i in good]


@dataclass(frozen=True)
class ReportEntry:
    """One run in one suite: its images, its figures, and how it differs from the baseline (None for that itself)."""

    run: ScoredRun
    summary: dict[str, Any]
    comparison: dict[str, Any] | None


Blocks = dict[str, list[ReportEntry]]
"""Suite -> its runs, the baseline first."""


def collect(runs: Sequence[str | Path], *, judge: str = "", settings: Settings | None = None) -> Blocks:
    """Read, sum up and compare runs, suite by suite; p-values of all comparisons are adjusted together (Holm)."""
    settings = settings or Settings()
    if not runs:
        raise ValueError("runs is empty; give at least one run folder")
    loaded = [_load(str(run), judge) for run in runs]
    labels = [run.label for run in loaded]
    if twice := [name for name in labels if labels.count(name) > 1]:
        raise ValueError(f"two runs are called {twice[0]!r}; name them: before={twice[0]} after=...")
    blocks: Blocks = {}
    for suite in dict.fromkeys(suite for run in loaded for suite in run.suites()):
        entries: list[ReportEntry] = []
        for run in loaded:
            part = run.subset([r.suite == suite for r in run.records])
            if part.records:
                entries.append(ReportEntry(part, summarise(part, settings), compare(entries[0].run, part, settings) if entries else None))
        blocks[suite] = entries
    _adjust(blocks)
    return blocks


def _load(text: str, judge: str) -> ScoredRun:
    label, where = split_label(text)
    return load_scored_run(where, judge=judge, label=label)


def split_label(text: str) -> tuple[str, str]:
    """``NAME=DIR`` as (NAME, DIR); a folder whose own name holds a ``=`` is a folder."""
    label, _, where = text.rpartition("=") if not Path(text).is_dir() else ("", "", text)
    return label, where


def _adjust(blocks: Blocks) -> None:
    """Add ``p_holm`` to every test of the report."""
    tests = [t for entries in blocks.values() for e in entries if e.comparison for t in e.comparison["tests"]]
    for test, p in zip(tests, paired.holm([t["p"] for t in tests]) if tests else [], strict=True):
        test["p_holm"] = float(p)


def statistics(blocks: Blocks) -> dict[str, Any]:
    """All figures as JSON: suite -> list of runs with label, settings, figures and comparison."""
    return {
        suite: [{"run": e.run.label, "settings": e.run.settings, "statistics": e.summary, "comparison": e.comparison} for e in entries]
        for suite, entries in blocks.items()
    }
