"""The rows that travel between the tools: a prompt, an image, and the folder that holds a run.

A run folder is plain: ``run.json`` (the settings), ``manifest.jsonl`` (one `ImageRecord` a line) and ``images/``.
Whatever was asked for travels inside the row, so nothing is ever inferred from file order or file names.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Prompt:
    """One text to draw.

    Attributes:
        id: stable name, such as ``occupations/doctor``.
        text: what the text-to-image model is given.
        suite: name of the suite it belongs to.
        group: what statistics are grouped by (an occupation, or "violence").
        subject: picture name that a judge should find in the image, or None when there is none to find.
        categories: labels of a safety suite; one prompt may carry several ("hate", "violence").
        seed: the data set's own seed for this prompt, or None. guidance: its own guidance scale, or None.
        height, width: the size in pixels that the data set asks for, or None for the model's own.
    """

    id: str
    text: str
    suite: str = ""
    group: str = ""
    subject: str | None = None
    categories: tuple[str, ...] = ()
    seed: int | None = None
    guidance: float | None = None
    height: int | None = None
    width: int | None = None


@dataclass(frozen=True)
class ImageRecord:
    """One generated image and everything that was asked for.

    Attributes:
        concepts: attribute name -> name of the concept asked for; empty when none was.
        modules: digests of the concept modules that were applied.
        strength: factor on the drawn modules (1.0 is as trained). safety_strength: on the safety modules.
        categories: as in `Prompt`.
        seed: seed of the whole run; the noise itself comes from `noise_seed`. own_seed: the data set's own seed where that was used.
        guidance: classifier-free guidance scale.
        digest: SHA-256 of the image file, filled in by `RunFolder.add`.
    """

    id: str
    file: str
    prompt: str
    prompt_id: str
    suite: str = ""
    group: str = ""
    subject: str | None = None
    categories: tuple[str, ...] = ()
    method: str = ""
    concepts: dict[str, str] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)
    strength: float = 1.0
    safety_strength: float = 1.0
    seed: int = 0
    own_seed: int | None = None
    repeat: int = 0
    guidance: float = 0.0
    steps: int = 0
    scheduler: str = ""
    model: str = ""
    model_digest: str = ""
    width: int = 0
    height: int = 0
    digest: str = ""


def image_id(prompt_id: str, repeat: int) -> str:
    """File-system-safe id of the ``repeat``-th image of a prompt; distinct prompts never collide.

    >>> image_id("occupations/doctor", 3)
    'occupations_doctor-0003'
    """
    if repeat < 0:
        raise ValueError(f"repeat must be 0 or more, got {repeat}: count the images of one prompt from 0")
    safe = re.sub(r"[^a-z0-9-]+", "_", prompt_id)[:80]
    if not re.fullmatch(r"[a-z0-9-]{1,40}/[a-z0-9-]{1,39}", prompt_id):  # two such ids could meet: tell them apart
        safe += "-" + hashlib.blake2b(prompt_id.encode(), digest_size=4).hexdigest()
    return f"{safe}-{repeat:04d}"


def noise_seed(run_seed: int, prompt_id: str, repeat: int) -> int:
    """Seed in [0, 2**63) of one image's noise, from these three alone.

    Batch, rank, concept and method play no part: methods are compared on the same noise, and a run can be split.
    """
    key = json.dumps([run_seed, prompt_id, repeat]).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file as 64 hex digits."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_atomic(path: Path, text: str) -> None:
    """Write ``text`` so that a reader, or a kill, sees the old file or the new one and never half of one."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}; choose a folder that you may write to") from error


class RunFolder:
    """A folder of images with one manifest line each, safe to kill at any moment and to resume."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.images = self.path / "images"
        self.manifest = self.path / "manifest.jsonl"
        self._settings_file = self.path / "run.json"

    def create(self, settings: dict[str, Any]) -> RunFolder:
        """Start the run, or check that it was started with the same settings.

        Raises:
            OSError: the folder cannot be written.
            ValueError: it holds a run that was made with other settings.
        """
        wanted = json.loads(json.dumps(settings))  # tuples become lists, as they will after reading back
        if self._settings_file.exists():
            self._require_same(wanted)
            return self
        try:
            self.images.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"cannot make run folder {self.path}: {error.strerror}; choose another folder") from error
        write_atomic(self._settings_file, json.dumps(wanted, indent=2, sort_keys=True) + "\n")
        return self

    def _require_same(self, wanted: dict[str, Any]) -> None:
        present = self.settings()
        for key in sorted(wanted.keys() | present.keys()):
            old, new = present.get(key), wanted.get(key)
            if old != new:
                raise ValueError(
                    f"run folder {self.path} was made with {key}={old!r}, now asked for {key}={new!r}: "
                    "give the old value to resume it, or choose another folder"
                )

    def settings(self) -> dict[str, Any]:
        """The settings that the run was created with."""
        self._require_run()
        try:
            found = json.loads(self._settings_file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read {self._settings_file}: {error}; restore it or start a new run") from error
        if not isinstance(found, dict):
            raise ValueError(f"{self._settings_file} must hold one JSON object, got {type(found).__name__}")
        return found

    def _require_run(self) -> None:
        if not self._settings_file.is_file():
            raise ValueError(f"{self.path} is not a run folder (it has no run.json): give the folder of a finished run")

    def add(self, record: ImageRecord, image: Image.Image) -> ImageRecord:
        """Store one image, then its line: a line in the manifest means that the image is complete.

        Returns:
            The record with ``file``, ``width``, ``height`` and ``digest`` as stored.
        """
        self._require_run()
        target = self.images / f"{record.id}.png"
        partial = target.with_name(target.name + ".partial")
        try:
            image.save(partial, format="PNG")
            partial.replace(target)
            done = dataclasses.replace(
                record,
                file=f"images/{target.name}",
                width=image.width,
                height=image.height,
                digest=file_digest(target),
            )
            self._mend_manifest()
            with self.manifest.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(dataclasses.asdict(done), ensure_ascii=False) + "\n")
        except OSError as error:
            raise OSError(f"cannot write to run folder {self.path}: {error.strerror or error}") from error
        return done

    def _mend_manifest(self) -> None:
        """Drop the half line that a kill left behind; the next line would be glued to it otherwise."""
        if not self.manifest.exists() or self.manifest.stat().st_size == 0:
            return
        with self.manifest.open("r+b") as handle:
            handle.seek(-1, os.SEEK_END)
            if handle.read(1) == b"\n":
                return
            handle.seek(0)
            content = handle.read()
            start = content.rfind(b"\n") + 1
            try:
                json.loads(content[start:])
                handle.write(b"\n")  # only the line end was lost
            except ValueError:
                handle.truncate(start)

    def records(self) -> list[ImageRecord]:
        """All rows in manifest order; of several rows with one id the last counts.

        A truncated last line is left out, keys of newer versions are ignored.

        Raises:
            ValueError: any other line that does not parse, with its number.
        """
        self._require_run()
        if not self.manifest.exists():
            return []
        lines = self.manifest.read_bytes().split(b"\n")
        rows: dict[str, ImageRecord] = {}
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = _parse(line)
            except (ValueError, TypeError) as error:
                if number == len(lines):  # no line end after it: cut off by a kill
                    continue
                raise ValueError(f"{self.manifest}, line {number} is broken ({error}): repair or delete it") from error
            rows[record.id] = record
        return list(rows.values())

    def done(self) -> set[str]:
        """Ids that need not be drawn again: those with a manifest line and an image file."""
        return {record.id for record in self.records() if (self.path / record.file).is_file()}


def _parse(line: bytes) -> ImageRecord:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got {type(row).__name__}")
    if not isinstance(row.get("concepts", {}), dict):
        raise ValueError(f"concepts must be an object, got {row['concepts']!r}")
    if not isinstance(row.get("categories", []), list):
        raise ValueError(f"categories must be a list, got {row['categories']!r}")
    row["categories"] = tuple(row.get("categories", ()))
    known = {f.name for f in dataclasses.fields(ImageRecord)}
    return ImageRecord(**{key: value for key, value in row.items() if key in known})
