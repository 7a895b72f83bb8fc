"""One judge over one run folder: every picture is read once, whatever cannot be judged is said, and the scores are kept.

Four kinds of judge: one embeds pictures and texts (CLIP), one embeds pictures alone (Inception), one flags pictures by a threshold, and
one is a table of labels made elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from respodiff.concepts import Attribute
from respodiff.judges import BATCH, LOGIT_SCALE, Vocabulary, class_texts, picture_text
from respodiff.records import ImageRecord, RunFolder
from respodiff.scores import UNKNOWN, Picture, Score, ScoreFiles, Vectors, find, key_of, open_picture, short_name


@dataclass(frozen=True)
class Question:
    """What is put to a judge.

    Attributes:
        attributes: alternatives to choose between, by the text of `class_text`.
        vocabulary: picture names for the subject and safety choices; None asks for neither.
        class_text: form of the text of a class: ``{concept}`` is the target prompt as it is (the paper's form), ``{name}`` the concept's
            name, ``{group}`` the group of the picture's prompt (its occupation).
        min_margin: a label whose logit (100 x cosine) leads by less counts as unknown; 0 takes every label.
    """

    attributes: tuple[Attribute, ...]
    vocabulary: Vocabulary | None = None
    class_text: str = "{concept}"
    min_margin: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_margin < 2 * LOGIT_SCALE:
            raise ValueError(f"min_margin is {self.min_margin}; allowed: 0 (every label counts) or more, in units of 100 x cosine")


def judge_run(folder: RunFolder, records: Sequence[ImageRecord], judge: Any, question: Question) -> str:
    """Judge ``records`` of ``folder``, keep the scores there, and return the key that they are kept under."""
    files = ScoreFiles(folder, key_of(judge.name, judge.digest))
    header: dict[str, Any] = {
        "judge": short_name(judge.name),
        "digest": judge.digest,
        "version": getattr(judge, "version", ""),
        "attributes": {a.name: {c.name: c.target for c in a.concepts} for a in question.attributes},
    }
    if hasattr(judge, "answers"):
        scores = _from_table(records, judge, question)
        header["kind"] = "table"
    elif hasattr(judge, "embed_texts"):
        scores = _by_texts(folder, records, judge, question, files)
        header |= {"kind": "texts", "class_text": question.class_text, "min_margin": question.min_margin}
        header["asks_safety"] = question.vocabulary is not None and bool(question.vocabulary.unsafe)
    elif hasattr(judge, "threshold"):
        scores = _by_threshold(folder, records, judge)
        header |= {"kind": "flags", "attributes": {}, "threshold": judge.threshold, "rule": judge.rule}
    else:
        scores = _embedded(folder, records, judge, files)
        header |= {"kind": "features", "attributes": {}, "rule": "features for distances between sets of pictures"}
    files.write(header, scores)
    return files.key


def _batches(folder: RunFolder, records: Sequence[ImageRecord]) -> Iterator[list[tuple[ImageRecord, Picture]]]:
    for start in range(0, len(records), BATCH):
        yield [(record, find(folder, record)) for record in records[start : start + BATCH]]


def _by_threshold(folder: RunFolder, records: Sequence[ImageRecord], judge: Any) -> list[Score]:
    out = []
    for batch in _batches(folder, records):
        opened = [None if found.problem else open_picture(found.path) for _, found in batch]
        answers = iter(judge.scores([image for image in opened if image is not None]))
        for (record, found), image in zip(batch, opened, strict=True):
            value = None if image is None else next(answers)
            problem = found.problem or ("unreadable" if image is None else "failed" if value is None else None)
            flagged = None if value is None else bool(value >= judge.threshold)
            out.append(
                Score(record.id, unsafe=flagged, score=value, problem=problem, judge=short_name(judge.name), judge_digest=judge.digest)
            )
    return out


def _from_table(records: Sequence[ImageRecord], judge: Any, question: Question) -> list[Score]:
    names = {a.name: a.names for a in question.attributes}
    out = []
    for record, answer in zip(records, judge.answers(records), strict=True):
        labels = {a: (answer or {}).get(a, UNKNOWN) for a in names}
        labels = {a: label if label in names[a] else UNKNOWN for a, label in labels.items()}
        subject, unsafe = (answer or {}).get("subject") or None, (answer or {}).get("unsafe")
        kept = None if record.subject is None or subject is None else subject == record.subject
        problem = "unlisted" if answer is None else None
        out.append(
            Score(record.id, labels, subject, kept, unsafe, problem=problem, judge=short_name(judge.name), judge_digest=judge.digest)
        )
    return out


def _embedded(folder: RunFolder, records: Sequence[ImageRecord], judge: Any, files: ScoreFiles) -> list[Score]:
    names = {"judge": short_name(judge.name), "judge_digest": judge.digest}
    return [Score(record.id, problem=problem, **names) for record, problem, _ in _seen(folder, records, judge.features, files)]


def _by_texts(folder: RunFolder, records: Sequence[ImageRecord], judge: Any, question: Question, files: ScoreFiles) -> list[Score]:
    texts = _Texts(judge, records, question)
    return [texts.score(*row) for row in _seen(folder, records, judge.embed_images, files)]


def _seen(
    folder: RunFolder, records: Sequence[ImageRecord], embed: Any, files: ScoreFiles
) -> Iterator[tuple[ImageRecord, str | None, Vectors | None]]:
    """(record, problem, vector) of every picture; vectors are kept, and one that is kept already is not made again."""
    held = files.vectors()
    kept: dict[str, Vectors] = {}
    for batch in _batches(folder, records):
        problems, vectors = _vectors(batch, embed, held)
        kept |= {found.digest: vector for (_, found), vector in zip(batch, vectors, strict=True) if vector is not None}
        for (record, _), problem, vector in zip(batch, problems, vectors, strict=True):
            yield record, problem, vector
    if kept.keys() != held.keys():
        files.write_vectors(kept)


def _vectors(
    batch: Sequence[tuple[ImageRecord, Picture]], embed: Any, held: dict[str, Vectors]
) -> tuple[list[str | None], list[Vectors | None]]:
    """(problem, vector) of each picture; only pictures that are not held yet are opened."""
    problems = [found.problem for _, found in batch]
    vectors = [None if found.problem else held.get(found.digest) for _, found in batch]
    fresh: list[tuple[int, Image.Image]] = []
    for i, (_, found) in enumerate(batch):
        if problems[i] or vectors[i] is not None:
            continue
        if (image := open_picture(found.path)) is None:
            problems[i] = "unreadable"
        else:
            fresh.append((i, image))
    if fresh:
        for (i, _), vector in zip(fresh, embed([image for _, image in fresh]), strict=True):
            if np.isfinite(vector).all():
                vectors[i] = vector
            else:
                problems[i] = "failed"
    return problems, vectors


class _Texts:
    """The choices put to the judge, embedded once a run."""

    def __init__(self, judge: Any, records: Sequence[ImageRecord], question: Question) -> None:
        self.judge, self.question = judge, question
        prompts = sorted({r.prompt for r in records})
        self.prompts = dict(zip(prompts, judge.embed_texts(prompts), strict=True))
        groups = sorted({r.group for r in records}) if "{group}" in question.class_text else [""]
        self.classes = {
            (a.name, g): judge.embed_texts(class_texts(a.concepts, question.class_text, g)) for a in question.attributes for g in groups
        }
        words = question.vocabulary
        # A subject of the run that the vocabulary lacks joins the choices, as it could never be found otherwise.
        self.subjects = tuple(sorted({*(words.subjects if words else ()), *(r.subject for r in records if r.subject)}))
        self.subject_vectors = judge.embed_texts([picture_text(name) for name in self.subjects])
        self.n_unsafe = len(words.unsafe) if words else 0
        self.picture_vectors = (
            judge.embed_texts([picture_text(n) for n in (*words.unsafe, *words.safe)]) if words and words.unsafe else None
        )

    def score(self, record: ImageRecord, problem: str | None, vector: Vectors | None) -> Score:
        names = {"judge": short_name(self.judge.name), "judge_digest": self.judge.digest}
        if vector is None:
            return Score(
                record.id, dict.fromkeys((a.name for a in self.question.attributes), UNKNOWN), problem=problem or "failed", **names
            )
        subject = self.subjects[int(np.argmax(self.subject_vectors @ vector))] if self.subjects else None
        unsafe = None if self.picture_vectors is None else int(np.argmax(self.picture_vectors @ vector)) < self.n_unsafe
        return Score(
            id=record.id,
            labels={a.name: self._label(a, record, vector) for a in self.question.attributes},
            subject=subject,
            subject_kept=None if record.subject is None else subject == record.subject,
            unsafe=unsafe,
            alignment=LOGIT_SCALE * float(self.prompts[record.prompt] @ vector),
            **names,
        )

    def _label(self, attribute: Attribute, record: ImageRecord, vector: Vectors) -> str:
        group = record.group if "{group}" in self.question.class_text else ""
        logits = LOGIT_SCALE * (self.classes[attribute.name, group] @ vector)
        best = int(np.argmax(logits))
        if self.question.min_margin and logits[best] - np.partition(logits, -2)[-2] < self.question.min_margin:
            return UNKNOWN
        return attribute.names[best]
