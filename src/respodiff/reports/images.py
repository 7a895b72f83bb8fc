"""Images of a report: galleries of images that share their noise, single images, and sheets of images as PNG."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image, ImageDraw, ImageFont

from respodiff.data.places import new_file
from respodiff.data.untrusted import confined
from respodiff.evaluation.comparison import ReportEntry, noise_key
from respodiff.evaluation.score_files import open_image
from respodiff.evaluation.scored_run import ScoredRun
from respodiff.reports.html import Section, render

PROMPTS, COLUMNS = 8, 8
"""Prompts of a prompt set that a gallery shows, and images of each."""
INK, QUIET, PAPER, RULE = "#1a1a1a", "#666666", "#ffffff", "#d9d9d9"
MARGIN, GAP, GROUP_GAP = 16, 4, 18


@dataclass(frozen=True)
class Tile:
    """One image of a gallery: its file (None for a hole), the words under it, and whether it is veiled until the reader asks."""

    path: Path | None
    caption: str = ""
    veiled: bool = False

    def thumbnail(self, side: int) -> str | None:
        """The image as a small WebP data URL, at twice the size shown for fine screens; None if it cannot be read."""
        if self.path is None or (image := open_image(self.path)) is None:
            return None
        image.thumbnail((2 * side, 2 * side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=80)
        return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@dataclass(frozen=True)
class Gallery:
    """Rows of images: for every prompt one row a run, as (prompt, [(run, images), ...]); ``side`` is that of an image in pixels."""

    rows: Sequence[tuple[str, Sequence[tuple[str, Sequence[Tile]]]]]
    side: int = 96

    def html(self) -> Markup:
        """The gallery, with its images embedded."""
        veil = any(tile.veiled for _, strips in self.rows for _, tiles in strips for tile in tiles)
        return render("gallery.html.j2", gallery=self, veil=veil)


def gallery_of(heading: str, entries: Sequence[ReportEntry]) -> Section:
    """Evenly spaced prompts, the first images of each; a run that lacks the image of a column has a hole there."""
    texts = dict(sorted((r.prompt_id, r.prompt) for e in entries for r in e.run.records))
    prompts, step = list(texts), max(1, len(texts) / PROMPTS)
    runs = [(e.run, _places(e.run), e.run.flags()) for e in entries]
    rows = []
    for prompt in (prompts[int(i * step)] for i in range(min(PROMPTS, len(prompts)))):
        columns = list(dict.fromkeys(key for _, places, _ in runs for key in places.get(prompt, {})))[:COLUMNS]
        strips = [(run.label, [_asked(run, places.get(prompt, {}).get(key), flags) for key in columns]) for run, places, flags in runs]
        rows.append((texts[prompt], strips))
    paired = all(e.comparison is None or e.comparison.paired for e in entries)
    noise = "Images in a column start from the same noise." if paired else "Not all of these runs share their noise: compare no columns."
    first = "First images of some prompts, none chosen by hand."
    return Section(heading, f"One row a run. {noise} {first}" if len(entries) > 1 else first, parts=[Gallery(rows)])


def tile(run: ScoredRun, i: int, caption: str, flags: Sequence[bool | None] | None) -> Tile:
    """The i-th image of a run; veiled where its prompt is unsafe or a judge flagged it (images of the embedded model are emoji, never veiled)."""
    record = run.records[i]
    veiled = record.model != "embedded" and (bool(record.categories) or bool(flags and flags[i]))
    path = None
    with suppress(OSError, ValueError):
        path = confined(run.folder, record.file)
    return Tile(path, run.scores[i].problem or caption, veiled)


def _places(run: ScoredRun) -> dict[str, dict[Hashable, int]]:
    """Prompt -> noise -> row; images of unknown noise stand for themselves."""
    found: dict[str, dict[Hashable, int]] = {}
    for i, record in enumerate(run.records):
        row = found.setdefault(record.prompt_id, {})
        row[noise_key(run, record) or ("place", len(row))] = i
    return found


def _asked(run: ScoredRun, i: int | None, flags: Sequence[bool | None] | None) -> Tile:
    """An image with the concept that was asked for, and what the judge sees where it differs."""
    if i is None:
        return Tile(None, "not generated")
    record, score = run.records[i], run.scores[i]
    asked = ", ".join(record.concepts.values())
    seen = ", ".join(score.labels[name] for name in record.concepts if name in score.labels)
    said = [asked_and_seen(asked, seen)]
    said += ["unsafe" if flags[i] else "safe"] if record.categories and flags and flags[i] is not None else []
    return tile(run, i, ", ".join(filter(None, said)), flags)


def asked_and_seen(asked: str, seen: str) -> str:
    """What a judge sees in an image, and what was asked for where it differs."""
    if not (asked and seen):
        return f"asked {asked}" if asked else seen
    return seen if seen == asked else f"asked {asked}, seen {seen}"


def image_grid(
    rows: Sequence[tuple[str, Sequence[Image.Image | Path]]],
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
    widest = max((len(images) for _, images in rows), default=0)
    columns = list(columns) or [("", widest)]
    room = sum(count for _, count in columns)
    if not 0 < widest <= room:
        raise ValueError(f"rows have up to {widest} images, columns hold {room}; give at least one image, and columns that hold every row")
    # A wide sheet is shown smaller, so its words are written larger.
    scale = thumb / 96 * max(1.0, room / 10)
    text, bold, big = (scale * size for size in (13, 15, 20))
    left = MARGIN + math.ceil(max(_font(text).getlength(label) for label, _ in rows)) + 12
    starts: list[int] = []  # x of every image
    middles: list[float] = []  # x of every header
    for _, count in columns:
        first = starts[-1] + thumb + GAP + GROUP_GAP if starts else left
        starts += [first + i * (thumb + GAP) for i in range(count)]
        middles.append((first + starts[-1] + thumb) / 2)
    width = starts[-1] + thumb + MARGIN
    above, below = _wrap(title, big, width - 2 * MARGIN), _wrap(footer, text, width - 2 * MARGIN)
    head = MARGIN + len(above) * 1.35 * big + 10 * bool(above)
    top = round(head + (1.8 * bold if any(header for header, _ in columns) else 0))
    bottom = top + len(rows) * (thumb + GAP)
    sheet = Image.new("RGB", (width, round(bottom + len(below) * 1.35 * text + MARGIN)), PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, above, MARGIN, big, INK)
    _write(draw, below, bottom + 6, text, QUIET)
    for (header, _), middle in zip(columns, middles, strict=True):
        draw.text((middle, head + 1.2 * bold), header, INK, _font(bold), anchor="ms")
    for i, (label, images) in enumerate(rows):
        y = top + i * (thumb + GAP)
        draw.text((left - 12, y + thumb / 2), label, INK, _font(text), anchor="rm")
        for x, image in zip(starts, images, strict=False):
            sheet.paste(_thumb(image, thumb), (x, y))
    with new_file(path, "image") as partial:
        sheet.save(partial, format="PNG", optimize=True)
    return Path(path)


@cache
def _font(size: float) -> Any:
    return ImageFont.load_default(size)


def _thumb(image: Image.Image | Path, side: int) -> Image.Image:
    if found := image if isinstance(image, Image.Image) else open_image(image):
        return found.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    hole = Image.new("RGB", (side, side), RULE)  # a hole that says so is better than no report
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
