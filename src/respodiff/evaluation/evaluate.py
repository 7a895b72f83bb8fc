"""A run folder and judges in, numbers out: what judges perceive, compared with what was asked for.

Rows are joined by the record itself, never by file order. An image that cannot be judged counts as unknown: it is
reported, stays outside every share, and is never taken for a zero. This side needs no text-to-image library.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from respodiff.concepts import concept
from respodiff.concepts.concept import Attribute, Concept
from respodiff.concepts.intersections import marginals
from respodiff.data.prompt_sets import SUITES, suite
from respodiff.data.run_folder import ImageRecord, RunFolder
from respodiff.data.target_proportions import check_proportions
from respodiff.evaluation import judges
from respodiff.evaluation.judges import Vocabulary
from respodiff.evaluation.score_files import ScoreFiles, key_of, scored_by
from respodiff.evaluation.scored_run import ScoredRun, load_scored_run, open_parts, read_parts
from respodiff.evaluation.scoring import LabellingTask, judge_run
from respodiff.evaluation.statistics import Settings
from respodiff.evaluation.summary import summarise

GroupProportions = Mapping[str, Mapping[str, Mapping[str, float]]]
AnyRun = str | Path | RunFolder | Sequence[str | Path | RunFolder]


def evaluate(
    run: AnyRun,
    judge: Any = "embedded",
    attributes: Sequence[Attribute | str] = ("gender",),
    *,
    vocabulary: Vocabulary | None = None,
    class_template: str = "{concept}",
    min_margin: float = 0.0,
    group_proportions: GroupProportions | None = None,
    confusion: Mapping[str, Any] | None = None,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Judge every image of a run, keep the scores in its folder, and sum up.

    Args:
        run: a run folder, or the folders that a run was split over.
        judge: a judge, a source that `respodiff.evaluation.judges.load` takes, or several: labels come from the first that gives any, flags of
            unsafe images from all, and their agreement is reported.
        attributes: attributes to measure, as objects or names of built-in ones. Shares that the run was made for are what DevRat
            measures the distance to.
        vocabulary: image names for the subject and safety choices; None takes the embedded model's for the embedded judge.
        class_template, min_margin: see `respodiff.evaluation.scoring.LabellingTask`.
        group_proportions: group of prompts -> attribute -> concept -> wanted share, before the run's own: what DevRat of that group measures
            the distance to.
        confusion: judge digest -> attribute -> confusion matrix, as `respodiff.evaluation.calibration.calibrate` makes it; None takes the shipped
            one of the embedded judge.

    Returns:
        JSON-ready numbers (`respodiff.evaluation.summary`). ``unknown`` images are in ``n`` and in no share; an entry is None where nothing was
        asked.

    Raises:
        ValueError: no run, an empty run, an unknown attribute, or a record that asks for a concept it does not have.
    """
    judged = judge_all(
        run,
        judge,
        attributes,
        vocabulary=vocabulary,
        class_template=class_template,
        min_margin=min_margin,
        group_proportions=group_proportions,
    )
    names = [(concept.attribute(a) if isinstance(a, str) else a).name for a in attributes]
    known = shipped_confusion() if confusion is None else confusion
    return summarise(judged.only(names), Settings(n_bootstrap=n_bootstrap, seed=seed, confusion=known))


def judge_all(
    run: AnyRun,
    judge: Any,
    attributes: Sequence[Attribute | str],
    *,
    vocabulary: Vocabulary | None = None,
    class_template: str = "{concept}",
    min_margin: float = 0.0,
    group_proportions: GroupProportions | None = None,
) -> ScoredRun:
    """Judge every image of a run and keep the scores in its folders.

    What a judge was asked before in the same words is asked again, so that no earlier answer is lost.
    """
    parts = open_parts(run)
    wanted = wanted_proportions(parts)
    chosen = [concept.attribute(a) if isinstance(a, str) else a for a in attributes]
    chosen = [_with_proportions(a, wanted) for a in chosen]
    of_groups = by_group(parts, chosen, group_proportions)
    rows, _ = read_parts(parts)
    records = [record for _, record in rows]
    _check_asked(records, chosen)
    sources = [judge] if isinstance(judge, str) or hasattr(judge, "digest") else list(judge)
    labellers = [judges.load(source) if isinstance(source, str) else source for source in sources]
    keys = []
    for labeller in labellers:
        words = vocabulary or (Vocabulary.embedded() if labeller.name in judges.EMBEDDED else None)
        asked = _asked_before(parts, key_of(labeller.name, labeller.digest), chosen, class_template, min_margin)
        kept = {**_groups_before(parts, key_of(labeller.name, labeller.digest)), **of_groups}
        task = LabellingTask(tuple(asked), subjects_of(records, words), words, class_template, min_margin, kept)
        keys += [judge_run(part, part.records(), labeller, task) for part in parts]
    return load_scored_run(parts, keys=list(dict.fromkeys(keys)))


def by_group(parts: Sequence[RunFolder], attributes: Sequence[Attribute], given: GroupProportions | None) -> dict[str, Any]:
    """Attribute -> group -> concept -> wanted share, of those given, else those that the run was made for; empty for an attribute without.

    Raises:
        ValueError: proportions that do not sum to 1 or are of a concept that the attribute has not.
    """
    found = given if given is not None else parts[0].settings().get("group_proportions") or {}
    out: dict[str, Any] = {a.name: {} for a in attributes}
    for a in attributes:
        for group, proportions in found.items():
            if a.name in proportions:
                try:
                    check_proportions(a.names, proportions[a.name])
                except (ValueError, TypeError, AttributeError) as error:
                    raise ValueError(f"group_proportions of {a.name} for group {group!r}: {error}") from error
                out[a.name][group] = dict(proportions[a.name])
    return out


def _groups_before(parts: Sequence[RunFolder], key: str) -> dict[str, Any]:
    """The proportions by group of what this judge was asked before."""
    return dict(ScoreFiles(parts[0], key).header().get("group_proportions", {})) if key in scored_by(parts[0]) else {}


def _asked_before(
    parts: Sequence[RunFolder], key: str, chosen: Sequence[Attribute], class_template: str, min_margin: float
) -> list[Attribute]:
    """The chosen attributes, and those that this judge was asked for before with the same class template."""
    out = list(chosen)
    for part in parts:
        if key not in scored_by(part):
            continue
        header = ScoreFiles(part, key).header()
        if (header.get("class_template", "{concept}"), header.get("min_margin", 0.0)) != (class_template, min_margin):
            continue
        for name, targets in header["attributes"].items():
            if name not in [a.name for a in out]:
                proportions = tuple(header.get("proportions", {}).get(name, {}).values())
                out.append(Attribute(name, tuple(Concept(c, target) for c, target in targets.items()), proportions))
    return out


def subjects_of(records: Sequence[ImageRecord], words: Vocabulary | None) -> tuple[str, ...]:
    """What may be found in the images: the vocabulary's subjects and those of the whole suites, so that the choice is the same
    whatever part of a suite was drawn, and subjects of the run that these lack, as they could never be found otherwise."""
    found = {*(words.subjects if words else ()), *(r.subject for r in records if r.subject)}
    known = {r.suite for r in records if r.subject and r.suite.startswith(("occupations", "winobias")) and r.suite in SUITES}
    if words is None:
        found |= {prompt.subject for name in known for prompt in suite(name) if prompt.subject}
    return tuple(sorted(found))


def wanted_proportions(parts: Sequence[RunFolder]) -> dict[str, dict[str, float]]:
    """The target proportions that a run was made for, if it says any, those of a product with their margins; ValueError for a run.json that
    says them in another form."""
    proportions = parts[0].settings().get("target_proportions") or {}
    values = (
        [v for row in proportions.values() for v in (row.values() if isinstance(row, dict) else [None])]
        if isinstance(proportions, dict)
        else [None]
    )
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values):
        raise ValueError(
            f"{parts[0].path / 'run.json'} has target_proportions {proportions!r}; allowed: attribute -> concept -> number: restore it"
        )
    return marginals(proportions)


def shipped_confusion() -> dict[str, Any]:
    """The confusion matrices of the embedded judges, by their digests."""
    found: dict[str, Any] = {}
    for part in judges.EMBEDDED.values():
        found |= json.loads((files("respodiff.embedded") / part / "confusion.json").read_text(encoding="utf-8"))
    return found


def _with_proportions(attribute: Attribute, wanted: dict[str, dict[str, float]]) -> Attribute:
    """The attribute with the target proportions that the run was made for, if it says any."""
    proportions = wanted.get(attribute.name)
    return (
        attribute
        if not proportions
        else dataclasses.replace(attribute, proportions=tuple(proportions.get(n, 0.0) for n in attribute.names))
    )


def _check_asked(records: Sequence[ImageRecord], attributes: Sequence[Attribute]) -> None:
    for attribute in attributes:
        for record in records:
            asked = record.asked(attribute.name)
            if asked is not None and asked not in attribute.names:
                raise ValueError(
                    f"image {record.id} asked for {attribute.name} {asked!r}, but attribute {attribute.name!r} has "
                    f"{', '.join(attribute.names)}: evaluate with the attribute that the run was made with"
                )
