"""Imports images of any other tool: a folder of images and a table of what was asked for become a run folder."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from respodiff.data.records import ImageRecord, image_id
from respodiff.data.run_folder import RunFolder, file_digest
from respodiff.data.tables import Row, number, read_table, whole_number
from respodiff.data.untrusted import confined

if TYPE_CHECKING:
    from respodiff.data.prompt_sets import Suite

CONCEPT = "concept:"
COLUMNS = ("file", "prompt")
BATCH = 32  # images that are written to the disk at a time


def import_folder(folder: str | Path, table: str | Path, out: str | Path, *, method: str = "imported") -> RunFolder:
    """Make a run folder from a folder of images and a CSV, to be evaluated and reported like any other.

    Images are copied in their own format. An interrupted import resumes. An image that cannot be read is part of the run, with a warning, and a
    judge counts it as unknown.

    Args:
        folder: folder of the images, which may lie in subfolders.
        table: CSV in UTF-8 with the columns ``file`` (relative to ``folder``) and ``prompt``. Optional columns: ``prompt_id`` (default: the prompt),
            ``suite``, ``group`` (default: the prompt id), ``subject``, ``seed`` (of the image's noise; images without one are never paired),
            ``repeat`` (default: counted per prompt), ``method``, ``guidance``, ``steps``, ``categories`` (separated by ``|``), and
            ``concept:ATTRIBUTE`` for every attribute with a concept asked for.
        method: name of the method where the table has none.

    Raises:
        OSError: ``out`` cannot be written.
        ValueError: columns are missing, there is no row, a number is none, a file is absent or outside of ``folder``, or two rows claim one file or
            image. Nothing is written then.
    """
    root, csv = Path(folder).expanduser(), Path(table).expanduser()
    if not root.is_dir():
        raise ValueError(f"folder is {str(folder)!r}, which is no folder; give the folder that holds the images")
    return _imported(_lines(csv, root.resolve(), method), file_digest(csv), out, method)


def import_captioned(folder: str | Path, suite: Suite, out: str | Path, *, method: str = "real") -> RunFolder:
    """Make a run folder of COCO's own images, one for each caption of a suite, to measure FID against.

    An image belongs to a caption by the number at the end of its name (``COCO_val2014_000000000042.jpg``). Images without a caption are left out.

    Args:
        folder: folder of the images, which may lie in subfolders. suite: ``coco30k`` or ``coco1k``, from a file with numbers of images.

    Raises:
        OSError: ``out`` cannot be written.
        ValueError: the captions have no numbers, or a caption has no image. Nothing is written then.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ValueError(f"folder is {str(folder)!r}, which is no folder; give the folder that holds the images")
    files = {found[1]: path for path in sorted(root.rglob("*")) if (found := re.search(r"(\d{12})$", path.stem))}
    numbers = [re.sub(r"^(\d{12})-\d+$", r"\1", prompt.id.rpartition("/")[2]) for prompt in suite.prompts]  # of its second caption: 42-2
    if unnumbered := [p.text for p, number in zip(suite.prompts, numbers, strict=True) if not number.isdecimal()]:
        raise ValueError(
            f"suite {suite.name!r} has {len(unnumbered):,} captions without image_id, first {unnumbered[0]!r}; give the published file"
        )
    if lacking := [number for number in numbers if number not in files]:
        raise ValueError(
            f"folder {str(folder)!r} lacks {len(lacking):,} of {len(numbers):,} images, first {lacking[0]}; give all of COCO's"
        )
    lines = [
        (ImageRecord(image_id(p.id, 0), file="", prompt=p.text, prompt_id=p.id, suite=p.suite, group=p.group, method=method), files[number])
        for p, number in zip(suite.prompts, numbers, strict=True)
    ]
    return _imported(lines, suite.digest, out, method)


def _imported(lines: list[tuple[ImageRecord, Path]], digest: str, out: str | Path, method: str) -> RunFolder:
    """A run folder of images with records that are complete but for the size."""
    run = RunFolder(out)
    with run.lock():
        done = run.create({"imported": True, "table_digest": digest, "method": method}).done()
        missing = [line for line in lines if line[0].id not in done]
        for start in range(0, len(missing), BATCH):
            run.add_all([(_sized(record, source), source) for record, source in missing[start : start + BATCH]])
    unreadable = {r.id for r in run.records() if r.width == 0}
    if names := [source.name for record, source in lines if record.id in unreadable]:
        text = f"{len(names)} of {len(lines)} images cannot be read, first {names[0]!r}: kept, a judge counts them as unknown"
        warnings.warn(text, stacklevel=3)
    return run


def _lines(csv: Path, root: Path, method: str) -> list[tuple[ImageRecord, Path]]:
    out: list[tuple[ImageRecord, Path]] = []
    repeats: Counter[str] = Counter()
    first: dict[Path | str, int] = {}
    for n, row in read_table(csv, COLUMNS):
        cells = {name: text.strip() for name, text in row.items()}
        try:
            source = confined(root, cells["file"]).resolve()
        except (OSError, ValueError) as error:
            fix = "give the folder that the column file is relative to, or leave this row out"
            raise ValueError(f"{csv.name}, line {n}: {error}: {fix}") from error
        if not cells["prompt"]:
            raise ValueError(f"{csv.name}, line {n}: prompt is empty; give the text that the image was made from")
        prompt_id = cells.get("prompt_id") or cells["prompt"]
        record = _record(csv, n, cells, prompt_id, repeats[prompt_id], method)
        repeats[prompt_id] += 1
        for key, what in ((source, f"file {cells['file']!r}"), (record.id, f"image {record.repeat} of prompt {prompt_id!r}")):
            if (before := first.setdefault(key, n)) != n:
                raise ValueError(
                    f"{csv.name}, lines {before} and {n} are both {what}: leave one out, or number images in the column repeat"
                )
        out.append((record, source))
    if not out:
        raise ValueError(f"{csv.name} has no row; give one row per image, with the columns {', '.join(COLUMNS)}")
    return out


def _record(csv: Path, line: int, cells: Row, prompt_id: str, count: int, method: str) -> ImageRecord:
    given = whole_number(csv, line, cells, "repeat")
    repeat = count if given is None else given
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
        own_seed=whole_number(csv, line, cells, "seed"),
        repeat=repeat,
        guidance=number(csv, line, cells, "guidance") or 0.0,
        steps=whole_number(csv, line, cells, "steps") or 0,
    )


def _sized(record: ImageRecord, path: Path) -> ImageRecord:
    """The record with width and height in pixels, 0 of what is no readable image."""
    try:
        with Image.open(path) as image:
            image.load()
            return replace(record, width=image.width, height=image.height)
    except Exception:  # Pillow reports broken files in a dozen ways, NotImplementedError and MemoryError among them
        return record
