"""What judges say of the images of a run folder, kept beside its manifest.

For each judge a run folder holds three files under ``scores/``, all named after the judge and the digest of its weights:
``NAME.json`` says who judged and what was asked, ``NAME.jsonl`` holds one `Score` an image, and ``NAME.safetensors`` the image
vectors of a judge that has them, keyed by the digest of the image file. Vectors are computed once: later questions need no image.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from respodiff.data.run_folder import ImageRecord, RunFolder, file_digest, write_atomic

Vectors = NDArray[np.float32]

UNKNOWN = "unknown"
SLIMMEST = 50


@dataclass(frozen=True)
class Score:
    """What one judge perceives in one image; whatever it was not asked, or could not tell, is None.

    Attributes:
        labels: attribute -> perceived concept, or ``unknown``.
        subject: the subject that was found among all subjects; subject_kept says whether it is the one asked for.
        unsafe: whether the image is flagged. score: of a judge that flags by a threshold, in [0, 1].
        alignment: 100 x cosine of the image and its own prompt.
        problem: ``missing``, ``outside`` (of the run folder), ``unreadable``, ``changed`` (not the file that the manifest describes),
            ``failed`` (the judge broke down on it) or ``unlisted`` (a table of labels has no row for it), else None.
        digest: of the image that was judged: a score counts for that image alone.
    """

    id: str
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    subject: str | None = None
    subject_correct: bool | None = None
    unsafe: bool | None = None
    score: float | None = None
    alignment: float | None = None
    problem: str | None = None
    judge: str = ""
    judge_digest: str = ""
    digest: str = ""


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


class ScoreFiles:
    """The files of one judge in one run folder."""

    def __init__(self, folder: RunFolder, key: str) -> None:
        self.folder, self.key = folder, key
        self.base = folder.path / "scores"
        self._vectors_file = self.base / f"{key}.safetensors"
        self._progress_file = self.base / f"{key}.progress"

    def write(self, header: dict[str, Any], scores: Sequence[Score]) -> None:
        """Replace what the judge said of this run before."""
        try:
            self.base.mkdir(exist_ok=True)
        except OSError as error:
            raise OSError(f"cannot write scores to {self.folder.path}: {error.strerror}; judge a copy that you may write to") from error
        write_atomic(self.base / f"{self.key}.jsonl", "".join(json.dumps(dataclasses.asdict(s)) + "\n" for s in scores))
        write_atomic(self.base / f"{self.key}.json", json.dumps(header, indent=1) + "\n")
        self._progress_file.unlink(missing_ok=True)

    def header(self) -> dict[str, Any]:
        """Who judged, and what was asked; ValueError for a file that does not say it."""
        path = self.base / f"{self.key}.json"
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if {type(found[key]) for key in ("judge", "digest", "version", "kind")} != {str} or not isinstance(found["attributes"], dict):
                raise ValueError("judge, digest, version and kind must be texts, attributes an object")
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"scores {path} cannot be read ({error}): run 'respodiff evaluate {self.folder.path}' again") from error
        return found

    def held_scores(self) -> dict[str, float]:
        """Digest of an image -> the number that a judge gave it before, also in a run that was cut off."""
        out: dict[str, float] = {}
        for path in (self.base / f"{self.key}.jsonl", self._progress_file):
            for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
                try:
                    row = json.loads(line)
                    if row["score"] is not None and row["digest"]:
                        out[row["digest"]] = float(row["score"])
                except (ValueError, TypeError, KeyError):  # cut off, or of an older version: judged anew
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
            raise ValueError(f"scores {path} cannot be read ({error}): run 'respodiff evaluate {self.folder.path}' again") from error

    def vectors(self) -> dict[str, Vectors]:
        """Digest of an image file -> its unit vector; empty if there are none (a broken cache is made anew)."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._vectors_file, framework="numpy") as file:
                digests, table = json.loads((file.metadata() or {})["digests"]), file.get_tensor("vectors")
        except (OSError, SafetensorError, KeyError, ValueError):
            return {}
        return dict(zip(digests, table, strict=False))

    def write_vectors(self, vectors: dict[str, Vectors]) -> None:
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
