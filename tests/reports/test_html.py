"""The page: complete, self-contained, escaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from PIL import Image

from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.reports.charts import Curves, Dots, Point, Stacks
from respodiff.reports.html import Section, html_report, render
from respodiff.reports.images import Gallery, Tile


class Balanced(HTMLParser):
    """Fails on tags that are not closed in order; keeps the tags and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(text: str) -> Balanced:
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    return parser


def page(tmp_path: Path, *sections: Section, title: str = "T", lead: str = "L") -> str:
    text = html_report(tmp_path / "out" / "report.html", title=title, lead=lead, sections=sections).read_text()
    parsed(text)
    return text


def test_page_is_complete_and_self_contained(tmp_path: Path) -> None:
    Image.new("RGB", (128, 128), "red").save(tmp_path / "grid.png")
    text = page(
        tmp_path,
        Section("Numbers", "One.\n\nTwo.", table=[{"method": "plain", "DevRat": 0.66, "n": 1200}, {"method": "ours"}]),
        Section("Bars", parts=[Dots("share of women", ["plain"], [("doctor", {"plain": None})])]),
        Section("Images", parts=[Gallery([("doctor", [("plain", [Tile(tmp_path / "grid.png", "rows of doctors")])])])], folded=True),
        Section("Lines", parts=[Curves("t", "x", "y", [("a", [Point(0, 0)])])], commands=["respodiff report a"], notes=["small"]),
    )
    assert "what an automatic judge perceives in generated" in text and "they say nothing about real people." in text
    assert "prefers-color-scheme: dark" in text and "viewport" in text and ".plot svg" in text
    assert not re.search(r"https?://|<script|<link|@import", text)
    assert "<p>One.</p>" in text and "<p>Two.</p>" in text and "<pre>respodiff report a</pre>" in text and "<li>small</li>" in text
    assert ">0.660</td>" in text and ">1,200</td>" in text and "&ndash;" in text
    assert 'alt="rows of doctors"' in text and "<details><summary><h2>Images" in text


EVIL = '<img src=x onerror="alert(1)"><script>alert("2")</script>{{ 7 * 7 }}'


def test_every_text_is_escaped(tmp_path: Path) -> None:
    e = Estimate(0.1, 0.0, 0.2, 5)
    parts = [
        Dots(EVIL, [EVIL], [(EVIL, {EVIL: e})], 0.5),
        Stacks(EVIL, [EVIL, "b"], [EVIL, "c"], [(EVIL, {EVIL: [0.5, 0.5], "b": None})]),
        Curves(EVIL, EVIL, EVIL, [(EVIL, [Point(0, 0, EVIL)])]),
        Gallery([(EVIL, [(EVIL, [Tile(tmp_path / "absent.png", EVIL)])])]),
    ]
    section = Section(EVIL, EVIL, table=[{EVIL: EVIL}], parts=parts, notes=[EVIL], commands=[EVIL], folded=True)
    text = page(tmp_path, section, title=EVIL, lead=EVIL)
    assert not {"img", "script"} & parsed(text).tags and "49" not in parsed(text).text
    assert text.count("&lt;script&gt;") >= 20


def test_a_value_that_a_template_misses_is_an_error() -> None:
    assert "<h1>&#34;&lt;b&gt;</h1>" in render("page.html.j2", title='"<b>', lead="L", notice="N", sections=[])
    with pytest.raises(UndefinedError, match="lead"):
        render("page.html.j2", title="T", notice="N", sections=[])


def test_page_errors(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"report\.html"):
        html_report(tmp_path / "file" / "report.html", title="T", lead="L", sections=[])


def test_an_estimate_shows_its_interval_and_its_n(tmp_path: Path) -> None:
    e = Estimate(0.25, 0.125, 0.5, 9)
    text = re.sub(r"\s+", " ", page(tmp_path, Section("Numbers", table=[{"DevRat": e, "n": 12}, {"DevRat": e, "n": 9}])))
    assert "0.250<br><small>[0.125, 0.500]<br>n = 9</small>" in text and "0.250<br><small>[0.125, 0.500]</small>" in text
