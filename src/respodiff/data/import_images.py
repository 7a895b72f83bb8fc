"""Imports images of any other tool: a folder of images and a table of what was asked for become a run folder."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath

from PIL import Image

from respodiff.data.records import ImageRecord, image_id
from respodiff.data.run_folder import RunFolder, file_digest
from respodiff.data.tables import Row, number, read_table, whole_number

CONCEPT = "concept:"
COLUMNS = ("file", "prompt")


def import_folder(
    folder: str | Path, table: str | Path, out: str | Path, *, method: str = "imported", problems: list[str] | None = None
) -> RunFolder:
    """Make a run folder from a folder of images and a CSV, to be evaluated and reported like any other.

    Images are hard-linked where possible, else copied, in their own format. An interrupted import resumes.

    Args:
        folder: folder of the images, which may lie in subfolders.
        table: CSV in UTF-8 with the columns ``file`` (relative to ``folder``) and ``prompt``. Optional columns: ``prompt_id`` (default: the prompt),
            ``suite``, ``group`` (default: the prompt id), ``subject``, ``seed`` (of the image's noise; images without one are never paired),
            ``repeat`` (default: counted per prompt), ``method``, ``guidance``, ``steps``, ``categories`` (separated by ``|``), and
            ``concept:ATTRIBUTE`` for every attribute with a concept asked for.
        out: run folder to write to.
        method: name of the method where the table has none.
        problems: gets one line per kind of problem that stops nothing; None makes them warnings.

    Returns:
        The run folder. An image that cannot be read is part of it, and a judge counts it as unknown.

    Raises:
        OSError: ``out`` cannot be written.
        ValueError: columns are missing, there is no row, a number is none, a file is absent or outside of ``folder``, or two rows claim one file or
            image. Nothing is written then.
    """
    root, csv = Path(folder).expanduser(), Path(table).expanduser()
    if not root.is_dir():
        raise ValueError(f"folder is {str(folder)!r}, which is no folder; give the folder that holds the images")
    rows = read_table(csv, COLUMNS)
    if not rows:
        raise ValueError(f"{csv.name} has no row; give one row per image, with the columns {', '.join(COLUMNS)}")
    told: list[str] = []
    lines = _lines(csv, root.resolve(), _once(csv, rows, told), method)
    run = RunFolder(out).create({"imported": True, "table_digest": file_digest(csv), "method": method})
    done = run.done()
    for record, source in lines:
        if record.id not in done:
            run.adopt(record, source, _size(source))
    unreadable = {r.id for r in run.records() if r.width == 0}
    if names := [source.name for record, source in lines if record.id in unreadable]:
        told.append(f"{len(names)} of {len(lines)} images cannot be read, first {names[0]!r}: kept, a judge counts them as unknown")
    for text in told if problems is None else ():
        warnings.warn(text, stacklevel=2)
    if problems is not None:
        problems += told
    return run


def _once(csv: Path, rows: Sequence[tuple[int, Row]], told: list[str]) -> list[tuple[int, Row]]:
    """The rows without repetitions; a file that is listed in two rows that differ is a ValueError."""
    seen: dict[str, tuple[int, Row]] = {}
    again = 0
    for n, row in rows:
        before, earlier = seen.setdefault(PurePath(row["file"].strip()).as_posix(), (n, row))
        if earlier != row:
            raise ValueError(f"{csv.name}, lines {before} and {n} say different things of file {row['file'].strip()!r}: leave one of them")
        again += before != n
    if again:
        told.append(f"{again} of {len(rows)} rows of {csv.name} repeat an earlier row: each is counted once")
    return list(seen.values())


def _lines(csv: Path, root: Path, rows: Sequence[tuple[int, Row]], method: str) -> list[tuple[ImageRecord, Path]]:
    out: list[tuple[ImageRecord, Path]] = []
    repeats: Counter[str] = Counter()
    taken: dict[str, int] = {}
    absent = []
    for n, row in rows:
        source = _source(csv, root, n, row["file"].strip())
        absent += [(n, source.name)] if not source.is_file() else []
        prompt_id = row.get("prompt_id", "").strip() or row["prompt"].strip()
        given = whole_number(csv, n, row, "repeat")
        record = _record(csv, n, row, prompt_id, repeats[prompt_id] if given is None else given, method)
        repeats[prompt_id] += 1
        if (before := taken.setdefault(record.id, n)) != n:
            raise ValueError(
                f"{csv.name}, lines {before} and {n} are both image {record.repeat} of prompt {prompt_id!r}: number them in the column repeat, "
                "or leave that column out"
            )
        out.append((record, source))
    if absent:
        raise ValueError(
            f"{csv.name}, line {absent[0][0]}: file {absent[0][1]!r} is not in {root} ({len(absent)} of {len(out)} are not): "
            "give the folder that the column file is relative to, or leave these rows out"
        )
    return out


def _source(csv: Path, root: Path, line: int, name: str) -> Path:
    """The image that a row names; ValueError if it lies outside of the folder, also by a link."""
    path = (root / name).resolve() if name and "\0" not in name else root
    if path == root or not path.is_relative_to(root):
        raise ValueError(f"{csv.name}, line {line}: file is {name!r}, which is no file inside the folder; give a path relative to it")
    return path


def _record(csv: Path, line: int, row: Row, prompt_id: str, repeat: int, method: str) -> ImageRecord:
    cells = {name: text.strip() for name, text in row.items()}
    if not cells["prompt"]:
        raise ValueError(f"{csv.name}, line {line}: prompt is empty; give the text that the image was made from")
    if repeat < 0:
        raise ValueError(f"{csv.name}, line {line}: repeat is {repeat}; allowed: 0 or more, or nothing")
    labels = [label.strip() for label in cells.get("categories", "").split("|")]
    return ImageRecord(
        id=image_id(prompt_id, repeat),
        file="",
        prompt=cells["prompt"],
        prompt_id=prompt_id,
        suite=cells.get("suite", ""),
        group=cells.get("group") or prompt_id,
        subject=cells.get("subject") or None,
        categories=tuple(dict.fromkeys(label for label in labels if label)),
        method=cells.get("method") or method,
        concepts={name.removeprefix(CONCEPT).strip(): text for name, text in cells.items() if name.startswith(CONCEPT) and text},
        own_seed=whole_number(csv, line, row, "seed"),
        repeat=repeat,
        guidance=number(csv, line, row, "guidance") or 0.0,
        steps=whole_number(csv, line, row, "steps") or 0,
    )


def _size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, (0, 0) of what is no readable image."""
    try:
        with Image.open(path) as image:
            image.load()
            return image.size
    except Exception:  # Pillow reports broken files in a dozen ways, NotImplementedError and MemoryError among them
        return 0, 0
