"""What people look at: one self-contained HTML page of tables, bars and pictures (the grid itself is in `grid`)."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from respodiff.grid import picture_grid
from respodiff.judges import NOTICE

__all__ = ["Bar", "Section", "html_report", "picture_grid"]

# Okabe and Ito's orange and blue: told apart with every common form of colour blindness, and in grey.
BEFORE, AFTER = "#e69f00", "#0072b2"


@dataclass(frozen=True)
class Bar:
    """One group of the before/after chart; shares in [0, 1], or None where there is nothing to show."""

    label: str
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Section:
    """A part of the page; whatever is left empty is not drawn.

    Attributes:
        text: paragraphs, separated by an empty line.
        table: rows with the same keys; the keys of the first row are the header.
        bars: before/after chart.
        bars_title: what the bars are shares of.
        line: where the chart's dashed line stands (the wanted share), or None.
        picture: PNG, JPEG or WebP file to embed.
        picture_text: what the picture shows, for readers who cannot see it.
    """

    heading: str
    text: str = ""
    table: Sequence[Mapping[str, Any]] = ()
    bars: Sequence[Bar] = ()
    bars_title: str = ""
    line: float | None = 0.5
    picture: str | Path | None = None
    picture_text: str = ""


def html_report(path: str | Path, *, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """Write one HTML page that needs no network, no script and no other file. Every text is escaped.

    Raises:
        ValueError: a section's picture cannot be read.
    """
    body = "\n".join(_section(section) for section in sections)
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{_paragraphs(lead, 'lead')}\n<p class='notice'>{escape(NOTICE)}</p>\n{body}\n"
        "</main>\n</body>\n</html>\n"
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _section(section: Section) -> str:
    parts = [f"<section>\n<h2>{escape(section.heading)}</h2>", _paragraphs(section.text)]
    if section.table:
        parts.append(_table(section.table))
    if section.bars:
        parts.append(_chart(section))
    if section.picture is not None:
        text = escape(section.picture_text or section.heading)
        parts.append(f'<figure><img alt="{text}" src="{_data_url(Path(section.picture))}"></figure>')
    return "\n".join([part for part in parts if part] + ["</section>"])


def _paragraphs(text: str, kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    return "\n".join(f"<p{mark}>{escape(part.strip())}</p>" for part in text.split("\n\n") if part.strip())


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    keys = list(rows[0])
    head = "".join(f'<th scope="col">{escape(str(key))}</th>' for key in keys)
    lines = ["<tr>" + "".join(_cell(row.get(key)) for key in keys) + "</tr>" for row in rows]
    body = "\n".join(lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _cell(value: Any) -> str:
    if value is None:
        return "<td>&ndash;</td>"
    if isinstance(value, float):
        return f'<td class="number">{value:.3f}</td>'
    return f"<td{' class=number' if isinstance(value, int) else ''}>{escape(str(value))}</td>"


def _data_url(path: Path) -> str:
    kind = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}.get(path.suffix.lower())
    if kind is None or not path.is_file():
        raise ValueError(f"picture {path} must be an existing .png, .jpg or .webp file: draw it first")
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _chart(section: Section) -> str:
    """Two bars a group on a 0 to 1 axis, as inline SVG in page colours."""
    left, span, step, top = 150, 440, 30, 26
    bottom = top + step * len(section.bars)
    box = f"0 0 {left + span + 60} {bottom + 24}"
    parts = [f'<svg role="img" viewBox="{box}" aria-label="{escape(section.bars_title or section.heading)}">']
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x = left + span * tick
        parts.append(f'<line class="rule" x1="{x:g}" x2="{x:g}" y1="{top - 6}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x:g}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    for i, bar in enumerate(section.bars):
        y = top + i * step
        parts.append(f'<text x="{left - 8}" y="{y + 16}" text-anchor="end">{escape(_short(bar.label))}</text>')
        for kind, value, dy in (("before", bar.before, 2), ("after", bar.after, 13)):
            parts.append(_one_bar(kind, value, left, span, y + dy))
    if section.line is not None:
        x = left + span * section.line
        parts.append(f'<line class="wanted" x1="{x:g}" x2="{x:g}" y1="{top - 6}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x:g}" y="{top - 12}" text-anchor="middle">wanted {section.line:g}</text>')
    legend = (
        f'<p class="legend"><span class="key before"></span> before <span class="key after"></span> after'
        f"{' &middot; ' + escape(section.bars_title) if section.bars_title else ''}</p>"
    )
    drawing = "\n".join(parts)
    return f'<figure>{legend}\n<div class="scroll">{drawing}</svg></div></figure>'


def _short(label: str, most: int = 22) -> str:
    return label if len(label) <= most else label[: most - 1] + "\u2026"


def _one_bar(kind: str, value: float | None, left: int, span: int, y: int) -> str:
    if value is None:
        return f'<text class="tick" x="{left + 4}" y="{y + 9}">not known</text>'
    if not 0 <= value <= 1:
        raise ValueError(f"bar values must be shares in 0..1 or None, got {value}")
    width = span * value
    return (
        f'<rect class="{kind}" x="{left}" y="{y}" width="{max(width, 1):.1f}" height="10"/>'
        f'<text class="tick" x="{left + width + 5:.1f}" y="{y + 9}">{value:.2f}</text>'
    )


_CSS = f"""
:root {{ color-scheme: light dark; --ink: #1a1a1a; --quiet: #5a5a5a; --paper: #fff; --card: #f6f7f9; --rule: #d9dce1; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #ececec; --quiet: #a9adb5; --paper: #15171a; --card: #1e2126; --rule: #3a3f47; }}
}}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }}
main {{ max-width: 60rem; margin: 0 auto; padding: 2rem 1rem 4rem; }}
h1 {{ font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; }}
h2 {{ font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--rule); }}
p {{ max-width: 44rem; }}
.lead {{ font-size: 1.15rem; }}
.notice {{ background: var(--card); border-left: 4px solid {AFTER}; padding: .6rem .9rem; color: var(--quiet); }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .92rem; }}
th, td {{ padding: .35rem .8rem; text-align: left; border-bottom: 1px solid var(--rule); }}
thead th {{ border-bottom: 2px solid var(--quiet); }}
.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
figure {{ margin: 1rem 0; }}
img {{ max-width: 100%; height: auto; border-radius: 6px; }}
svg {{ width: 100%; min-width: 30rem; max-width: 44rem; height: auto; font: 12px system-ui, sans-serif; }}
svg text {{ fill: var(--ink); }}
svg .tick {{ fill: var(--quiet); font-size: 10px; }}
svg .rule {{ stroke: var(--rule); }}
svg .wanted {{ stroke: var(--ink); stroke-dasharray: 4 3; }}
.before {{ fill: {BEFORE}; background: {BEFORE}; }}
.after {{ fill: {AFTER}; background: {AFTER}; }}
.legend {{ color: var(--quiet); font-size: .9rem; }}
.key {{ display: inline-block; width: .8em; height: .8em; margin-left: .6em; }}
"""
