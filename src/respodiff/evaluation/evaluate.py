"""Measures a run folder: judges score its images, and the scores are summed up.

Scores belong to image records, never to the order of files. An image that cannot be judged counts as unknown: it is reported, and it is in
no share. This package needs no text-to-image library.
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
from respodiff.data.records import ImageRecord
from respodiff.data.run_folder import RunFolder
from respodiff.data.target_proportions import check_proportions
from respodiff.evaluation import judges
from respodiff.evaluation.judges import Judge, LabellingTask, Vocabulary
from respodiff.evaluation.registry import Settings
from respodiff.evaluation.score_files import ScoreFiles, ScoreHeader, key_of, scored_by
from respodiff.evaluation.scored_run import ScoredRun, load_scored_run, open_parts, read_parts
from respodiff.evaluation.scoring import judge_run
from respodiff.evaluation.summary import Summary, summarise

Proportions = Mapping[str, Mapping[str, Mapping[str, float]]]
AnyJudge = str | Judge | Sequence[str | Judge]
AnyRun = str | Path | RunFolder | Sequence[str | Path | RunFolder]
AnyAttributes = str | Attribute | Sequence[Attribute | str]


def evaluate(
    run: AnyRun,
    judge: AnyJudge = "embedded",
    attributes: AnyAttributes = "gender",
    *,
    vocabulary: Vocabulary | None = None,
    class_template: str = "{concept}",
    min_margin: float = 0.0,
    group_proportions: Proportions | None = None,
    confusion: Mapping[str, Any] | None = None,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> Summary:
    """Judge every image of a run, keep the scores in its folder, and sum up.

    Args:
        run: A run folder, or the folders that a run was split over.
        judge: A judge, a source that `respodiff.evaluation.judges.load` takes, or several. Labels come from the first that gives any, flags of
            unsafe images from all; their agreement is reported.
        attributes: What to measure: an attribute, the name of a built-in one, or several. DevRat measures the distance to the target
            proportions that the run was made for.
        vocabulary: Names for the choice of subject and of safety; None takes the embedded model's for the embedded judge.
        class_template, min_margin: See `respodiff.evaluation.judges.LabellingTask`.
        group_proportions: Group of prompts -> attribute -> concept -> wanted share; for these groups it stands above the run's own.
        confusion: Judge digest -> attribute -> confusion matrix, from `respodiff.evaluation.calibration.calibrate`; None takes the shipped
            one of the embedded judge.
        n_bootstrap: Bootstrap samples of the intervals. seed: Of the samples.

    Raises:
        ValueError: No run, an empty run, an unknown attribute, or a record that asks for a concept that its attribute does not have.
    """
    chosen = attributes_of(attributes)
    judged = judge_all(
        run,
        judge,
        chosen,
        vocabulary=vocabulary,
        class_template=class_template,
        min_margin=min_margin,
        group_proportions=group_proportions,
    )
    known = shipped_confusion() if confusion is None else confusion
    return summarise(judged.only([a.name for a in chosen]), Settings(n_bootstrap=n_bootstrap, seed=seed, confusion=known))


def attributes_of(attributes: AnyAttributes) -> list[Attribute]:
    """Attributes from objects or names of built-in ones; ValueError for an unknown name."""
    given = [attributes] if isinstance(attributes, str | Attribute) else attributes
    return [concept.attribute(a) if isinstance(a, str) else a for a in given]


def judge_all(
    run: AnyRun,
    judge: AnyJudge,
    attributes: AnyAttributes,
    *,
    vocabulary: Vocabulary | None = None,
    class_template: str = "{concept}",
    min_margin: float = 0.0,
    group_proportions: Proportions | None = None,
) -> ScoredRun:
    """Judge every image of a run and keep the scores in its folders.

    Earlier questions of the same wording are asked again, so that no earlier label is lost.
    """
    parts = open_parts(run)
    wanted = wanted_proportions(parts)
    chosen = [_with_proportions(a, wanted) for a in attributes_of(attributes)]
    of_groups = by_group(parts, chosen, group_proportions)
    rows, _ = read_parts(parts)
    records = [record for _, record in rows]
    _check_asked(records, chosen)
    sources = list(judge) if isinstance(judge, Sequence) and not isinstance(judge, str) else [judge]
    labellers = [judges.load(source) if isinstance(source, str) else source for source in sources]
    keys = []
    for labeller in labellers:
        words = vocabulary or (Vocabulary.embedded() if labeller.name in judges.EMBEDDED else None)
        key = key_of(labeller.name, labeller.digest)
        before = [ScoreFiles(part, key).header() for part in parts if key in scored_by(part)]
        kept = {**(before[0].group_proportions if before and key in scored_by(parts[0]) else {}), **of_groups}
        asked = _with_earlier(chosen, [header for header in before if header.asked == (class_template, min_margin)])
        task = LabellingTask(tuple(asked), subjects_of(records, words), words, class_template, min_margin, kept)
        keys += [judge_run(part, part.records(), labeller, task) for part in parts]
    return load_scored_run(parts, keys=list(dict.fromkeys(keys)))


def by_group(
    parts: Sequence[RunFolder], attributes: Sequence[Attribute], given: Proportions | None
) -> dict[str, dict[str, dict[str, float]]]:
    """Attribute -> group -> concept -> wanted share: those given, else those that the run was made for.

    Raises:
        ValueError: Proportions that do not sum to 1, or of a concept that the attribute does not have.
    """
    found = given if given is not None else parts[0].settings().get("group_proportions") or {}
    out: dict[str, dict[str, dict[str, float]]] = {a.name: {} for a in attributes}
    for a in attributes:
        for group, proportions in found.items():
            if a.name in proportions:
                try:
                    check_proportions(a.names, proportions[a.name])
                except (ValueError, TypeError, AttributeError) as error:
                    raise ValueError(f"group_proportions of {a.name} for group {group!r}: {error}") from error
                out[a.name][group] = dict(proportions[a.name])
    return out


def _with_earlier(chosen: Sequence[Attribute], headers: Sequence[ScoreHeader]) -> list[Attribute]:
    """The chosen attributes, and those of earlier questions."""
    out = {a.name: a for a in chosen}
    for header in headers:
        for name, targets in header.attributes.items():
            proportions = tuple(header.proportions.get(name, {}).values())
            out.setdefault(name, Attribute(name, tuple(Concept(c, target) for c, target in targets.items()), proportions))
    return list(out.values())


def subjects_of(records: Sequence[ImageRecord], words: Vocabulary | None) -> tuple[str, ...]:
    """Subjects that the judge chooses from: the vocabulary's, or those of the whole prompt sets, and those of the run.

    Whole prompt sets make the choice independent of the part that was generated.
    """
    found = {*(words.subjects if words else ()), *(r.subject for r in records if r.subject)}
    known = {r.suite for r in records if r.subject and r.suite.startswith(("occupations", "winobias")) and r.suite in SUITES}
    if words is None:
        found |= {prompt.subject for name in known for prompt in suite(name) if prompt.subject}
    return tuple(sorted(found))


def wanted_proportions(parts: Sequence[RunFolder]) -> dict[str, dict[str, float]]:
    """Target proportions that a run was made for, by attribute, with the margins of intersections; empty if it names none.

    Raises:
        ValueError: run.json has them in another form.
    """
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
    found = dict[str, Any]()
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
