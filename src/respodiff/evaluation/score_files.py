"""Reads and writes the scores of judges in a run folder.

For each judge it holds three files under ``scores/``, all named after the judge and the digest of its weights:
``NAME.json`` says who judged and what was asked, ``NAME.jsonl`` holds one `Score` an image, and ``NAME.safetensors`` the image
vectors of a judge that has them, keyed by the digest of the image file. Vectors are computed once: later questions need no image.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from respodiff.data.records import ImageRecord
from respodiff.data.run_folder import RunFolder, file_digest, write_atomic
from respodiff.evaluation.judges.base import Score
from respodiff.evaluation.judges.texts import Floats

V = TypeVar("V")
SLIMMEST = 50


def short_name(name: str) -> str:
    """A judge's name without the way to its folder or file, which differs between machines.

    >>> short_name("clip:models/ViT-B-32"), short_name("embedded")
    ('clip:ViT-B-32', 'embedded')
    """
    kind, _, rest = name.rpartition(":")
    return ":".join(part for part in (kind, Path(rest).name or rest) if part)


def key_of(name: str, digest: str) -> str:
    """Name of a judge's files.

    >>> key_of("clip:models/ViT-B-32", "0123456789abcdef")
    'clip-ViT-B-32-01234567'
    """
    return re.sub(r"[^A-Za-z0-9-]+", "-", short_name(name)).strip("-")[:60] + "-" + digest[:8]


@dataclass(frozen=True)
class ImageFile:
    """An image file as found: its digest, or in a word why it cannot be judged."""

    path: Path
    digest: str
    problem: str | None


def find(folder: RunFolder, record: ImageRecord) -> ImageFile:
    """The file of one record; a file other than the manifest describes is a problem, not another image."""
    path = confined(folder.path, record.file)
    if path is None:
        return ImageFile(folder.path, "", "outside")
    if not path.is_file():
        return ImageFile(path, "", "missing")
    digest = file_digest(path)
    if not record.digest or digest == record.digest:
        return ImageFile(path, digest, None)
    return ImageFile(path, digest, "unreadable" if open_image(path) is None else "changed")


def confined(folder: Path, file: str) -> Path | None:
    """The path of a record's file, or None if it leads out of the run folder: a manifest may come from anywhere."""
    path = folder / file
    return path if path.resolve().is_relative_to(folder.resolve()) else None


def open_image(path: Path) -> Image.Image | None:
    """The image as RGB, or None for a file that is none, or a strip no judge could look at (sides of more than 50 to 1)."""
    try:
        with Image.open(path) as file:
            return None if max(file.size) > SLIMMEST * min(file.size) else file.convert("RGB")
    except Exception:  # Pillow reports broken files in a dozen ways, NotImplementedError and MemoryError among them
        return None


@dataclass(frozen=True)
class ScoreHeader:
    """Who judged a run, and what was asked.

    Attributes:
        judge: Name of the judge. digest: Of its weights. version: Of its library. kind: See `judges.Judge`.
        attributes: Attribute -> concept -> target prompt.
        proportions: Attribute -> concept -> wanted share, where the run or the attribute says any.
        group_proportions: Attribute -> group of prompts -> concept -> wanted share.
        class_template, min_margin, subjects: See `judges.LabellingTask`; None for judges that compare with no text.
        threshold, rule: Of a judge that flags images.
        fingerprint: Digest of the task and of all images; equal fingerprints give equal scores.
    """

    judge: str
    digest: str
    version: str
    kind: str
    attributes: dict[str, dict[str, str]] = field(default_factory=dict)
    proportions: dict[str, dict[str, float]] = field(default_factory=dict)
    group_proportions: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    class_template: str | None = None
    min_margin: float | None = None
    subjects: list[str] | None = None
    threshold: float | None = None
    rule: str | None = None
    fingerprint: str | None = field(default=None, compare=False)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> ScoreHeader:
        """Read a header; ValueError, TypeError or KeyError for one that does not say who judged what."""
        if {type(found[key]) for key in ("judge", "digest", "version", "kind")} != {str} or not isinstance(found["attributes"], dict):
            raise ValueError("judge, digest, version and kind must be texts, attributes an object")
        names = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in found.items() if key in names})

    @property
    def asked(self) -> tuple[str, float]:
        """Class prompt template and least margin of the labels."""
        return self.class_template or "{concept}", self.min_margin or 0.0

    def only(self, names: Sequence[str]) -> ScoreHeader:
        """The header as if these attributes alone had been asked for."""

        def kept(rows: dict[str, V]) -> dict[str, V]:
            return {name: value for name, value in rows.items() if name in names}

        attributes, proportions, of_groups = kept(self.attributes), kept(self.proportions), kept(self.group_proportions)
        return replace(self, attributes=attributes, proportions=proportions, group_proportions=of_groups)


class ScoreFiles:
    """The files of one judge in one run folder."""

    def __init__(self, folder: RunFolder, key: str) -> None:
        self.folder, self.key = folder, key
        self.base = folder.path / "scores"
        self._vectors_file = self.base / f"{key}.safetensors"
        self._progress_file = self.base / f"{key}.progress"

    def write(self, header: ScoreHeader, scores: Sequence[Score]) -> None:
        """Replace what the judge said of this run before."""
        try:
            self.base.mkdir(exist_ok=True)
        except OSError as error:
            raise OSError(f"cannot write scores to {self.folder.path}: {error.strerror}; judge a copy that you may write to") from error
        write_atomic(
            self.base / f"{self.key}.jsonl",
            "".join(json.dumps({k: v for k, v in vars(s).items() if k != "features"}) + "\n" for s in scores),
        )
        write_atomic(
            self.base / f"{self.key}.json",
            json.dumps({key: value for key, value in vars(header).items() if value is not None}, indent=1) + "\n",
        )
        self._progress_file.unlink(missing_ok=True)

    def header(self) -> ScoreHeader:
        """Who judged, and what was asked; ValueError for a file that does not say it."""
        path = self.base / f"{self.key}.json"
        try:
            return ScoreHeader.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise self._unreadable(path, error) from error

    def _unreadable(self, path: Path, error: Exception) -> ValueError:
        return ValueError(f"scores {path} cannot be read ({error}): run 'respodiff evaluate {self.folder.path}' again")

    def held_scores(self) -> dict[str, float]:
        """Digest of an image -> the number that a judge gave it before, also in a run that was cut off."""
        out: dict[str, float] = {}
        for path in (self.base / f"{self.key}.jsonl", self._progress_file):
            for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
                try:
                    row = json.loads(line)
                    if row["score"] is not None and row["digest"]:
                        out[row["digest"]] = float(row["score"])
                except (ValueError, TypeError, KeyError):  # cut off by a kill: judged anew
                    continue
        return out

    def note_scores(self, scores: dict[str, float]) -> None:
        """Keep what was judged so far, so that a kill loses a batch and no more."""
        self.base.mkdir(exist_ok=True)
        with self._progress_file.open("a", encoding="utf-8") as handle:
            handle.writelines(json.dumps({"digest": digest, "score": score}) + "\n" for digest, score in scores.items())

    def scores(self) -> dict[str, Score]:
        """Image id -> score, as last written."""
        path = self.base / f"{self.key}.jsonl"
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            return {row["id"]: Score(**row) for row in rows}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise self._unreadable(path, error) from error

    def vectors(self) -> dict[str, Floats]:
        """Digest of an image file -> its unit vector; empty if there are none (a broken cache is made anew)."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._vectors_file, framework="numpy") as file:
                digests, table = json.loads((file.metadata() or {})["digests"]), file.get_tensor("vectors")
        except (OSError, SafetensorError, KeyError, ValueError):
            return {}
        return dict(zip(digests, table, strict=False))

    def write_vectors(self, vectors: dict[str, Floats]) -> None:
        from safetensors.numpy import save_file

        if not vectors:
            return
        self.base.mkdir(exist_ok=True)
        partial = self._vectors_file.with_name(self._vectors_file.name + ".partial")
        save_file({"vectors": np.stack(list(vectors.values()))}, partial, metadata={"digests": json.dumps(list(vectors))})
        partial.replace(self._vectors_file)


def scored_by(folder: RunFolder) -> list[str]:
    """Keys of the judges that have judged a run folder, in name order."""
    return sorted(path.stem for path in (folder.path / "scores").glob("*.json") if path.with_suffix(".jsonl").is_file())
