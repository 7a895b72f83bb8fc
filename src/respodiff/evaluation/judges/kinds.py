"""Three kinds of judge, by what their model does: compare with texts, flag, or give features.

An image that a model fails on counts as unknown, never as zero, and loses no other image.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from respodiff.concepts.concept import Attribute
from respodiff.evaluation.judges.base import BATCH, UNKNOWN, Judge, JudgeInput, Score
from respodiff.evaluation.judges.texts import LOGIT_SCALE, Floats, LabellingTask, choose, class_texts, image_text

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")


class TextJudge(Judge):
    """A judge that compares images with texts. A model gives `embed_images` and `embed_texts`: unit vectors of one space."""

    kind = "texts"

    def embed_images(self, images: Sequence[Image.Image]) -> Floats:
        """Unit vectors (N, D) of RGB images of any size."""
        raise NotImplementedError

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """Unit vectors (K, D) of texts."""
        raise NotImplementedError

    def asked(self, task: LabellingTask) -> dict[str, Any]:
        return {"class_template": task.class_template, "min_margin": task.min_margin, "subjects": list(task.subjects)}

    def score(self, images: Sequence[JudgeInput], task: LabellingTask) -> list[Score]:
        """Labels, subject, unsafe and alignment of every image, and its vector as `Score.features`."""
        texts = task.prompts or tuple(sorted({item.record.prompt for item in images}))
        prompts = dict(zip(texts, self._vectors(texts), strict=True))
        vectors = _features(images, self.embed_images, self.name)
        return [self._score(item, vector, task, prompts) for item, vector in zip(images, vectors, strict=True)]

    def _score(self, item: JudgeInput, vector: Floats | None, task: LabellingTask, prompts: dict[str, Floats]) -> Score:
        record, words, subjects = item.record, task.vocabulary, task.subjects
        if vector is None:
            return Score(record.id, {a.name: UNKNOWN for a in task.attributes}, problem="failed")
        subject = unsafe = None
        if subjects:
            texts = tuple(words.text(name) if words else image_text(name) for name in subjects)
            subject = subjects[int(np.argmax(self._vectors(texts) @ vector))]
        if words and words.unsafe:
            texts = tuple(image_text(name) for name in (*words.unsafe, *words.safe))
            unsafe = int(np.argmax(self._vectors(texts) @ vector)) < len(words.unsafe)
        return Score(
            id=record.id,
            labels={a.name: self._label(a, record.group, vector, task) for a in task.attributes},
            subject=subject,
            subject_correct=None if record.subject is None else subject == record.subject,
            unsafe=unsafe,
            alignment=LOGIT_SCALE * float(prompts[record.prompt] @ vector),
            features=vector,
        )

    def _label(self, attribute: Attribute, group: str, vector: Floats, task: LabellingTask) -> str:
        texts = tuple(class_texts(attribute.concepts, task.class_template, group if "{group}" in task.class_template else ""))
        logits = LOGIT_SCALE * (self._vectors(texts) @ vector)
        best = int(choose(logits[None], task.min_margin)[0][0])
        return UNKNOWN if best < 0 else attribute.names[best]

    @cached_property
    def _known(self) -> dict[tuple[str, ...], Floats]:
        return {}

    def _vectors(self, texts: tuple[str, ...]) -> Floats:
        """`embed_texts`, once for each list of texts."""
        if texts not in self._known:
            self._known[texts] = self.embed_texts(texts)
        return self._known[texts]


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
        vectors = zip(images, _features(images, self.features, self.name), strict=True)
        return [Score(item.record.id, problem="failed" if vector is None else None, features=vector) for item, vector in vectors]


class FlagJudge(Judge):
    """A judge that flags images whose score is `threshold` (in [0, 1]) or more; `rule` says it in words. A model gives `scores`."""

    threshold: float
    rule: str
    kind = "flags"

    def scores(self, images: Sequence[Image.Image]) -> list[float | None]:
        """One score in [0, 1] an image, None where that image could not be judged."""
        raise NotImplementedError

    def asked(self, task: LabellingTask) -> dict[str, Any]:
        return {"attributes": {}, "proportions": {}, "threshold": self.threshold, "rule": self.rule}

    def score(self, images: Sequence[JudgeInput], task: LabellingTask) -> list[Score]:
        """Whether every image is flagged, and its score; an image that was scored before is not put to the model again."""
        fresh = [item.image for item in images if item.score is None and item.image is not None]
        found = iter(self.scores(fresh) if fresh else [])
        values = [next(found) if item.score is None else item.score for item in images]
        return [
            Score(item.record.id, unsafe=flagged(value, self.threshold), score=value, problem="failed" if value is None else None)
            for item, value in zip(images, values, strict=True)
        ]


def flagged(score: float | None, threshold: float) -> bool | None:
    """Whether a score flags its image; unknown stays unknown."""
    return None if score is None else score >= threshold


def check_threshold(threshold: float) -> float:
    """The threshold; ValueError unless it lies in (0, 1]: at 0 every image would be flagged."""
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; allowed: above 0, up to 1; give the score from which an image is flagged")
    return float(threshold)


def _features(images: Sequence[JudgeInput], embed: Callable[[list[Image.Image]], Floats], name: str) -> list[Floats | None]:
    """The vector of every image: the one known from before, else a new one; None where the judge failed."""
    fresh = [item.image for item in images if item.features is None and item.image is not None]
    found: list[Floats | None] = answer_each(fresh, embed, lambda vector: bool(np.isfinite(vector).all()), name)
    made = iter(found)
    return [next(made) if item.features is None else item.features for item in images]


def score_images(
    images: Sequence[Image.Image], score: Callable[[list[Image.Image]], Iterable[float]], name: str, batch: int = 1
) -> list[float | None]:
    """Scores in [0, 1] in the order of the images; None, with a warning, for an image that could not be judged.

    Args:
        images: of any mode and size. score: scores of a list of RGB images, `batch` at a time. name: of the judge.

    Raises:
        RuntimeError: as `answer_each`.
    """
    found = answer_each(images, score, lambda value: -1e-6 <= value <= 1 + 1e-6, name, batch)
    return [None if value is None else min(max(float(value), 0.0), 1.0) for value in found]


def answer_each(
    images: Sequence[Image.Image],
    answer: Callable[[list[Image.Image]], Iterable[T]],
    valid: Callable[[T], bool],
    name: str,
    batch: int = BATCH,
) -> list[T | None]:
    """The answers of a model, batch by batch. A batch that fails is asked again image by image, so that one image loses no other.

    Returns:
        An answer an image, in their order; None, with a warning, where the model fails or its answer is not valid.

    Raises:
        RuntimeError: it fails on each of two or more readable images, so it is the judge that is broken.
    """
    out: list[T | None] = [None] * len(images)
    rows = [(i, rgb) for i, image in enumerate(images) if (rgb := _rgb(image, name, i)) is not None]
    left = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    errors: list[Exception] = []
    while left:
        part = left.pop(0)
        try:
            found = list(answer([image for _, image in part]))
            if len(found) != len(part) or not all(map(valid, found)):
                raise ValueError(f"{len(found)} answers for {len(part)} images, or one that is not finite or out of range")
        except Exception as error:  # models raise from families of their own
            if len(part) > 1:
                left = [[row] for row in part] + left
            else:
                errors.append(error)
                _warn(name, part[0][0], error)
            continue
        for (i, _), value in zip(part, found, strict=True):
            out[i] = value
    if len(errors) == len(rows) > 1:
        raise RuntimeError(f"judge {name} failed on all {len(rows)} images ({_why(errors[-1])}); check its installation") from errors[-1]
    return out


def _rgb(image: Image.Image, name: str, index: int) -> Image.Image | None:
    try:
        found = image.convert("RGB")
        if not all(found.size):
            raise ValueError("no pixels")
    except Exception as error:  # Pillow's readers raise from many families
        _warn(name, index, error)
        return None
    return found


def _warn(name: str, index: int, error: Exception) -> None:
    warnings.warn(f"judge {name}: image {index} of the batch counts as unknown ({_why(error)})", UserWarning, stacklevel=4)


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
