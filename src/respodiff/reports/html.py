"""What people look at: one self-contained HTML page of tables, charts and images."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from respodiff.data.run_folder import write_atomic
from respodiff.evaluation.judges import NOTICE
from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.reports import charts, curves

__all__ = ["Section", "html_report"]


@dataclass(frozen=True)
class Section:
    """A part of the page; whatever is left empty is not drawn.

    Attributes:
        text: paragraphs, separated by an empty line.
        table: rows with the same keys; the keys of the first row are the header. A cell may be an `Estimate`.
        parts: charts and galleries.
        image: PNG, JPEG or WebP file to embed.
        image_text: what the image shows, for readers who cannot see it.
        notes: lines of small print in a list. commands: lines to copy into a terminal.
        folded: show the heading alone until the reader opens it.
    """

    heading: str
    text: str = ""
    table: Sequence[Mapping[str, Any]] = ()
    parts: Sequence[charts.Dots | charts.Stacks | charts.Gallery | curves.Curves] = ()
    image: str | Path | None = None
    image_text: str = ""
    notes: Sequence[str] = ()
    commands: Sequence[str] = ()
    folded: bool = False


def html_report(path: str | Path, *, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """Write one HTML page that needs no network, no script and no other file. Every text is escaped.

    Raises:
        ValueError: a section's image cannot be read.
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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}; choose another place for the page") from error
    write_atomic(path, page)
    return path


def _section(section: Section) -> str:
    parts = [_paragraphs(section.text)]
    if section.table:
        parts.append(_table(section.table))
    parts += [part.html() for part in section.parts]
    if section.image is not None:
        text = escape(section.image_text or section.heading)
        parts.append(f'<figure><img alt="{text}" src="{_data_url(Path(section.image))}"></figure>')
    parts += [f"<pre>{escape(command)}</pre>" for command in section.commands]
    if section.notes:
        parts.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in section.notes) + "</ul>")
    body, heading = "\n".join(part for part in parts if part), f"<h2>{escape(section.heading)}</h2>"
    if section.folded:
        return f"<section><details><summary>{heading}</summary>\n{body}\n</details></section>"
    return f"<section>\n{heading}\n{body}\n</section>"


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
    if isinstance(value, Estimate):
        return f'<td class="number">{value.mean:.3f}<br><small>[{value.low:.3f}, {value.high:.3f}]</small></td>'
    if isinstance(value, float):
        return f'<td class="number">{value:.3f}</td>'
    return f"<td{' class=number' if isinstance(value, int) else ''}>{escape(str(value))}</td>"


def _data_url(path: Path) -> str:
    kind = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}.get(path.suffix.lower())
    if kind is None or not path.is_file():
        raise ValueError(f"image {path} must be an existing .png, .jpg or .webp file: draw it first")
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


_CSS = (
    """
:root { color-scheme: light dark; --ink: #1a1a1a; --quiet: #5a5a5a; --paper: #fff; --card: #f3f4f6; --rule: #d9dce1; --mark: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececec; --quiet: #a9adb5; --paper: #15171a; --card: #22262c; --rule: #3a3f47; --mark: #56b4e9; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 74rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--rule); }
summary { cursor: pointer; border-top: 1px solid var(--rule); margin-top: 1.2rem; padding-top: .6rem; }
summary h2 { display: inline; border: 0; margin: 0; padding: 0; }
p, li { max-width: 46rem; }
.lead { font-size: 1.15rem; }
.notice { background: var(--card); border-left: 4px solid var(--mark); padding: .6rem .9rem; color: var(--quiet); }
pre { background: var(--card); padding: .45rem .7rem; margin: .4rem 0; font-size: .82rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; margin: .6rem 0; }
th, td { padding: .35rem .55rem; text-align: left; border-bottom: 1px solid var(--rule); vertical-align: top; }
thead th { border-bottom: 2px solid var(--quiet); vertical-align: bottom; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.number small { color: var(--quiet); white-space: nowrap; }
figure { margin: 1rem 0; }
figure > img { max-width: 100%; height: auto; border-radius: 6px; }
"""
    + charts.CSS
    + curves.CSS
)
