"""Measures a run folder: judges score its images, and the scores are summed up.

Scores belong to image records, never to the order of files. An image that cannot be judged counts as unknown: it is reported, and it is in
no share. This package needs no text-to-image library.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
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
from respodiff.evaluation.score_files import ScoreFiles, key_of, scored_by
from respodiff.evaluation.scored_run import AnyRun, ScoredRun, load_scored_run, open_parts, read_parts
from respodiff.evaluation.scoring import judge_run
from respodiff.evaluation.summary import Summary, summarise

Proportions = Mapping[str, Mapping[str, Mapping[str, float]]]
AnyJudge = str | Judge | Sequence[str | Judge]
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
        attributes: What to measure: attributes, or names of built-in ones. DevRat is the distance to the run's target proportions.
        vocabulary: Names for the choice of subject and of safety; None takes the embedded model's for the embedded judge.
        class_template, min_margin: See `respodiff.evaluation.judges.LabellingTask`.
        group_proportions: Group of prompts -> attribute -> concept -> wanted share, for these groups instead of the run's own.
        confusion: Judge digest -> attribute -> confusion matrix (`respodiff.evaluation.calibration.calibrate`); None takes the shipped ones.
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
    chosen = [
        dataclasses.replace(a, proportions=tuple(wanted[a.name].get(name, 0.0) for name in a.names)) if wanted.get(a.name) else a
        for a in attributes_of(attributes)
    ]
    of_groups = by_group(parts, chosen, group_proportions)
    records = [record for _, record in read_parts(parts)[0]]
    _check_asked(records, chosen)
    sources = list(judge) if isinstance(judge, Sequence) and not isinstance(judge, str) else [judge]
    labellers = [judges.load(source) if isinstance(source, str) else source for source in sources]
    keys = []
    for labeller in labellers:
        words = vocabulary or (Vocabulary.embedded() if labeller.name in judges.EMBEDDED else None)
        key = key_of(labeller.name, labeller.digest)
        before = [ScoreFiles(part, key).header() for part in parts if key in scored_by(part)]
        kept = {**(before[0].group_proportions if before and key in scored_by(parts[0]) else {}), **of_groups}
        asked = {a.name: a for a in chosen}
        for header in (header for header in before if header.asked == (class_template, min_margin)):
            for name, targets in header.attributes.items():
                proportions = tuple(header.proportions.get(name, {}).values())
                asked.setdefault(name, Attribute(name, tuple(Concept(c, target) for c, target in targets.items()), proportions))
        task = LabellingTask(tuple(asked.values()), subjects_of(records, words), words, class_template, min_margin, kept)
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
    out = {a.name: {group: dict(rows[a.name]) for group, rows in found.items() if a.name in rows} for a in attributes}
    for a in attributes:
        for group, proportions in out[a.name].items():
            try:
                check_proportions(a.names, proportions)
            except (ValueError, TypeError) as error:
                raise ValueError(f"group_proportions of {a.name} for group {group!r}: {error}") from error
    return out


def subjects_of(records: Sequence[ImageRecord], words: Vocabulary | None) -> tuple[str, ...]:
    """Subjects that the judge chooses from: the run's, and the vocabulary's or those of whole prompt sets, whatever part was generated."""
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
    found = parts[0].settings().get("target_proportions") or {}
    try:
        return marginals({name: {concept: float(v) for concept, v in row.items()} for name, row in found.items()})
    except (AttributeError, TypeError, ValueError) as error:
        file = parts[0].path / "run.json"
        raise ValueError(f"{file} has target_proportions {found!r}; allowed: attribute -> concept -> number: restore it") from error


def shipped_confusion() -> dict[str, Any]:
    """The confusion matrices of the embedded judges, by their digests."""
    found = dict[str, Any]()
    for part in judges.EMBEDDED.values():
        found |= json.loads((files("respodiff") / "embedded" / part / "confusion.json").read_text(encoding="utf-8"))
    return found


def _check_asked(records: Sequence[ImageRecord], attributes: Sequence[Attribute]) -> None:
    for a in attributes:
        for record in records:
            if (asked := record.asked(a.name)) not in (None, *a.names):
                raise ValueError(
                    f"image {record.id} asked for {a.name} {asked!r}, but attribute {a.name!r} has {', '.join(a.names)}: "
                    "evaluate with the attribute that the run was made with"
                )
