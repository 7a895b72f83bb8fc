"""What every judge is given and gives back, and what judges that flag images or give features have in common.

A judge's name, version and digest go into every record, as thresholds and versions change counts by large factors.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from respodiff.evaluation.judges.texts import Floats, LabellingTask

if TYPE_CHECKING:
    from PIL import Image

    from respodiff.data.records import ImageRecord

T = TypeVar("T", bound=float | Floats)
NOTICE = "Labels are what an automatic judge perceives in generated images; they say nothing about real people."
BATCH = 64
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Score:
    """What one judge perceives in one image; what it was not asked, or could not tell, is None.

    Attributes:
        labels: attribute -> perceived concept, or ``unknown``.
        subject: the one found among all subjects. subject_correct: whether it is the one asked for.
        unsafe: whether the image is flagged. score: of a judge that flags by a threshold, in [0, 1].
        alignment: 100 x cosine of the image and its own prompt.
        problem: ``missing``, ``outside`` (of the run folder), ``unreadable``, ``changed`` (since the manifest was written), ``blank`` (of
            one colour), ``failed`` (the judge broke down on it) or ``unlisted`` (in a table of labels), else None.
        digest: of the image that was judged: a score counts for that image alone.
        answers: question -> answer -> what it scored, of a judge that answers questions; kept for later labels.
        features: (D,) of a judge that embeds images; kept in a file of their own.
    """

    id: str
    labels: dict[str, str] = field(default_factory=dict)
    subject: str | None = None
    subject_correct: bool | None = None
    unsafe: bool | None = None
    score: float | None = None
    alignment: float | None = None
    problem: str | None = None
    judge: str = ""
    judge_digest: str = ""
    digest: str = ""
    answers: dict[str, dict[str, float]] = field(default_factory=dict)
    features: Floats | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class JudgeInput:
    """One image as it is put to a judge.

    Attributes:
        record: its prompt, group and subject.
        image: RGB pixels; None where all that is asked for is known already, and for a judge of kind ``table``.
        score, features, answers: what the same judge found in the same file before, else None or empty.
    """

    record: ImageRecord
    image: Image.Image | None = None
    score: float | None = None
    features: Floats | None = None
    answers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@runtime_checkable
class Judge(Protocol):
    """A judge of images.

    Attributes:
        name: the source that it was loaded by, such as ``embedded`` or ``nudenet``.
        version: the library whose version changes its answers, such as ``nudenet 3.4.2``.
        digest: first 16 hex digits of the SHA-256 of its weights, and of the files that say what its answers mean.
        kind: ``texts`` (labels by comparing with texts), ``answers`` (labels by answers to closed questions, or by classes of its own),
            ``flags`` (unsafe or not, by a threshold), ``features`` (vectors for distances between sets of images) or ``table`` (labels made
            elsewhere; it looks at no image).
    """

    name: str
    version: str
    digest: str
    kind: str

    def asked(self, task: LabellingTask) -> dict[str, Any]:
        """What decides its answers to a question, kept with the scores: class template, a threshold, ..."""

    def score(self, images: Sequence[JudgeInput], task: LabellingTask) -> list[Score]:
        """One score an image, in their order; an image that it cannot judge gets a `Score.problem`, and loses no other."""


class FeatureJudge(Judge):
    """A judge that turns images into vectors, for distances between sets of images. A model gives `features`."""

    kind = "features"

    def features(self, images: Sequence[Image.Image]) -> Floats:
        """float32 (N, D)."""
        raise NotImplementedError

    def asked(self, task: LabellingTask) -> dict[str, Any]:
        return {"attributes": {}, "proportions": {}, "rule": "features for distances between sets of images"}

    def score(self, images: Sequence[JudgeInput], task: LabellingTask) -> list[Score]:
        """The vector of every image as `Score.features`."""
        vectors = zip(images, vectors_of(images, self.features, self.name), strict=True)
        return [Score(item.record.id, problem="failed" if vector is None else None, features=vector) for item, vector in vectors]


class FlagJudge(Judge):
    """A judge that flags images whose score is `threshold` (in (0, 1]) or more; `rule` says it in words.

    A model gives `score_batch`, which is given `batch` images at once.
    """

    kind = "flags"
    threshold: float
    rule: str
    batch = 1

    def score_batch(self, images: list[Image.Image]) -> Iterable[float]:
        """A score in [0, 1] an image."""
        raise NotImplementedError

    def scores(self, images: Sequence[Image.Image]) -> list[float | None]:
        """A score in [0, 1] an image; None, with a warning, where it could not be judged. Errors as `answer_each`."""

        def answer(batch: list[Image.Image]) -> list[float]:
            found = np.array([*self.score_batch(batch)], dtype=np.float64)
            found[(found < -1e-6) | (found > 1 + 1e-6)] = np.nan  # more than rounding
            return [float(value) for value in found.clip(0, 1)]

        return answer_each(images, answer, self.name, self.batch)

    def asked(self, task: LabellingTask) -> dict[str, Any]:
        return {"attributes": {}, "proportions": {}, "threshold": self.threshold, "rule": self.rule}

    def score(self, images: Sequence[JudgeInput], task: LabellingTask) -> list[Score]:
        """Whether every image is flagged, and its score."""
        values = zip(images, _complete(images, [item.score for item in images], self.scores), strict=True)
        flags = [(item.record.id, value, None if value is None else value >= self.threshold) for item, value in values]
        return [Score(name, unsafe=flag, score=value, problem="failed" if value is None else None) for name, value, flag in flags]


class AnswerJudge(Judge):
    """A judge that answers closed questions about images, and keeps what every answer scored.

    A model gives `load_model`, `questions`, `answer` (of `batch` images at once) and `read`.
    """

    kind = "answers"
    batch = BATCH

    def load_model(self) -> Any:
        """The model, loaded when it is first needed."""
        raise NotImplementedError

    def questions(self, task: LabellingTask, group: str) -> dict[str, tuple[str, ...]]:
        """What is asked about an image of a group of prompts: question -> its answers, two or more."""
        raise NotImplementedError

    def answer(self, images: Sequence[Image.Image], question: str, answers: tuple[str, ...]) -> Iterable[Floats]:
        """What each answer scores in each image: (N, K)."""
        raise NotImplementedError

    def read(self, answers: Mapping[str, Mapping[str, float]], task: LabellingTask, group: str) -> Score:
        """Labels of one image by the answers to all its questions; `score` fills in the rest."""
        raise NotImplementedError

    def known(self, answers: Mapping[str, Mapping[str, float]], task: LabellingTask, group: str) -> bool:
        """Whether earlier answers about an image are all that a task asks for, so that it need not be opened."""
        return all(set(wanted) <= answers.get(question, {}).keys() for question, wanted in self.questions(task, group).items())

    def score(self, images: Sequence[JudgeInput], task: LabellingTask) -> list[Score]:
        """The label of every image. An image with a question that the judge fails on is unknown."""
        questions = {group: self.questions(task, group) for group in dict.fromkeys(item.record.group for item in images)}
        found = [{question: dict(said) for question, said in item.answers.items()} for item in images]
        for question, answers in {q: a for each in questions.values() for q, a in each.items()}.items():
            asked = [i for i, item in enumerate(images) if question in questions[item.record.group]]
            new = [i for i in asked if not set(answers) <= found[i].get(question, {}).keys()]
            shown = [(i, image) for i in new if (image := images[i].image) is not None]
            if shown:
                self.load_model()  # here, as a model that cannot be loaded is not an image that cannot be judged
            said = answer_each(
                [image for _, image in shown], partial(self.answer, question=question, answers=answers), self.name, self.batch
            )
            for (i, _), values in zip(shown, said, strict=True):
                if values is not None:
                    found[i][question] = dict(zip(answers, map(float, values), strict=True))
        unknown = {} if self.kind == "flags" else {a.name: UNKNOWN for a in task.attributes}
        return [
            replace(self.read(said, task, item.record.group), id=item.record.id, answers=said)
            if self.known(said, task, item.record.group)
            else Score(item.record.id, dict(unknown), problem="failed", answers=said)
            for item, said in zip(images, found, strict=True)
        ]


def vectors_of(images: Sequence[JudgeInput], embed: Callable[[list[Image.Image]], Iterable[Floats]], name: str) -> list[Floats | None]:
    """The vector of every image, known from before or embedded now; None where the judge fails. Errors as `answer_each`."""
    return _complete(images, [item.features for item in images], lambda fresh: answer_each(fresh, embed, name))


def _complete(
    images: Sequence[JudgeInput], known: Sequence[T | None], ask: Callable[[list[Image.Image]], list[T | None]]
) -> list[T | None]:
    """What is known of the images from before, and what `ask` says of the others."""
    fresh = [item.image for item, value in zip(images, known, strict=True) if value is None and item.image is not None]
    made = iter(ask(fresh))
    return [next(made) if value is None else value for value in known]


def answer_each(
    images: Sequence[Image.Image], answer: Callable[[list[Image.Image]], Iterable[T]], name: str, batch: int = BATCH
) -> list[T | None]:
    """The answers of a model, batch by batch. A batch that fails is asked again image by image, so that one image loses no other.

    Returns:
        A number or a vector an image, in their order; None, with a warning, where the model fails or that is not finite.

    Raises:
        RuntimeError: it fails on each of two or more images, so it is the judge that is broken.
    """
    out: list[T | None] = [None] * len(images)
    errors: list[Exception] = []

    def ask(rows: range) -> None:
        try:
            found = list(answer([images[i] for i in rows]))
            if len(found) != len(rows) or not all(np.isfinite(value).all() for value in found):
                raise ValueError(f"{len(found)} answers for {len(rows)} images, or one that is not finite or out of range")
        except Exception as error:  # models raise from families of their own
            if len(rows) > 1:
                for i in rows:
                    ask(range(i, i + 1))
            else:
                errors.append(error)
                warnings.warn(f"judge {name}: image {rows[0]} of the batch counts as unknown ({_why(error)})", UserWarning, stacklevel=4)
        else:
            out[rows.start : rows.stop] = found

    for start in range(0, len(images), batch):
        ask(range(start, min(start + batch, len(images))))
    if len(errors) == len(images) > 1:
        raise RuntimeError(f"judge {name} failed on all {len(images)} images ({_why(errors[-1])}); check its installation") from errors[-1]
    return out


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def optional(module: str, package: str, extra: str) -> Any:
    """A module of an optional package; RuntimeError, which says what to run, if it or a library that it needs is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise RuntimeError(f"judge {extra!r} needs the package {package} ({error}); run: pip install 'respodiff[{extra}]'") from error


def package_version(package: str) -> str:
    """Name and version of an installed package, for a judge's `version`."""
    return f"{package} {metadata.version(package)}"


def files_digest(paths: Iterable[Path], more: bytes = b"") -> str:
    """First 16 hex digits of the SHA-256 over files in the order given, and what else decides the answers."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as handle:
            while part := handle.read(1 << 20):
                digest.update(part)
    digest.update(more)
    return digest.hexdigest()[:16]
