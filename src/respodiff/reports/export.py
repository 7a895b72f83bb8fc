"""Exports the images of a run, with what was asked and perceived, as a data set that the library `datasets` reads."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from respodiff._optional import optional
from respodiff.data.places import temporary
from respodiff.data.run_folder import RunFolder
from respodiff.data.untrusted import confined
from respodiff.evaluation.score_files import scored_by
from respodiff.evaluation.scored_run import load_scored_run, read_records

KINDS = ("imagefolder", "parquet", "hub")
PART = 64
"""Images of a row group of a Parquet file, which are in memory at once."""
Rows = Sequence[Mapping[str, Any]]


def export(run: str | Path | RunFolder, to: str, out: str | Path) -> int:
    """Write a run as a data set of images and metadata, and give the number of images.

    The columns are those of `ScoredRun.rows`, or of `ImageRecord.row` where no judge has seen the run. The column ``file`` becomes the image.

    Args:
        to: ``imagefolder`` (images and ``metadata.jsonl``, needs no package), ``parquet`` (``train.parquet`` with the bytes of the images), or
            ``hub`` (the same, pushed to the Hugging Face hub as a private repository; images of one that is there are replaced).
        out: a folder that is absent or empty, which is written whole or not at all; for ``hub`` owner/name.

    Raises:
        ValueError: an unknown kind, a place that cannot be written or is public, a run without images, or one that has lost or changed images.
        OSError: the hub cannot be reached, or refuses.
        RuntimeError: without the package ``datasets``, where it is needed.
    """
    if to not in KINDS:
        raise ValueError(f"to is {to!r}; allowed: {', '.join(KINDS)}")
    if to == "hub" and not re.fullmatch(r"[\w.-]+/[\w.-]+", str(out)):
        raise ValueError(f"out is {str(out)!r}; for the hub give owner/name of a data set")
    place = Path(out)
    if to != "hub" and (place.is_symlink() or place.exists()) and (not place.is_dir() or any(place.iterdir())):
        raise ValueError(f"out is {str(out)!r}, which is there; choose a folder that is absent or empty")
    if to != "imagefolder":
        optional("datasets", f"export to {to}", "data")
    folder = run if isinstance(run, RunFolder) else RunFolder(run)
    rows = _rows(folder)
    if to == "hub":
        _push(folder, rows, str(out))
        return len(rows)
    with _new_folder(place) as partial:
        if to == "parquet":
            _write_parquet(folder, rows, partial / "train.parquet")
        else:
            _write_folder(folder, rows, partial)
    return len(rows)


def _rows(folder: RunFolder) -> list[dict[str, Any]]:
    """A row an image; a warning for every problem of the run, ValueError for images that are not as they were stored."""
    records, problems = read_records(folder)
    keys = scored_by(folder)
    rows = [record.row() for record in records]
    if keys:
        run = load_scored_run(folder, keys=keys)
        rows, problems = run.rows(), list(run.problems)
    for problem in problems:
        warnings.warn(problem, stacklevel=3)
    if lost := sorted({r.id for r in records} - folder.done(records=records)):
        raise ValueError(
            f"run folder {folder.path} has lost or changed {len(lost)} of {len(records)} images, first {lost[0]!r}: "
            "repeat the command that made it"
        )
    columns = dict.fromkeys(key for row in rows for key in row)
    return [{column: row.get(column) for column in columns} for row in rows]


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder that is ``out`` once the block has ended."""
    partial = temporary(out)
    try:
        partial.mkdir(parents=True)
        yield partial
        if out.is_dir():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_folder(folder: RunFolder, rows: Rows, out: Path) -> None:
    """The images, and ``metadata.jsonl`` in which ``file_name`` is theirs, as the loader ``imagefolder`` reads them."""
    (out / "images").mkdir()
    with (out / "metadata.jsonl").open("w", encoding="utf-8") as handle:
        for row in rows:
            source = confined(folder.path, row["file"])
            if (image := out / "images" / source.name).exists():
                raise ValueError(f"run folder {folder.path} has two images called {source.name!r}, in different folders; export to parquet")
            shutil.copyfile(source, image)
            about = {"file_name": f"images/{source.name}"} | {key: value for key, value in row.items() if key != "file"}
            handle.write(json.dumps(about, ensure_ascii=False) + "\n")


def _write_parquet(folder: RunFolder, rows: Rows, file: Path) -> None:
    """One file with the bytes of the images, and the types that `datasets` reads it with."""
    import datasets
    import pyarrow
    from pyarrow import parquet

    columns = [column for column in rows[0] if column != "file"]
    types = {column: datasets.Value(_kind([row[column] for row in rows])) for column in columns}
    schema = datasets.Features({"image": datasets.Image(), **types}).arrow_schema
    with parquet.ParquetWriter(file, schema) as writer:
        for start in range(0, len(rows), PART):
            part = []
            for row in rows[start : start + PART]:
                source = confined(folder.path, row["file"])
                part.append({"image": {"bytes": source.read_bytes(), "path": source.name}} | {c: row[c] for c in columns})
            writer.write_table(pyarrow.Table.from_pylist(part, schema=schema))


def _kind(values: Sequence[Any]) -> str:
    """Name of the type that holds all values of a column."""
    kinds = {type(value) for value in values if value is not None}
    for wanted, name in (({bool}, "bool"), ({int}, "int64"), ({int, float}, "float64")):
        if kinds and kinds <= wanted:
            return name
    return "string"


def _push(folder: RunFolder, rows: Rows, name: str) -> None:
    """The Parquet file as a private data set of the hub; ValueError for a public one that is there."""
    import datasets
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(name, repo_type="dataset", private=True, exist_ok=True)
    if not api.dataset_info(name).private:
        raise ValueError(f"out is {name!r}, which is a public data set already; make it private on the hub, or choose another name")
    with TemporaryDirectory() as place:
        _write_parquet(folder, rows, file := Path(place) / "train.parquet")
        data = datasets.Dataset.from_parquet(str(file), cache_dir=place)
        data.push_to_hub(name, private=True)
