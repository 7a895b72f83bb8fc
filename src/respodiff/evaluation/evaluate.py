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
from respodiff.concepts.intersections import by_name, marginals
from respodiff.data.prompt_sets import SUITES, suite
from respodiff.data.records import ImageRecord
from respodiff.data.run_folder import RunFolder
from respodiff.data.shards import WHOLE, Shard
from respodiff.data.target_proportions import check_proportions
from respodiff.evaluation import judges
from respodiff.evaluation.domain import default_judge
from respodiff.evaluation.judges import Judge, LabellingTask, Vocabulary
from respodiff.evaluation.registry import Settings
from respodiff.evaluation.score_files import ScoreFiles, judge_run, key_of, scored_by
from respodiff.evaluation.scored_run import AnyRun, ScoredRun, load_scored_run, read_records
from respodiff.evaluation.summary import Summary, summarise

Proportions = Mapping[str, Mapping[str, Mapping[str, float]]]
AnyJudge = str | Judge | Sequence[str | Judge]
AnyAttributes = str | Attribute | Sequence[Attribute | str]


def evaluate(
    run: AnyRun,
    judge: AnyJudge | None = None,
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
        judge: A judge, a source that `respodiff.load_judge` takes, or several. Labels come from the first that gives any, flags of unsafe
            images from all; their agreement is reported. None takes ``embedded`` for images of the embedded model, and no others.
        attributes: What to measure: attributes, or names of built-in ones.
        vocabulary: Names for the choice of subject and of safety; None takes the embedded model's for the embedded judge.
        class_template, min_margin: See `respodiff.evaluation.judges.LabellingTask`.
        group_proportions: Group of prompts -> attribute -> concept -> wanted share, for these groups instead of the run's own.
        confusion: Judge digest -> attribute -> confusion matrix (`respodiff.evaluation.calibration.calibrate`); None takes the shipped ones.
        n_bootstrap: Bootstrap samples of the intervals. seed: Of the samples.

    Raises:
        ValueError: No run, an empty run, no judge for images of another model, an unknown attribute, or a record that asks for a concept
            that its attribute does not have.
    """
    chosen = attributes_of(attributes)
    judged = judge_all(
        run, judge, chosen, vocabulary=vocabulary, class_template=class_template, min_margin=min_margin, group_proportions=group_proportions
    )
    known = shipped_confusion() if confusion is None else confusion
    return summarise(judged.only([a.name for a in chosen]), Settings(n_bootstrap=n_bootstrap, seed=seed, confusion=known))


def attributes_of(attributes: AnyAttributes) -> list[Attribute]:
    """Attributes from objects or names of built-in ones; ValueError for an unknown name."""
    given = [attributes] if isinstance(attributes, str | Attribute) else attributes
    return [concept.attribute(a) if isinstance(a, str) else a for a in given]


def judge_all(
    run: AnyRun,
    judge: AnyJudge | None,
    attributes: AnyAttributes,
    *,
    vocabulary: Vocabulary | None = None,
    class_template: str = "{concept}",
    min_margin: float = 0.0,
    group_proportions: Proportions | None = None,
) -> ScoredRun:
    """Judge every image of a run and keep the scores in its folder.

    Earlier questions of the same wording are asked again, so that no earlier label is lost.
    """
    keys = judge_shard(
        run, judge, attributes, WHOLE, vocabulary=vocabulary, class_template=class_template, min_margin=min_margin,
        group_proportions=group_proportions,
    )  # fmt: skip
    return load_scored_run(run, keys=keys)


def judge_shard(
    run: AnyRun,
    judge: AnyJudge | None,
    attributes: AnyAttributes,
    shard: Shard,
    *,
    vocabulary: Vocabulary | None = None,
    class_template: str = "{concept}",
    min_margin: float = 0.0,
    group_proportions: Proportions | None = None,
) -> list[str]:
    """Judge the images of some prompts and keep what was found. Scores are made of it by `judge_all`, which opens no judged image again.

    Gives the keys of the judges' files; arguments and errors as `judge_all`.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder(run)
    wanted = wanted_proportions(folder)
    chosen = [
        dataclasses.replace(a, proportions=tuple(wanted[a.name].get(name, 0.0) for name in a.names)) if wanted.get(a.name) else a
        for a in attributes_of(attributes)
    ]
    of_groups = _by_group(folder, chosen, group_proportions)
    records, _ = read_records(folder)
    for a in chosen:
        if wrong := next((r for r in records if r.asked(a.name) not in (None, *a.names)), None):
            raise ValueError(
                f"image {wrong.id} asked for {a.name} {wrong.asked(a.name)!r}, but attribute {a.name!r} has {', '.join(a.names)}: "
                "evaluate with the attribute that the run was made with"
            )
    judge = default_judge(folder) if judge is None else judge
    sources = list(judge) if isinstance(judge, Sequence) and not isinstance(judge, str) else [judge]
    labellers = [judges.load_judge(source) if isinstance(source, str) else source for source in sources]
    keys = []
    for labeller in labellers:
        words = vocabulary or (Vocabulary.embedded() if labeller.name in judges.EMBEDDED else None)
        key = key_of(labeller.name, labeller.digest)
        asked, groups = {a.name: a for a in chosen}, of_groups
        if key in scored_by(folder):
            header = ScoreFiles(folder, key).header()
            groups = header.group_proportions | of_groups
            earlier = header.attributes if header.asked == (class_template, min_margin) else {}
            for name, targets in earlier.items():
                proportions = tuple(header.proportions.get(name, {}).values())
                asked.setdefault(name, Attribute(name, tuple(Concept(c, target) for c, target in targets.items()), proportions))
        task = LabellingTask(tuple(asked.values()), _subjects(records, words), words, class_template, min_margin, groups)
        keys.append(judge_run(folder, labeller, task, shard))
    return list(dict.fromkeys(keys))


def _by_group(run: RunFolder, attributes: Sequence[Attribute], given: Proportions | None) -> dict[str, dict[str, dict[str, float]]]:
    """Attribute -> group -> concept -> wanted share: those given, else those that the run was made for."""
    found = given if given is not None else run.settings().get("group_proportions") or {}
    out = {a.name: {group: dict(rows[a.name]) for group, rows in found.items() if a.name in rows} for a in attributes}
    for a in attributes:
        for group, proportions in out[a.name].items():
            try:
                check_proportions(a.names, proportions)
            except (ValueError, TypeError) as error:
                raise ValueError(f"group_proportions of {a.name} for group {group!r}: {error}") from error
    return out


def _subjects(records: Sequence[ImageRecord], words: Vocabulary | None) -> tuple[str, ...]:
    """Subjects that the judge chooses from: the run's, and the vocabulary's or those of whole prompt sets, whatever part was generated."""
    found = {r.subject for r in records if r.subject}
    if words:
        return tuple(sorted(found.union(words.subjects)))
    known = {r.suite for r in records if r.subject and r.suite.startswith(("occupations", "winobias")) and r.suite in SUITES}
    return tuple(sorted(found | {prompt.subject for name in known for prompt in suite(name) if prompt.subject}))


def wanted_proportions(run: RunFolder) -> dict[str, dict[str, float]]:
    """Target proportions that a run was made for, by attribute, with the margins of intersections; empty if it names none."""
    found = run.settings().get("target_proportions") or {}
    try:
        return marginals(by_name({name: {concept: float(v) for concept, v in row.items()} for name, row in found.items()}))
    except (AttributeError, TypeError, ValueError) as error:
        file = run.path / "run.json"
        raise ValueError(f"{file} has target_proportions {found!r}; allowed: attribute -> concept -> number: restore it") from error


def shipped_confusion() -> dict[str, Any]:
    """The confusion matrices of the embedded judges, by their digests."""
    found = dict[str, Any]()
    for part in judges.EMBEDDED.values():
        found |= json.loads((files("respodiff") / "embedded" / part / "confusion.json").read_text(encoding="utf-8"))
    return found
