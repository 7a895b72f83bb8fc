"""Provides the run folder: ``run.json`` (the settings), ``manifest.jsonl`` (one `ImageRecord` a line) and ``images/``.

Shards (`respodiff.data.shards`) write a manifest each, such as ``manifest.0-of-2.jsonl``, and readers take them as one. A record holds whatever
was asked for, so that nothing is inferred from file order or file names. It also holds a digest of the settings: what was made with others, or
with settings that were lost, is never taken for part of this run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from respodiff._optional import optional
from respodiff.data.places import check_out, new_file, sync, temporary
from respodiff.data.records import ImageRecord, parse_row
from respodiff.data.shards import WHOLE, Shard, parts_of
from respodiff.data.untrusted import confined, read_json


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file as 64 hex digits."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


ADDED = ("dtype", "device", "pipeline_digest")
"""Settings that folders of earlier versions do not hold; they take those that they are resumed with."""


def settings_digest(settings: Mapping[str, Any]) -> str:
    """First 16 hex digits of the SHA-256 of the settings of a run, as JSON."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _digests(settings: Mapping[str, Any]) -> set[str]:
    """What rows that were made with these settings may say: rows of earlier versions nothing, or not from which pipeline."""
    return {"", settings_digest(settings), settings_digest({k: v for k, v in settings.items() if k != "pipeline_digest"})}


def _json_object(file: Path) -> dict[str, Any] | None:
    try:
        found = read_json(confined(file.parent, file.name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_atomic(path: Path, text: str) -> None:
    """Write ``text`` so that a reader, also after a kill, sees the old file or the new one and never half of one."""
    with new_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


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
        self._settings_file, self._settings_copy = self.path / "run.json", self.path / ".run.json"
        self._made_with = ""  # digest of the settings

    @contextmanager
    def lock(self) -> Iterator[None]:
        """While the block runs, no other process writes this run, or this shard of it; OSError that says which one does.

        ValueError for a folder of something else.
        """
        check_out(self.path, self._is_ours, force=None)
        with self.shard.lock(self._whole):
            for left in self.images.glob(".*.tmp") if self.shard == WHOLE else ():  # by a process that was killed
                left.unlink()
            yield

    def _is_ours(self, _: Path) -> bool:
        """Whether the folder holds settings, also if they were emptied, or rows."""
        files = [file for file in (self._settings_file, self._settings_copy) if file.is_file()]
        return any(not file.stat().st_size or _json_object(file) is not None for file in files) or bool(self.records())

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(f"cannot make run folder {self.path}: {error.strerror}; choose another folder") from error

    def create(self, settings: Mapping[str, Any]) -> RunFolder:
        """Start the run, or check that it was started with the same settings: all that an image depends on.

        A writer of the whole run puts the parts of shards together.

        Raises:
            OSError: the folder cannot be written.
            ValueError: it holds other files, or a run that was made with other settings or by another number of shards.
        """
        check_out(self.path, self._is_ours, force=None)
        wanted = json.loads(json.dumps(settings))  # tuples become lists, as they will after reading back
        present = self._held_settings()
        self._made_with = settings_digest(wanted)
        allowed = _digests(wanted) if present is not None else _digests(wanted) - {""}
        if present is not None:
            present |= {key: wanted[key] for key in ADDED if key in wanted and key not in present}
            if changed := [key for key in sorted(wanted.keys() | present.keys()) if present.get(key) != wanted.get(key)]:
                raise ValueError(
                    f"run folder {self.path} was made with {changed[0]}={present.get(changed[0])!r}, now asked for "
                    f"{changed[0]}={wanted.get(changed[0])!r}: give the old value to resume it, or choose another folder"
                )
        if others := [r.id for r in (self.records() if self.manifests() else ()) if r.settings_digest not in allowed]:
            lost = "" if present is not None else " has lost its run.json and"
            raise ValueError(
                f"run folder {self.path}{lost} holds {others[0]!r}, which was not made with the settings now asked for: "
                "give those that it was made with, or choose another folder"
            )
        self._make(self.path)
        for file in (self._settings_file, self._settings_copy):
            if _json_object(file) != wanted:
                write_atomic(file, json.dumps(wanted, indent=2, sort_keys=True) + "\n")
        self._make(self.images)
        return self._begin_part()

    def put_together(self) -> None:
        """Put the parts that shards have written into one manifest; OSError if one of them still writes."""
        if parts_of(self._whole):
            with self.lock():
                self._begin_part()

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
        """The settings that the run was created with; ValueError if they are lost."""
        if (found := self._held_settings()) is not None:
            return found
        if self.manifests() or self._settings_file.exists():
            raise ValueError(f"run.json of {self.path} is lost or damaged: repeat the command that made this run, which restores it")
        raise ValueError(f"{self.path} is not a run folder (it has no run.json): give the folder of a finished run")

    def _held_settings(self) -> dict[str, Any] | None:
        """What run.json holds; if it is lost, what its copy holds, where every row was made with that."""
        found = _json_object(self._settings_file)
        if found is None and self.manifests() and (copy := _json_object(self._settings_copy)) is not None:
            told = {r.settings_digest for r in self.records()}
            found = copy if told and told <= _digests(copy) - {""} else None
        return found

    def add(self, record: ImageRecord, image: Image.Image | Path) -> ImageRecord:
        """As `add_all`, for one image."""
        return self.add_all([(record, image)])[0]

    def add_all(self, images: Sequence[tuple[ImageRecord, Image.Image | Path]]) -> list[ImageRecord]:
        """Store images, and their lines once the disk holds them: a line in the manifest means that the image is complete.

        A path is of a file that is copied as it is, whose size in pixels its record says. Gives the records with ``file``, size and digests as stored.
        """
        made_with = self._made_with or settings_digest(self.settings())
        try:
            done = [dataclasses.replace(self._store(record, image), settings_digest=made_with) for record, image in images]
            if not self._settings_file.exists():  # and made anew by somebody else
                raise FileNotFoundError
            sync(self.images)
            self._mend_manifest()
            with self.manifest.open("a", encoding="utf-8") as handle:
                handle.writelines(json.dumps(dataclasses.asdict(record), ensure_ascii=False) + "\n" for record in done)
            sync(self.manifest, self.path)
        except OSError as error:
            reason = error.strerror or error if self._settings_file.exists() else "it was deleted or moved meanwhile; repeat the command"
            raise OSError(f"cannot write to run folder {self.path}: {reason}") from error
        return done

    def _store(self, record: ImageRecord, image: Image.Image | Path) -> ImageRecord:
        path = self.images / (record.id + (image.suffix.lower() if isinstance(image, Path) else ".png"))
        partial = temporary(path)
        try:
            if isinstance(image, Path):
                shutil.copyfile(image, partial)
            else:
                image.save(partial, format="PNG")
                record = dataclasses.replace(record, width=image.width, height=image.height)
            sync(partial)
            digest = file_digest(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return dataclasses.replace(record, file=f"images/{path.name}", digest=digest)

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
                read_json(last)
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
                if dataclasses.replace(record, settings_digest="") != dataclasses.replace(earlier, settings_digest=""):
                    problems.append(f"{place} says {record.id!r} again, unlike {before}: {place} counts")
                rows[record.id] = (place, record)
        problems += self._missing_shards()
        if broken and not rows:
            raise ValueError(broken)
        records = [record for _, record in rows.values()]
        found = _json_object(self._settings_file)
        if others := [r.id for r in records if found and r.settings_digest not in _digests(found)]:
            problems.append(f"{len(others)} images were made with other settings than run.json says, first {others[0]!r}")
        return records, problems

    def _missing_shards(self) -> list[str]:
        """A line for shards that have not started, while others have."""
        there = parts_of(self._whole)
        count = next(iter(there)).count if there else 0
        if not (n := count - len(there)):
            return []
        first = ", ".join(str(i) for i in islice((i for i in range(count) if Shard(i, count) not in there), 8))
        return [f"{n} of {count} shards are missing ({first}{', ...' if n > 8 else ''}): their images are in no number; generate them"]

    def to_pandas(self) -> Any:
        """A DataFrame with one row an image, in manifest order, of the columns of `ImageRecord.row`; absent values are None.

        `respodiff.evaluation.scored_run.ScoredRun.to_pandas` adds what judges perceive. RuntimeError without pandas.
        """
        rows = [record.row() for record in self.records()]
        return optional("pandas", "to_pandas", "data").DataFrame(rows)

    def done(self, prompts: Container[str] | None = None, records: Sequence[ImageRecord] | None = None) -> set[str]:
        """Ids of finished images, of all prompts or those of some ids: those with a manifest line and the image file that it tells of.

        ``records`` are those of `read`, where they have just been read.
        """
        rows = self.records() if records is None else records
        return {r.id for r in rows if (prompts is None or r.prompt_id in prompts) and self._is_whole(r)}

    def _is_whole(self, record: ImageRecord) -> bool:
        """Whether the image file is as it was stored: not lost, cut, emptied or changed."""
        try:
            return file_digest(confined(self.path, record.file)) == record.digest
        except (OSError, ValueError):
            return False
