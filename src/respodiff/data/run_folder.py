"""Provides the run folder: ``run.json`` (the settings), ``manifest.jsonl`` (one `ImageRecord` a line) and ``images/``.

A record holds whatever was asked for, so that nothing is inferred from file order or file names.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from respodiff.data.records import ImageRecord, parse_row
from respodiff.data.untrusted import confined


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file as 64 hex digits."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_atomic(path: Path, text: str) -> None:
    """Write ``text`` so that a reader, also after a kill, sees the old file or the new one and never half of one."""
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

    def create(self, settings: Mapping[str, Any]) -> RunFolder:
        """Start the run, or check that it was started with the same settings: all that an image depends on.

        Raises:
            OSError: the folder cannot be written.
            ValueError: it holds a run that was made with other settings.
        """
        wanted = json.loads(json.dumps(settings))  # tuples become lists, as they will after reading back
        if self._settings_file.exists():
            present = self.settings()
            if changed := [key for key in sorted(wanted.keys() | present.keys()) if present.get(key) != wanted.get(key)]:
                raise ValueError(
                    f"run folder {self.path} was made with {changed[0]}={present.get(changed[0])!r}, now asked for "
                    f"{changed[0]}={wanted.get(changed[0])!r}: give the old value to resume it, or choose another folder"
                )
            return self
        try:
            self.images.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"cannot make run folder {self.path}: {error.strerror}; choose another folder") from error
        write_atomic(self._settings_file, json.dumps(wanted, indent=2, sort_keys=True) + "\n")
        return self

    def settings(self) -> dict[str, Any]:
        """The settings that the run was created with."""
        if not self._settings_file.is_file():
            raise ValueError(f"{self.path} is not a run folder (it has no run.json): give the folder of a finished run")
        try:
            return dict(json.loads(self._settings_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"cannot read {self._settings_file}: {error}; restore it or start a new run") from error

    def add(self, record: ImageRecord, image: Image.Image) -> ImageRecord:
        """Store one image, then its line: a line in the manifest means that the image is complete.

        Gives the record with ``file``, ``width``, ``height`` and ``digest`` as stored.
        """
        return self._store(record, f"{record.id}.png", image.size, lambda partial: image.save(partial, format="PNG"))

    def adopt(self, record: ImageRecord, file: Path, size: tuple[int, int]) -> ImageRecord:
        """As `add`, for a copy of an image file as it is; ``size`` is (width, height) in pixels, (0, 0) if unreadable."""
        return self._store(record, f"{record.id}{file.suffix.lower()}", size, lambda partial: shutil.copyfile(file, partial))

    def _store(self, record: ImageRecord, name: str, size: tuple[int, int], save: Callable[[Path], object]) -> ImageRecord:
        target = self.images / name
        partial = target.with_name(target.name + ".partial")
        try:
            save(partial)
            partial.replace(target)
            done = dataclasses.replace(record, file=f"images/{name}", width=size[0], height=size[1], digest=file_digest(target))
            self._mend_manifest()
            with self.manifest.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(dataclasses.asdict(done), ensure_ascii=False) + "\n")
        except OSError as error:
            raise OSError(f"cannot write to run folder {self.path}: {error.strerror or error}") from error
        return done

    def _mend_manifest(self) -> None:
        """Drop the half line that a kill left behind; the next line would be glued to it otherwise."""
        with self.manifest.open("a+b") as handle:
            size = handle.tell()
            handle.seek(max(0, size - 1))
            if not size or handle.read(1) == b"\n":
                return
            handle.seek(0)
            *_, last = handle.read().rpartition(b"\n")
            try:
                json.loads(last)
                handle.write(b"\n")  # only the line end was lost
            except ValueError:
                handle.truncate(size - len(last))

    def records(self) -> list[ImageRecord]:
        """The rows of `read`."""
        return self.read()[0]

    def read(self) -> tuple[list[ImageRecord], list[str]]:
        """All rows in manifest order, and one line for each problem.

        A line that does not parse is left out. Of several rows with one id the last counts, at the place of the first. Equal rows are no problem.

        Raises:
            FileNotFoundError: the manifest is no regular file.
            ValueError: the manifest has lines, but none of them can be read (a lone line cut off by a kill is no such case).
        """
        if not self.manifest.exists():
            self.settings()  # says so if this is no run folder
            return [], []
        lines = confined(self.path, self.manifest.name).read_bytes().split(b"\n")
        rows: dict[str, tuple[int, ImageRecord]] = {}
        problems: list[str] = []
        broken = ""
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = parse_row(line)
            except (ValueError, TypeError) as error:
                if number == len(lines):  # no line end after it
                    problems.append(f"line {number} was cut off: left out; resume the run to generate its image")
                else:
                    broken = broken or f"{self.manifest}, line {number} is broken ({error}): repair or delete it"
                    problems.append(f"line {number} is broken ({error}): left out; delete it and resume the run to generate its image")
                continue
            before, earlier = rows.get(record.id, (number, record))
            if record != earlier:
                problems.append(f"line {number} says {record.id!r} again, unlike line {before}: line {number} counts")
            rows[record.id] = (number, record)
        if broken and not rows:
            raise ValueError(broken)
        return [record for _, record in rows.values()], problems

    def done(self) -> set[str]:
        """Ids of finished images: those with a manifest line and an image file."""
        return {record.id for record in self.records() if self._holds(record)}

    def _holds(self, record: ImageRecord) -> bool:
        try:
            return bool(confined(self.path, record.file))
        except (OSError, ValueError):
            return False
