"""What every judge promises, and what they share: one broken image never loses a batch and is never a zero.

A judge reports what an automatic judge *perceives* in a generated image, never what a real person is. Its `name`, `version` and `digest`
go into every record, as thresholds and versions change counts by large factors.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

Floats = NDArray[np.float32]
Scores = list[float | None]

NOTICE = "Labels are what an automatic judge perceives in generated images; they say nothing about real people."
BATCH = 64
EMBEDDED = {"embedded": "judge", "embedded-b": "judge-b"}
"""The shipped judges by name, and their folders: the second has another architecture and seed, so that two can be compared."""
ALLOWED = "'embedded', 'embedded-b', a folder with a CLIP model, or clip:DIR-OR-ID"


@runtime_checkable
class Judge(Protocol):
    """Who judged.

    Attributes:
        name: the source that it was loaded by, such as ``embedded`` or ``nudenet``.
        version: the library whose version changes its answers, such as ``nudenet 3.4.2``.
        digest: first 16 hex digits of the SHA-256 of its weights.
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def digest(self) -> str: ...


@runtime_checkable
class FlagJudge(Judge, Protocol):
    """A judge that flags images: those whose score is `threshold` or more.

    Attributes:
        threshold: in [0, 1].
        rule: in words, what is flagged.
    """

    @property
    def threshold(self) -> float: ...
    @property
    def rule(self) -> str: ...

    def scores(self, images: Sequence[Image.Image]) -> Scores:
        """One score in [0, 1] an image, None where that image could not be judged."""


@runtime_checkable
class FeatureJudge(Judge, Protocol):
    """A judge that turns images into vectors, for distances between sets of images."""

    def features(self, images: Sequence[Image.Image]) -> Floats:
        """float32 (N, D)."""


def flagged(score: float | None, threshold: float) -> bool | None:
    """Whether a score flags its image; unknown stays unknown.

    >>> flagged(0.2, 0.2), flagged(0.1, 0.2), flagged(None, 0.2)
    (True, False, None)
    """
    return None if score is None else score >= threshold


def check_threshold(threshold: float) -> float:
    """The threshold, if it lies in (0, 1]: at 0 every image would be flagged.

    Raises:
        ValueError: it does not.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; allowed: above 0, up to 1; give the score from which an image is flagged")
    return float(threshold)


def score_images(
    images: Sequence[Image.Image],
    score: Callable[[list[Image.Image]], Iterable[float]],
    name: str,
    batch: int = 1,
) -> Scores:
    """Scores in [0, 1] in the order of the images; None, with a warning, for an image that could not be judged.

    Args:
        images: images of any mode and size.
        score: scores of a list of RGB images. A batch that it refuses is put to it again one by one.
        name: of the judge, for the warning.
        batch: how many images `score` is given at a time.

    Raises:
        RuntimeError: `score` failed on each of two or more readable images, so it is the judge that is broken.
    """
    out: Scores = [None] * len(images)
    read, errors = 0, []
    for start in range(0, len(images), batch):
        rgb = [(i, image) for i in range(start, min(start + batch, len(images))) if (image := _rgb(images[i], name, i)) is not None]
        read += len(rgb)
        for rows in _split(rgb, score, out):
            for i, image in rows:
                try:
                    out[i] = _checked(list(score([image])), 1)[0]
                except Exception as error:  # detectors raise from families of their own
                    errors.append(error)
                    _warn(name, i, error)
    if len(errors) == read > 1:
        raise RuntimeError(f"judge {name} failed on all {read} images ({_why(errors[-1])}); check its installation") from errors[-1]
    return out


def _split(rgb: list[tuple[int, Image.Image]], score: Callable[..., Iterable[float]], out: Scores) -> list[list[tuple[int, Image.Image]]]:
    """Scores a batch in one go; what has to be put again one by one is assigned back."""
    if len(rgb) < 2:
        return [rgb]
    try:
        found = _checked(list(score([image for _, image in rgb])), len(rgb))
    except Exception:  # said again, image by image, by the caller
        return [rgb]
    for (i, _), value in zip(rgb, found, strict=True):
        out[i] = value
    return []


def _checked(scores: list[float], n: int) -> list[float]:
    values = [float(s) for s in scores]
    if len(values) != n or not all(math.isfinite(v) and -1e-6 <= v <= 1 + 1e-6 for v in values):
        raise ValueError(f"{len(values)} scores for {n} images, or one outside [0, 1]")
    return [min(max(v, 0.0), 1.0) for v in values]


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


def optional(module: str, package: str, extra: str) -> Any:
    """A module of an optional package.

    Raises:
        RuntimeError: it is not installed (or a library that it needs is not); says what to run.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise RuntimeError(
            f"judge {extra!r} needs the package {package}, which cannot be imported ({error}); run: pip install 'respodiff[{extra}]'"
        ) from error


def package_version(package: str) -> str:
    """Name and version of an installed package, for a judge's `version`."""
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} of unknown version"


def files_digest(paths: Iterable[Path], more: bytes = b"") -> str:
    """First 16 hex digits of the SHA-256 over files in the order given, and what else decides the answers."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    digest.update(more)
    return digest.hexdigest()[:16]


def no_rest(source: str, name: str) -> None:
    """ValueError if more follows the name of a judge that comes in one form only."""
    if source != name:
        raise ValueError(f"judge is {source!r}; allowed: {name!r} with nothing after it, as its weights come with its package")
