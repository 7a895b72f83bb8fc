"""One judge over one run folder: every image is read once, whatever cannot be judged is said, and the scores are kept.

Four kinds of judge: one embeds images and texts (CLIP), one embeds images alone (Inception), one flags images by a threshold, and
one is a table of labels made elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from respodiff.concepts.concept import Attribute
from respodiff.data.run_folder import ImageRecord, RunFolder
from respodiff.evaluation.judges import BATCH, LOGIT_SCALE, Vocabulary, choose, class_texts, image_text
from respodiff.evaluation.score_files import UNKNOWN, ImageFile, Score, ScoreFiles, Vectors, find, key_of, open_image, short_name

SAVE_SECONDS = 60.0
Found = tuple[ImageRecord, ImageFile]


@dataclass(frozen=True)
class LabellingTask:
    """What is put to a judge.

    Attributes:
        attributes: alternatives to choose between, by the text of `class_template`.
        subjects: what may be found in an image, for "is the subject still there"; the same for every part of a run.
        vocabulary: image names for the safety choice; None asks for none.
        class_template: form of the text of a class: ``{concept}`` is the target prompt as it is (the paper's form), ``{name}`` the concept's
            name, ``{group}`` the group of the image's prompt (its occupation).
        group_proportions: attribute -> group of prompts -> concept -> wanted share, before the attribute's own for that group.
        min_margin: a label whose logit (100 x cosine) leads by less counts as unknown; 0 takes every label.
    """

    attributes: tuple[Attribute, ...]
    subjects: tuple[str, ...] = ()
    vocabulary: Vocabulary | None = None
    class_template: str = "{concept}"
    min_margin: float = 0.0
    group_proportions: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.min_margin < 2 * LOGIT_SCALE:
            raise ValueError(f"min_margin is {self.min_margin}; allowed: 0 (every label counts) or more, in units of 100 x cosine")


def judge_run(folder: RunFolder, records: Sequence[ImageRecord], judge: Any, task: LabellingTask) -> str:
    """Judge ``records`` of ``folder``, keep the scores there, and return the key that they are kept under."""
    files = ScoreFiles(folder, key_of(judge.name, judge.digest))
    header: dict[str, Any] = {
        "judge": short_name(judge.name),
        "digest": judge.digest,
        "version": getattr(judge, "version", ""),
        "attributes": {a.name: {c.name: c.target for c in a.concepts} for a in task.attributes},
        "proportions": {a.name: dict(zip(a.names, a.proportions, strict=True)) for a in task.attributes if a.proportions},
    }
    if own := {a.name: task.group_proportions[a.name] for a in task.attributes if task.group_proportions.get(a.name)}:
        header["group_proportions"] = own
    if hasattr(judge, "answers"):
        scores = _from_table(records, judge, task)
        header["kind"] = "table"
    elif hasattr(judge, "embed_texts"):
        scores = _by_texts(folder, records, judge, task, files)
        header |= {
            "kind": "texts",
            "class_template": task.class_template,
            "min_margin": task.min_margin,
            "subjects": list(task.subjects),
        }
    elif hasattr(judge, "threshold"):
        scores = _by_threshold(folder, records, judge, files)
        header |= {"kind": "flags", "attributes": {}, "proportions": {}, "threshold": judge.threshold, "rule": judge.rule}
    else:
        scores = _embedded(folder, records, judge, files)
        header |= {"kind": "features", "attributes": {}, "proportions": {}, "rule": "features for distances between sets of images"}
    files.write(header, scores)
    return files.key


def _batches(folder: RunFolder, records: Sequence[ImageRecord]) -> Iterator[list[Found]]:
    for start in range(0, len(records), BATCH):
        yield [(record, find(folder, record)) for record in records[start : start + BATCH]]


def _by_threshold(folder: RunFolder, records: Sequence[ImageRecord], judge: Any, files: ScoreFiles) -> list[Score]:
    """An image that this judge has scored before is not put to it again, also after a kill in the middle of a run."""
    held = files.held_scores()
    names = {"judge": short_name(judge.name), "judge_digest": judge.digest}
    out = []
    for batch in _batches(folder, records):
        problems, fresh = _opened(batch, held)
        scores = judge.scores([image for _, image in fresh]) if fresh else []
        new = {batch[i][1].digest: s for (i, _), s in zip(fresh, scores, strict=True) if s is not None}
        held |= new
        if new:
            files.note_scores(new)
        for (record, found), problem in zip(batch, problems, strict=True):
            value = None if problem else held.get(found.digest)
            flagged = None if value is None else bool(value >= judge.threshold)
            trouble = problem or ("failed" if value is None else None)
            out.append(Score(record.id, unsafe=flagged, score=value, problem=trouble, digest=found.digest, **names))
    return out


def _from_table(records: Sequence[ImageRecord], judge: Any, task: LabellingTask) -> list[Score]:
    names = {a.name: a.names for a in task.attributes}
    out = []
    for record, answer in zip(records, judge.answers(records), strict=True):
        said = answer or {}
        labels = {a: said.get(a, UNKNOWN) for a in names}
        labels = {a: label if label in names[a] else UNKNOWN for a, label in labels.items()}
        subject = said.get("subject") or None
        score = Score(
            id=record.id,
            labels=labels,
            subject=subject,
            subject_correct=None if record.subject is None or subject is None else subject == record.subject,
            unsafe=said.get("unsafe"),
            problem="unlisted" if answer is None else None,
            judge=short_name(judge.name),
            judge_digest=judge.digest,
            digest=record.digest,
        )
        out.append(score)
    return out


def _embedded(folder: RunFolder, records: Sequence[ImageRecord], judge: Any, files: ScoreFiles) -> list[Score]:
    names = {"judge": short_name(judge.name), "judge_digest": judge.digest}
    return [
        Score(r.id, problem=problem, digest=found.digest, **names) for r, found, problem, _ in _seen(folder, records, judge.features, files)
    ]


def _by_texts(folder: RunFolder, records: Sequence[ImageRecord], judge: Any, task: LabellingTask, files: ScoreFiles) -> list[Score]:
    texts = _Texts(judge, records, task)
    return [texts.score(*row) for row in _seen(folder, records, judge.embed_images, files)]


def _seen(
    folder: RunFolder, records: Sequence[ImageRecord], embed: Any, files: ScoreFiles
) -> Iterator[tuple[ImageRecord, ImageFile, str | None, Vectors | None]]:
    """(record, file, problem, vector) of every image; vectors are kept, now and then on the way, and none is made twice."""
    held = files.vectors()
    before, kept, saved = held.keys(), dict[str, Vectors](), time.monotonic()
    for batch in _batches(folder, records):
        problems, fresh = _opened(batch, held)
        made = dict(zip([i for i, _ in fresh], _each(embed, [image for _, image in fresh]), strict=True))
        for i, (record, found) in enumerate(batch):
            vector = made.get(i, held.get(found.digest)) if problems[i] is None else None
            if vector is not None:
                kept[found.digest] = vector
            yield record, found, problems[i] or ("failed" if vector is None else None), vector
        if time.monotonic() - saved > SAVE_SECONDS:
            files.write_vectors({**held, **kept})
            saved = time.monotonic()
    if kept.keys() != before:
        files.write_vectors(kept)


def _opened(batch: Sequence[Found], held: Any) -> tuple[list[str | None], list[tuple[int, Image.Image]]]:
    """What is wrong with each image, and (place, image) of those that are fine and not held yet; only these are opened."""
    problems = [found.problem for _, found in batch]
    fresh = []
    for i, (_, found) in enumerate(batch):
        if problems[i] is None and found.digest not in held:
            if (image := open_image(found.path)) is None:
                problems[i] = "unreadable"
            else:
                fresh.append((i, image))
    return problems, fresh


def _each(embed: Callable[[list[Image.Image]], Any], images: list[Image.Image]) -> list[Vectors | None]:
    """Vectors of a batch; one image that the judge breaks down on, or makes NaN of, costs that image alone.

    Raises:
        RuntimeError: it breaks down on each of two or more images, so it is the judge that is broken.
    """
    if not images:
        return []
    try:
        rows = list(embed(images))
    except Exception as error:
        if len(images) == 1:
            return [None]
        rows, errors = [], 0
        for image in images:
            try:
                rows.extend(embed([image]))
            except Exception:  # models raise from families of their own; counted, and said by the caller
                rows.append(None)
                errors += 1
        if errors == len(images):
            raise RuntimeError(f"the judge failed on all {len(images)} images of a batch ({error}); check its installation") from error
    return [row if row is not None and np.isfinite(row).all() else None for row in rows]


class _Texts:
    """The choices put to the judge, embedded once a run."""

    def __init__(self, judge: Any, records: Sequence[ImageRecord], task: LabellingTask) -> None:
        self.judge, self.task = judge, task
        prompts = sorted({r.prompt for r in records})
        self.prompts = dict(zip(prompts, judge.embed_texts(prompts), strict=True))
        by_group = "{group}" in task.class_template
        groups = sorted({r.group for r in records}) if by_group else [""]
        texts = {(a, g): class_texts(a.concepts, task.class_template, g) for a in task.attributes for g in groups}
        self.classes = {(a.name, g): judge.embed_texts(lines) for (a, g), lines in texts.items()}
        self.subjects = task.subjects
        words = task.vocabulary
        self.subject_vectors = judge.embed_texts([words.text(name) if words else image_text(name) for name in self.subjects])
        self.n_unsafe = len(words.unsafe) if words else 0
        self.image_vectors = judge.embed_texts([image_text(n) for n in (*words.unsafe, *words.safe)]) if words and words.unsafe else None

    def score(self, record: ImageRecord, found: ImageFile, problem: str | None, vector: Vectors | None) -> Score:
        names = {"judge": short_name(self.judge.name), "judge_digest": self.judge.digest, "digest": found.digest}
        if vector is None:
            return Score(record.id, {a.name: UNKNOWN for a in self.task.attributes}, problem=problem or "failed", **names)
        subject = self.subjects[int(np.argmax(self.subject_vectors @ vector))] if self.subjects else None
        unsafe = None if self.image_vectors is None else int(np.argmax(self.image_vectors @ vector)) < self.n_unsafe
        return Score(
            id=record.id,
            labels={a.name: self._label(a, record, vector) for a in self.task.attributes},
            subject=subject,
            subject_correct=None if record.subject is None else subject == record.subject,
            unsafe=unsafe,
            alignment=LOGIT_SCALE * float(self.prompts[record.prompt] @ vector),
            **names,
        )

    def _label(self, attribute: Attribute, record: ImageRecord, vector: Vectors) -> str:
        group = record.group if "{group}" in self.task.class_template else ""
        logits = LOGIT_SCALE * (self.classes[attribute.name, group] @ vector)
        best = int(choose(logits[None], self.task.min_margin)[0][0])
        return UNKNOWN if best < 0 else attribute.names[best]
