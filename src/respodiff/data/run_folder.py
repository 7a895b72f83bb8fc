"""Provides the run folder: ``run.json`` (the settings), ``manifest.jsonl`` (one `ImageRecord` a line) and ``images/``.

Shards (`respodiff.data.shards`) write a manifest each, such as ``manifest.0-of-2.jsonl``, and readers take them as one. A record holds whatever was asked for, so that nothing is inferred from file order or file names.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from respodiff.data.records import ImageRecord, parse_row
from respodiff.data.shards import WHOLE, Shard, parts_of
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
    """A folder of images with one manifest line each, safe to kill at any moment and to resume.

    Attributes:
        manifest: the file that rows are added to: the shard's own part, if one writes.
    """

    def __init__(self, path: str | Path, shard: Shard = WHOLE) -> None:
        self.path, self.shard = Path(path), shard
        self.images = self.path / "images"
        self._whole = self.path / "manifest.jsonl"
        self.manifest = shard.part(self._whole)
        self._settings_file = self.path / "run.json"

    def create(self, settings: Mapping[str, Any]) -> RunFolder:
        """Start the run, or check that it was started with the same settings: all that an image depends on.

        A writer of the whole run puts the parts of shards together.

        Raises:
            OSError: the folder cannot be written.
            ValueError: it holds a run that was made with other settings, or by another number of shards.
        """
        wanted = json.loads(json.dumps(settings))  # tuples become lists, as they will after reading back
        if self._settings_file.exists():
            present = self.settings()
            if changed := [key for key in sorted(wanted.keys() | present.keys()) if present.get(key) != wanted.get(key)]:
                raise ValueError(
                    f"run folder {self.path} was made with {changed[0]}={present.get(changed[0])!r}, now asked for "
                    f"{changed[0]}={wanted.get(changed[0])!r}: give the old value to resume it, or choose another folder"
                )
            return self._begin_part()
        try:
            self.images.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"cannot make run folder {self.path}: {error.strerror}; choose another folder") from error
        write_atomic(self._settings_file, json.dumps(wanted, indent=2, sort_keys=True) + "\n")
        return self._begin_part()

    def _begin_part(self) -> RunFolder:
        """An empty part tells readers that a shard has started. A writer of the whole run puts all parts into its manifest."""
        parts = parts_of(self._whole)
        if self.shard == WHOLE and parts:
            lines = [line for file in self.manifests() for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
            write_atomic(self._whole, b"".join(lines).decode("utf-8", "replace"))
            for part in parts.values():
                part.unlink()
        elif other := {shard.count for shard in parts} - {self.shard.count}:
            raise ValueError(
                f"run folder {self.path} was begun by {other.pop()} shards, now asked for {self.shard.count}: give the old number, "
                "or finish it without shards"
            )
        elif self.shard != WHOLE:
            self.manifest.touch()
        return self

    def manifests(self) -> list[Path]:
        """The manifest of the whole run and its parts, as far as they exist. ValueError for parts of different numbers of shards."""
        parts = parts_of(self._whole)
        if len(counts := sorted({shard.count for shard in parts})) > 1:
            raise ValueError(
                f"run folder {self.path} has parts of {counts[0]} shards and of {counts[1]}: move those of one of them out of the folder"
            )
        return [confined(self.path, p.name) for p in (self._whole, *parts.values()) if p.exists()]

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
        if not (manifests := self.manifests()):
            self.settings()  # says so if this is no run folder
        rows: dict[str, tuple[str, ImageRecord]] = {}
        problems: list[str] = []
        broken = ""
        for file in manifests:
            of, lines = "" if file.name == self._whole.name else f"{file.name}, ", file.read_bytes().split(b"\n")
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                place = f"{of}line {number}"
                try:
                    record = parse_row(line)
                except (ValueError, TypeError) as error:
                    if number == len(lines):  # no line end after it
                        problems.append(f"{place} was cut off: left out; resume the run to generate its image")
                    else:
                        broken = broken or f"{file}, line {number} is broken ({error}): repair or delete it"
                        problems.append(f"{place} is broken ({error}): left out; delete it and resume the run to generate its image")
                    continue
                before, earlier = rows.get(record.id, (place, record))
                if record != earlier:
                    problems.append(f"{place} says {record.id!r} again, unlike {before}: {place} counts")
                rows[record.id] = (place, record)
        problems += self._missing_shards()
        if broken and not rows:
            raise ValueError(broken)
        return [record for _, record in rows.values()], problems

    def _missing_shards(self) -> list[str]:
        """A line for shards that have not started, while others have."""
        there = parts_of(self._whole)
        count = next(iter(there)).count if there else 0
        if not (n := count - len(there)):
            return []
        first = ", ".join(str(i) for i in islice((i for i in range(count) if Shard(i, count) not in there), 8))
        return [f"{n} of {count} shards are missing ({first}{', ...' if n > 8 else ''}): their images are in no number; generate them"]

    def done(self) -> set[str]:
        """Ids of finished images: those with a manifest line and an image file."""
        return {record.id for record in self.records() if self._holds(record)}

    def _holds(self, record: ImageRecord) -> bool:
        try:
            return bool(confined(self.path, record.file))
        except (OSError, ValueError):
            return False
