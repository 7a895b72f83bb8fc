"""Provides prompts of a user's own file: a table with a header, or a text with one prompt a line."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from respodiff.data.records import Prompt
from respodiff.data.tables import TABLES, Row, number, numbered, read_table, read_text, whole_number


def read_prompt_file(path: Path) -> list[Prompt]:
    """Prompts of a ``.csv``, ``.tsv`` or ``.parquet`` by its header, in its order; of any other file one a line. Rows without a prompt are left out.

    The column ``prompt`` is needed. Optional: ``prompt_id`` or ``id`` (default: the prompt; the second one of a name gets ``-2``), ``suite``,
    ``group`` (default: the prompt), ``subject``, ``categories`` (separated by ``|`` or commas), and the data set's own ``seed``, ``guidance``,
    ``height`` and ``width``, also under the names that I2P gives them, or ``size``: 512, or width x height as 512x768.

    Raises:
        ValueError: unreadable, no column ``prompt``, a number that is none, a height without a width, or no prompt at all.
        RuntimeError: ``.parquet`` without pyarrow.
    """
    if path.suffix.lower() in TABLES:
        found = [_prompt(path, line, row) for line, row in read_table(path, ("prompt",)) if row["prompt"].strip()]
        names = numbered([p.id for p in found], range(len(found)))
        prompts = [replace(p, id=name) for p, name in zip(found, names, strict=True)]
    else:
        prompts = [Prompt(text, text, group=text) for line in read_text(path).splitlines() if (text := line.strip())]
    if not prompts:
        raise ValueError(f"{path.name} holds no prompt; give one a line, or a table with a column prompt")
    return prompts


def _prompt(path: Path, line: int, row: Row) -> Prompt:
    def text(*names: str) -> str:
        return next((cell for name in names if (cell := row.get(name, "").strip())), "")

    width, height = _size(path, line, row)
    return Prompt(
        id=text("prompt_id", "id", "prompt"),
        text=text("prompt"),
        suite=text("suite"),
        group=text("group", "prompt"),
        subject=text("subject") or None,
        categories=tuple(dict.fromkeys(label.strip() for label in re.split(r"[|,]", text("categories")) if label.strip())),
        seed=whole_number(path, line, row, "seed", "evaluation_seed", "sd_seed"),
        guidance=number(path, line, row, "guidance", "evaluation_guidance", "sd_guidance_scale"),
        height=height,
        width=width,
    )


def _size(path: Path, line: int, row: Row) -> tuple[int | None, int | None]:
    """Width and height in pixels; None for both where the row has none."""
    width, height = (whole_number(path, line, row, *names) for names in (("width", "sd_image_width"), ("height", "sd_image_height")))
    if (width is None) != (height is None):
        raise ValueError(
            f"{path.name}, line {line} has a {'width' if height is None else 'height'} alone; give width and height, or neither"
        )
    if width is not None or not (text := row.get("size", "").strip()):
        return width, height
    if not (found := re.fullmatch(r"(\d{1,6})(?:\s*[xX\u00d7]\s*(\d{1,6}))?", text, re.ASCII)):
        raise ValueError(
            f"{path.name}, line {line}: size is {text[:40]!r}; allowed: pixels such as 512, width x height such as 512x768, or nothing"
        )
    return int(found[1]), int(found[2] or found[1])
