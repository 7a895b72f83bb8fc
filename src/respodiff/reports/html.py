"""Renders HTML pages from the Jinja templates of this package: each page is one file, and every text is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from respodiff.data.run_folder import write_atomic
from respodiff.evaluation.judges import NOTICE
from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.reports.tables import number, shown


class Part(Protocol):
    """A chart or a gallery, as escaped HTML."""

    def html(self) -> Markup: ...


@dataclass(frozen=True)
class Section:
    """A part of the page; whatever is left empty is not shown, nor a section that has nothing but its heading.

    Attributes:
        text: Paragraphs, separated by an empty line. table: Rows with the same keys, the header. A cell may be an `Estimate`.
        parts: Charts and galleries. notes: Lines of a list. commands: Lines to copy into a terminal.
        folded: Show the heading alone until the reader opens it.
    """

    heading: str
    text: str = ""
    table: Sequence[Mapping[str, Any]] = ()
    parts: Sequence[Part] = ()
    notes: Sequence[str] = ()
    commands: Sequence[str] = ()
    folded: bool = False


def html_report(path: str | Path, *, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """Write one HTML page that needs no network, no script and no other file; OSError if its folder cannot be made."""
    path = Path(path)
    filled = [s for s in sections if s.text or s.table or s.parts or s.notes or s.commands]
    page = render("page.html.j2", title=title, lead=lead, notice=NOTICE, sections=filled)
    write_atomic(path, page + "\n")
    return path


def is_report(path: Path) -> bool:
    """Whether a file is a page of this library."""
    with path.open("rb") as file:
        return b'<meta name="generator" content="respodiff">' in file.read(1000)


def render(template: str, **values: Any) -> Markup:
    """A template of this package with its values; a value that the template misses is an error."""
    return Markup(_environment().get_template(template).render(**values))  # the environment escapes every value


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("respodiff.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    found.filters |= {"number": number, "shown": shown, "columns": _columns, "percent": lambda share: f"{100 * share:.2f}%"}
    found.tests["estimate"] = lambda value: isinstance(value, Estimate)
    return found


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, bool]]:
    """Key of every column, and whether it holds numbers: it does where no cell is a text."""
    return [(key, not any(isinstance(row.get(key), str) for row in rows)) for key in rows[0]]
