"""The numbers of one scored run, each with its interval: shares, DevRat, concept accuracy, subject accuracy, alignment, safety, agreement.

Everything here is a function of a `ScoredRun`; metrics themselves are pure functions of arrays in `respodiff.evaluation.metrics`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from respodiff.data.run_folder import ImageRecord
from respodiff.evaluation.judges import NOTICE
from respodiff.evaluation.metrics import alignment, correction, fairness
from respodiff.evaluation.score_files import UNKNOWN, Score
from respodiff.evaluation.scored_run import ScoredRun
from respodiff.evaluation.statistics import Settings, plain, share, show
from respodiff.evaluation.subgroups import intersection_statistics
from respodiff.evaluation.verdicts import agreement_statistics, safety_statistics

Wanted = Mapping[str, float] | None


def summarise(run: ScoredRun, settings: Settings | None = None) -> dict[str, Any]:
    """All numbers of one run. ``unknown`` images are in ``n`` and in no share; an entry is None where nothing was asked; ``gated`` says of
    how many images the prompt was left as it is, by attribute."""
    settings = settings or Settings()
    pairs = list(zip(run.records, run.scores, strict=True))
    known = [(r, s) for r, s in pairs if s.problem is None]
    header = run.headers[run.primary]
    out: dict[str, Any] = {"n": len(pairs), "unknown": len(pairs) - len(known), "problems": list(run.problems) + _failures(run)}
    out["skipped_attributes"] = dict(Counter(name for r, _ in pairs for name in r.skipped_attributes))
    out |= {
        key: {}
        for key in ("devrat", "devrat_by", "concept_accuracy", "concept_accuracy_by", "groups", "counts", "proportions", "corrected")
    }
    for name, concepts in run.attributes.items():
        for key, value in _attribute(name, tuple(concepts), pairs, run, settings, out["problems"]).items():
            out[key][name] = value
    out |= _kept(known, settings) | _aligned(known, settings)
    out |= safety_statistics(run, settings, out["problems"])
    out["intersection"] = intersection_statistics(run, settings)
    out["agreement"] = agreement_statistics(run, settings)
    out["judge"] = {"name": header["judge"], "digest": header["digest"]}
    out["judges"] = [
        {k: h[k] for k in ("judge", "digest", "version", "kind", "class_template", "threshold", "rule", "min_margin") if k in h}
        | {"failed": sum(s.problem is not None for s in run.answers[key])}
        for key, h in run.headers.items()
    ]
    out["notice"] = NOTICE
    return out


def _failures(run: ScoredRun) -> list[str]:
    """One line a kind of failure of the primary judge, with an example."""
    found: dict[str, list[str]] = {}
    for score in run.scores:
        if score.problem:
            found.setdefault(score.problem, []).append(score.id)
    return [
        f"{len(ids)} image{'s' * (len(ids) > 1)} {problem}, e.g. {ids[0]}: counted as unknown" for problem, ids in sorted(found.items())
    ]


def _attribute(
    name: str,
    concepts: tuple[str, ...],
    pairs: Sequence[tuple[ImageRecord, Score]],
    run: ScoredRun,
    settings: Settings,
    problems: list[str],
) -> dict[str, Any]:
    pairs = [(r, s) for r, s in pairs if name in s.labels]
    classes = (*concepts, UNKNOWN)
    groups = sorted({r.group for r, _ in pairs})
    table = fairness.group_counts([r.group for r, _ in pairs], [s.labels[name] for _, s in pairs], classes)
    order = {g: i for i, g in enumerate(dict.fromkeys(r.group for r, _ in pairs))}
    rows = {g: table[order[g]].tolist() for g in groups}
    counts = {g: dict(zip(classes, row, strict=True)) for g, row in rows.items()}
    asked = [(r, s.labels[name] == concept) for r, s in pairs if (concept := r.asked(name)) is not None and s.problem is None]
    by = {c: [hit for r, hit in asked if r.asked(name) == c] for c in concepts}
    wanted = [run.wanted(name, g) for g in rows]
    devrat = devrat_figure([row[:-1] for row in rows.values()], concepts, wanted, settings)
    if devrat is None and any(sum(row[:-1]) for row in rows.values()):
        problems.append(
            f"DevRat {name} is not given: half of the groups or more hold one image, and one image is always lopsided; name groups of prompts"
        )
    return {
        "counts": counts,
        "groups": {g: _proportions(row[:-1], concepts) for g, row in rows.items()},
        "proportions": {g: _share_intervals(row[:-1], concepts) for g, row in rows.items()} | {"all": _overall(rows, concepts, settings)},
        "devrat": devrat,
        "devrat_by": _devrat_by(rows, concepts, wanted, settings),
        "corrected": _corrected(name, rows, concepts, run, settings, problems),
        "concept_accuracy": share(asked, settings),
        "concept_accuracy_by": {c: plain(hits) for c, hits in by.items()},
    }


def _proportions(row: Sequence[int], concepts: Sequence[str]) -> dict[str, float | None]:
    total = sum(row)
    return {c: (n / total if total else None) for c, n in zip(concepts, row, strict=True)}


def _share_intervals(row: Sequence[int], concepts: Sequence[str]) -> dict[str, Any]:
    total = sum(row)
    return {c: show(fairness.wilson(n, total)) if total else None for c, n in zip(concepts, row, strict=True)}


def _overall(rows: Mapping[str, Sequence[int]], concepts: Sequence[str], settings: Settings) -> dict[str, Any]:
    """Shares over all images, with an interval over groups."""
    used = [row[:-1] for row in rows.values() if sum(row[:-1])]
    if not used:
        return dict.fromkeys(concepts)
    totals = [sum(row) for row in used]
    return {c: show(fairness.share_interval([row[i] for row in used], totals, **settings.boot)) for i, c in enumerate(concepts)}


def _devrat_by(rows: Mapping[str, Sequence[int]], concepts: Sequence[str], wanted: Sequence[Wanted], settings: Settings) -> dict[str, Any]:
    """DevRat of every group; groups of equal counts and targets, of which small ones are full, are worked out once."""
    kinds = {g: (tuple(row[:-1]), tuple((w or {}).items())) for (g, row), w in zip(rows.items(), wanted, strict=True)}
    found = {kind: devrat_figure([kind[0]], concepts, [dict(kind[1]) or None], settings) for kind in set(kinds.values())}
    return {g: found[kind] for g, kind in kinds.items()}


def devrat_figure(
    rows: Sequence[Sequence[int]], concepts: Sequence[str], wanted: Sequence[Wanted] | None, settings: Settings
) -> dict[str, Any] | None:
    """Mean DevRat over rows of counts a concept, with its interval and the DevRat of random sampling; None where nothing is known, or half of the groups
    hold one image. ``wanted`` has the target proportions of every row, or None for equal ones."""
    known = [i for i, row in enumerate(rows) if sum(row)]
    used = [rows[i] for i in known]
    if not used or len(concepts) < 2 or sorted(map(sum, used))[len(used) // 2] < 2:
        return None
    proportions = target_proportions([wanted[i] for i in known] if wanted else [], concepts)
    found = fairness.mean_dev_rat(used, proportions=proportions, **settings.boot)
    random_level = fairness.expected_devrat_random([sum(row) for row in used], len(concepts), proportions)
    return {"mean": found.mean, "low": found.low, "high": found.high, "random": random_level, "n": found.n}


def target_proportions(wanted: Sequence[Wanted], concepts: Sequence[str]) -> Any:
    """Target proportions of groups as metrics take them: None for equal ones, (C,) where all want the same, else (G, C).

    >>> target_proportions([None, None], ["a", "b"]), target_proportions([{"a": 1.0}], ["a", "b"])
    (None, [1.0, 0.0])
    >>> target_proportions([{"a": 1.0}, None], ["a", "b"])
    [[1.0, 0.0], [0.5, 0.5]]
    """
    if not any(wanted):
        return None
    rows = [[w.get(c, 0.0) for c in concepts] if w else [1 / len(concepts)] * len(concepts) for w in wanted]
    return rows[0] if all(row == rows[0] for row in rows) else rows


def _corrected(
    name: str, rows: Mapping[str, Sequence[int]], concepts: Sequence[str], run: ScoredRun, settings: Settings, problems: list[str]
) -> dict[str, Any] | None:
    """Shares over all images after correction for the judge's errors, if they are known for the very question it was asked."""
    header = run.headers[run.primary]
    known = settings.confusion.get(header["digest"], {}).get(name)
    if not known or not answers_the_same(known, header, name):
        return None
    matrix, width = known["matrix"], len(concepts) + 1
    if not any(row[-1] for row in matrix):  # this judge always answers: what is unknown here is unknown for other reasons
        matrix, width = [row[:-1] for row in matrix], width - 1
    counts = [row[:width] for row in rows.values() if sum(row[:width])]
    if not counts:
        return None
    try:
        found = correction.corrected_proportions(counts, matrix, **settings.boot)
    except ValueError as error:
        problems.append(f"shares of {name} are not corrected for the judge's errors: {error}")
        return None
    return {c: show(e) for c, e in zip(concepts, found, strict=True)}


def answers_the_same(known: Mapping[str, Any], header: Mapping[str, Any], name: str) -> bool:
    """Whether a confusion matrix was counted with the class template, and the margin, that a run was judged with."""
    asked = (header["attributes"][name], header.get("class_template", "{concept}"), header.get("min_margin", 0.0))
    return asked == (known["targets"], known["class_template"], known["min_margin"])


def _kept(known: Sequence[tuple[ImageRecord, Score]], settings: Settings) -> dict[str, Any]:
    kept = [(r, bool(s.subject_correct)) for r, s in known if s.subject_correct is not None]
    asked = sorted({c for r, _ in kept for c in r.concepts.values()})
    return {
        "subject_accuracy": share(kept, settings),
        "subject_accuracy_by": {c: plain([hit for r, hit in kept if c in r.concepts.values()]) for c in asked},
    }


def _aligned(known: Sequence[tuple[ImageRecord, Score]], settings: Settings) -> dict[str, Any]:
    rows = [(r.group, s.alignment) for r, s in known if s.alignment is not None]
    if not rows:
        return {"alignment": None}
    found = alignment.mean_interval([a for _, a in rows], [g for g, _ in rows], **settings.boot)
    return {"alignment": show(found)}
