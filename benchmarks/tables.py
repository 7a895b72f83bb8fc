"""Markdown tables, and the places of pages that they fill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(r) + " |" for r in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n"


def interval(e: Mapping[str, Any] | None) -> str:
    return "-" if e is None else f"{e['mean']:.3f} [{e['low']:.3f}, {e['high']:.3f}]"


def fill(path: Path, name: str, text: str) -> None:
    """Put ``text`` between the markers ``<!-- name -->`` and ``<!-- /name -->`` of a page."""
    page = path.read_text(encoding="utf-8")
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if page.count(start) != 1 or page.count(end) != 1:
        raise ValueError(f"{path.name} needs the markers {start} and {end} once each")
    before, _, rest = page.partition(start)
    path.write_text(f"{before}{start}\n{text.strip()}\n{end}{rest.partition(end)[2]}", encoding="utf-8")
