"""What every judge promises, what it is given and what it answers.

A judge reports what an automatic classifier *perceives* in a generated image, never what a real person is. Its `name`, `version` and
`digest` go into every record, as thresholds and versions change counts by large factors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from respodiff.evaluation.judges.texts import Floats, LabellingTask

if TYPE_CHECKING:
    from PIL import Image

    from respodiff.data.records import ImageRecord

NOTICE = "Labels are what an automatic judge perceives in generated images; they say nothing about real people."
BATCH = 64
EMBEDDED = {"embedded": "judge", "embedded-b": "judge-b"}
"""The shipped judges by name, and their folders: the second has another architecture and seed, so that two can be compared."""
ALLOWED = "'embedded', 'embedded-b', a folder with a CLIP model, or clip:DIR-OR-ID"
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Score:
    """What one judge perceives in one image; whatever it was not asked, or could not tell, is None.

    Attributes:
        labels: attribute -> perceived concept, or ``unknown``.
        subject: the subject that was found among all subjects; subject_kept says whether it is the one asked for.
        unsafe: whether the image is flagged. score: of a judge that flags by a threshold, in [0, 1].
        alignment: 100 x cosine of the image and its own prompt.
        features: (D,) of a judge that embeds images; kept in a file of their own.
        problem: ``missing``, ``outside`` (of the run folder), ``unreadable``, ``changed`` (not the file that the manifest describes),
            ``failed`` (the judge broke down on it) or ``unlisted`` (a table of labels has no row for it), else None.
        digest: of the image that was judged: a score counts for that image alone.
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
    features: Floats | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class JudgeInput:
    """One image as it is put to a judge.

    Attributes:
        record: its prompt, group and subject.
        image: RGB pixels; None where `score` or `features` are known already, and for a judge of kind ``table``.
        score, features: what the same judge found in the same file before, else None.
    """

    record: ImageRecord
    image: Image.Image | None = None
    score: float | None = None
    features: Floats | None = None


@runtime_checkable
class Judge(Protocol):
    """A judge of images. `kinds.TextJudge`, `kinds.FlagJudge` and `kinds.FeatureJudge` implement `score` for three kinds of model.

    Attributes:
        name: the source that it was loaded by, such as ``embedded`` or ``nudenet``.
        version: the library whose version changes its answers, such as ``nudenet 3.4.2``.
        digest: first 16 hex digits of the SHA-256 of its weights.
        kind: ``texts`` (labels by comparing with texts), ``flags`` (unsafe or not, by a threshold), ``features`` (vectors for distances between
            sets of images) or ``table`` (labels made elsewhere; it looks at no image).
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def kind(self) -> str: ...

    def asked(self, task: LabellingTask) -> dict[str, Any]:
        """What decides its answers to a question, kept with the scores: class template, a threshold, ..."""

    def score(self, images: Sequence[JudgeInput], task: LabellingTask) -> list[Score]:
        """One score an image, in their order; an image that it cannot judge gets a `Score.problem`, and loses no other."""


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
