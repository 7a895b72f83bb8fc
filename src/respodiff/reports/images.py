"""A sheet of labelled rows of images, as PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

INK, QUIET, PAPER, RULE = "#1a1a1a", "#666666", "#ffffff", "#d9d9d9"
MARGIN, GAP, GROUP_GAP = 16, 4, 18

ImageLike = Image.Image | Path | str


def image_grid(
    rows: Sequence[tuple[str, Sequence[ImageLike]]],
    path: str | Path,
    *,
    columns: Sequence[tuple[str, int]] = (),
    thumb: int = 96,
    title: str = "",
    footer: str = "",
) -> Path:
    """Write labelled rows of images as a PNG.

    Args:
        rows: (label, images); a shorter row is left blank at its end.
        columns: (header, number of images under it) from left to right; empty is one column group without a header.
        thumb: side of an image in pixels.

    Raises:
        ValueError: no images, or a row with more images than the columns hold.
    """
    columns = list(columns) or [("", max((len(images) for _, images in rows), default=0))]
    _check(rows, columns)
    # A wide sheet is shown smaller, so its words are written larger.
    scale = thumb / 96 * max(1.0, sum(n for _, n in columns) / 10)
    text, bold, big = (scale * size for size in (13, 15, 20))
    left = MARGIN + math.ceil(max(_font(text).getlength(label) for label, _ in rows)) + 12
    starts = _starts(columns, left, thumb)
    width = starts[-1] + thumb + MARGIN
    above, below = _wrap(title, big, width - 2 * MARGIN), _wrap(footer, text, width - 2 * MARGIN)
    head = MARGIN + len(above) * 1.35 * big + 10 * bool(above)
    top = round(head + (1.8 * bold if any(header for header, _ in columns) else 0))
    bottom = top + len(rows) * (thumb + GAP)
    sheet = Image.new("RGB", (width, round(bottom + len(below) * 1.35 * text + MARGIN)), PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, above, MARGIN, big, INK)
    _write(draw, below, bottom + 6, text, QUIET)
    _headers(draw, columns, starts, thumb, head + 1.2 * bold, bold)
    for i, (label, images) in enumerate(rows):
        y = top + i * (thumb + GAP)
        draw.text((left - 12, y + thumb / 2), label, INK, _font(text), anchor="rm")
        _paste(sheet, images, starts, y, thumb)
    return _save(sheet, Path(path))


def _save(sheet: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG", optimize=True)
    return path


def _headers(
    draw: ImageDraw.ImageDraw, columns: Sequence[tuple[str, int]], starts: Sequence[int], thumb: int, y: float, size: float
) -> None:
    at = 0
    for header, count in columns:
        middle = (starts[at] + starts[at + count - 1] + thumb) / 2
        draw.text((middle, y), header, INK, _font(size), anchor="ms")
        at += count


def _check(rows: Sequence[tuple[str, Sequence[ImageLike]]], columns: Sequence[tuple[str, int]]) -> None:
    if not any(images for _, images in rows) or any(count < 1 for _, count in columns):
        raise ValueError("rows and columns of an image grid must each hold at least one image")
    room, widest = sum(count for _, count in columns), max(len(images) for _, images in rows)
    if room < widest:
        raise ValueError(f"columns hold {room} images, but a row has {widest}: give the widths of all column groups")


@cache
def _font(size: float) -> Any:
    return ImageFont.load_default(size)


def _paste(sheet: Image.Image, images: Sequence[ImageLike], starts: Sequence[int], y: int, thumb: int) -> None:
    for x, image in zip(starts, images, strict=False):
        sheet.paste(_thumb(image, thumb), (x, y))


def _starts(columns: Sequence[tuple[str, int]], left: int, thumb: int) -> list[int]:
    """The x of every image; column groups stand further apart than images."""
    out: list[int] = []
    x = left
    for _, count in columns:
        out += [x + i * (thumb + GAP) for i in range(count)]
        x += count * (thumb + GAP) + GROUP_GAP
    return out


def _thumb(image: ImageLike, side: int) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    try:
        with Image.open(image) as file:
            return file.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    except OSError:  # a hole that says so is better than no report
        hole = Image.new("RGB", (side, side), RULE)
        ImageDraw.Draw(hole).text((side / 2, side / 2), "unreadable", QUIET, _font(side / 8), anchor="mm")
        return hole


def _wrap(text: str, size: float, width: float) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and _font(size).getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines


def _write(draw: ImageDraw.ImageDraw, lines: Sequence[str], y: float, size: float, ink: str) -> None:
    for i, line in enumerate(lines):
        draw.text((MARGIN, y + i * 1.35 * size), line, ink, _font(size))
