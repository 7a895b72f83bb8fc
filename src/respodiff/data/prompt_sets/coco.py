"""Reads captions of COCO images: everyday prompts on which steering should not lower quality."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

from respodiff.data.prompt_sets.download import Source
from respodiff.data.records import Prompt
from respodiff.data.tables import Row, numbered, rank, read_table, read_text, whole_number

PRESET_SIZE = 1000


def read(path: Path) -> list[Prompt]:
    """Prompts of a table with the column ``prompt`` (and ``image_id`` or ``coco_id``, ``evaluation_seed`` where it has them), or a ``.txt``, one a line.

    Ids come from the number of the image, else from the caption, never from the position. All prompts are of one group, "captions", so that intervals
    resample images. Rows without a caption are prompts without a text.

    Raises:
        ValueError: unreadable, no column ``prompt``, or a number that is none.
    """
    rows: list[tuple[int, Row]]
    if path.suffix.lower() == ".txt":
        rows = [(n, {"prompt": line}) for n, line in enumerate(read_text(path).splitlines(), start=1) if line.strip()]
    else:
        rows = read_table(path, ("prompt",))
    keys = [_number(row) or rank("coco30k", " ".join(row["prompt"].split())) for _, row in rows]
    ids = numbered(keys, [row["prompt"] for _, row in rows])
    seeds = [whole_number(path, line, row, "evaluation_seed") for line, row in rows]
    made = zip(ids, rows, seeds, strict=True)
    return [Prompt(f"coco30k/{name}", row["prompt"].strip(), "coco30k", "captions", seed=seed) for name, (_, row), seed in made]


def _number(row: Row) -> str:
    """The image's number in COCO as twelve digits, however it is written: 42, 42.0, 000000000042, COCO_val2014_000000000042.jpg."""
    text = row.get("image_id", "").strip() or row.get("coco_id", "").strip()
    found = re.fullmatch(r"(?:COCO_\w+_)?0*(\d{1,12})(?:\.0|\.jpg)?", text)
    return found[1].zfill(12) if found else text


def preset(prompts: Sequence[Prompt]) -> list[Prompt]:
    """``coco1k``: the `PRESET_SIZE` prompts that are first by the hash of their id, in that order, whatever the order they come in."""
    if len(prompts) < PRESET_SIZE:
        warnings.warn(f"coco1k wants {PRESET_SIZE} prompts, the file has only {len(prompts)}", stacklevel=2)
    return sorted(prompts, key=lambda p: (rank("coco1k", p.id), p.id))[:PRESET_SIZE]


SOURCE = Source("COCO-30k", ("coco_30k.csv", "coco30k.csv"), size=2_460_030, rows=30_000, labels={}, images=1, read=read)
