"""The page: complete, self-contained, escaped."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.reports.charts import Dots, Gallery, Shot, Stacks
from respodiff.reports.html import Section, html_report


class Balanced(HTMLParser):
    """Fails on tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def square(path: Path, colour: str = "red") -> Path:
    Image.new("RGB", (128, 128), colour).save(path)
    return path


def page(tmp_path: Path, *sections: Section, title: str = "T", lead: str = "L") -> str:
    text = html_report(tmp_path / "out" / "report.html", title=title, lead=lead, sections=sections).read_text()
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    return text


def test_page_is_complete_and_self_contained(tmp_path: Path) -> None:
    square(tmp_path / "grid.png")
    text = page(
        tmp_path,
        Section("Numbers", "One.\n\nTwo.", table=[{"method": "plain", "DevRat": 0.66, "n": 12}, {"method": "ours"}]),
        Section("Bars", parts=[Dots("share of women", ["plain"], [("doctor", {"plain": None})])]),
        Section("ImageExamples", image=tmp_path / "grid.png", image_text="rows of doctors"),
    )
    assert "what an automatic judge perceives in generated images; they say nothing about real people." in text
    assert "prefers-color-scheme: dark" in text and "viewport" in text
    assert not re.search(r"https?://|<script|<link|@import", text)
    assert "<p>One.</p>" in text and "<p>Two.</p>" in text
    assert "0.660" in text and "&ndash;" in text
    assert 'alt="rows of doctors"' in text
    embedded = re.search(r"data:image/png;base64,([^\"]+)", text)
    assert embedded and base64.b64decode(embedded[1]) == (tmp_path / "grid.png").read_bytes()


def test_every_text_is_escaped(tmp_path: Path) -> None:
    evil, e = '<img src=x onerror="alert(1)">', Estimate(0.1, 0.0, 0.2, 5)
    parts = [
        Dots(evil, [evil], [(evil, {evil: e})], 0.5),
        Stacks(evil, [evil, "b"], [evil, "c"], [(evil, {evil: [0.5, 0.5]})]),
        Gallery([(evil, [(evil, [Shot(tmp_path / "absent.png", evil)])])]),
    ]
    section = Section(evil, evil, table=[{evil: evil}], parts=parts, notes=[evil], folded=True)
    assert "<img" not in page(tmp_path, section, title=evil, lead=evil)


def test_page_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.png must be an existing"):
        page(tmp_path, Section("ImageExamples", image=tmp_path / "absent.png"))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write .*choose another place"):
        html_report(tmp_path / "file" / "report.html", title="T", lead="L", sections=[])


def test_an_estimate_shows_its_interval(tmp_path: Path) -> None:
    text = page(tmp_path, Section("Numbers", table=[{"DevRat": Estimate(0.25, 0.125, 0.5, 9)}]))
    assert "0.250<br><small>[0.125, 0.500]</small>" in text
