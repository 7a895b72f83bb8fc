"""A run folder and judges in, numbers out: what judges perceive, compared with what was asked for.

Rows are joined by the record itself, never by file order. A picture that cannot be judged counts as unknown: it is
reported, stays outside every share, and is never taken for a zero. This side needs no text-to-image library.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from respodiff import concepts, judges
from respodiff.concepts import Attribute
from respodiff.figures import Settings
from respodiff.judged import JudgedRun, load_judged, open_parts, read_parts
from respodiff.judges import Vocabulary
from respodiff.judging import Question, judge_run
from respodiff.records import ImageRecord, RunFolder
from respodiff.summary import summarise

AnyRun = str | Path | RunFolder | Sequence[str | Path | RunFolder]


def evaluate(
    run: AnyRun,
    judge: Any = "embedded",
    attributes: Sequence[Attribute | str] = ("gender",),
    *,
    vocabulary: Vocabulary | None = None,
    class_text: str = "{concept}",
    min_margin: float = 0.0,
    confusion: Mapping[str, Any] | None = None,
    n_boot: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Judge every picture of a run, keep the scores in its folder, and sum up.

    Args:
        run: a run folder, or the folders that a run was split over.
        judge: a judge, a source that `respodiff.judges.load` takes, or several: labels come from the first that gives any, flags of
            unsafe pictures from all, and their agreement is reported.
        attributes: attributes to measure, as objects or names of built-in ones. Shares that the run was made for are what DevRat
            measures the distance to.
        vocabulary: picture names for the subject and safety choices; None takes the embedded model's for the embedded judge.
        class_text, min_margin: see `respodiff.judging.Question`.
        confusion: judge digest -> attribute -> confusion matrix, as `respodiff.calibration.calibrate` makes it; None takes the shipped
            one of the embedded judge.

    Returns:
        JSON-ready numbers (`respodiff.summary`). ``unknown`` pictures are in ``n`` and in no share; an entry is None where nothing was
        asked.

    Raises:
        ValueError: no run, an empty run, an unknown attribute, or a record that asks for a concept it does not have.
    """
    judged, settings = judge_all(run, judge, attributes, vocabulary=vocabulary, class_text=class_text, min_margin=min_margin)
    known = shipped_confusion() if confusion is None else confusion
    return summarise(judged, dataclasses.replace(settings, n_boot=n_boot, seed=seed, confusion=known))


def judge_all(
    run: AnyRun,
    judge: Any,
    attributes: Sequence[Attribute | str],
    *,
    vocabulary: Vocabulary | None = None,
    class_text: str = "{concept}",
    min_margin: float = 0.0,
) -> tuple[JudgedRun, Settings]:
    """Judge every picture of a run and keep the scores in its folders; the run with its scores, and the shares it was made for."""
    parts = open_parts(run)
    wanted = wanted_shares(parts)
    chosen = [concepts.attribute(a) if isinstance(a, str) else a for a in attributes]
    chosen = [_with_shares(a, wanted) for a in chosen]
    rows, _ = read_parts(parts)
    _check_asked([record for _, record in rows], chosen)
    sources = [judge] if isinstance(judge, str) or hasattr(judge, "digest") else list(judge)
    eyes = [judges.load(source) if isinstance(source, str) else source for source in sources]
    keys = []
    for eye in eyes:
        words = vocabulary or (Vocabulary.embedded() if eye.name == "embedded" else None)
        question = Question(tuple(chosen), words, class_text, min_margin)
        for part in parts:
            keys.append(judge_run(part, part.records(), eye, question))
    targets = {a.name: dict(zip(a.names, a.shares, strict=True)) for a in chosen if a.shares}
    return load_judged(parts, keys=list(dict.fromkeys(keys))), Settings(targets=targets)


def wanted_shares(parts: Sequence[RunFolder]) -> dict[str, dict[str, float]]:
    """The target shares that a run was made for, if it says any."""
    return parts[0].settings().get("shares") or {}


def shipped_confusion() -> dict[str, Any]:
    """The confusion matrices of the embedded judge, by its digest."""
    import json
    from importlib.resources import files

    found: dict[str, Any] = json.loads((files("respodiff.embedded") / "judge" / "confusion.json").read_text(encoding="utf-8"))
    return found


def _with_shares(attribute: Attribute, wanted: dict[str, dict[str, float]]) -> Attribute:
    """The attribute with the target shares that the run was made for, if it says any."""
    shares = wanted.get(attribute.name)
    return attribute if not shares else dataclasses.replace(attribute, shares=tuple(shares.get(n, 0.0) for n in attribute.names))


def _check_asked(records: Sequence[ImageRecord], attributes: Sequence[Attribute]) -> None:
    for attribute in attributes:
        for record in records:
            asked = record.concepts.get(attribute.name)
            if asked is not None and asked not in attribute.names:
                raise ValueError(
                    f"image {record.id} asked for {attribute.name} {asked!r}, but attribute {attribute.name!r} has "
                    f"{', '.join(attribute.names)}: evaluate with the attribute that the run was made with"
                )
