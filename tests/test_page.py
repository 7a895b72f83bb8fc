from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from respodiff.report import Bar, Section, html_report, picture_grid

RED, BLUE = (255, 0, 0), (0, 0, 255)


def square(colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (128, 128), colour)


def count(sheet: Image.Image, colour: tuple[int, int, int]) -> int:
    return sum(n for n, c in sheet.getcolors(sheet.width * sheet.height) if c == colour)


class Balanced(HTMLParser):
    """Fails on tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_grid_holds_every_picture_at_full_size(tmp_path: Path) -> None:
    square(BLUE).save(tmp_path / "blue.png")
    rows = [("doctor", [square(RED), square(RED), tmp_path / "blue.png"]), ("nurse", [square(RED)])]
    path = picture_grid(rows, tmp_path / "deep" / "grid.png", columns=[("before", 2), ("after", 1)], thumb=64)
    sheet = Image.open(path).convert("RGB")
    assert count(sheet, RED) == 3 * 64 * 64
    assert count(sheet, BLUE) == 64 * 64
    assert sheet.getpixel((0, 0)) == (255, 255, 255)


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as sheet:
        return sheet.size


def test_grid_words_make_room(tmp_path: Path) -> None:
    rows, two = [("doctor", [square(RED)] * 4)], [("before", 2), ("after", 2)]
    bare = size(picture_grid(rows, tmp_path / "a.png"))
    full = size(picture_grid(rows, tmp_path / "b.png", columns=two, title="A title", footer="word " * 60))
    assert full[0] > bare[0] and full[1] > bare[1] + 60
    short = size(picture_grid([("x", [square(RED)])], tmp_path / "c.png"))
    assert size(picture_grid([("a much longer label", [square(RED)])], tmp_path / "d.png"))[0] > short[0] + 60


def test_grid_says_when_a_picture_cannot_be_read(tmp_path: Path) -> None:
    path = picture_grid([("doctor", [tmp_path / "absent.png", square(RED)])], tmp_path / "grid.png", thumb=64)
    assert count(Image.open(path).convert("RGB"), RED) == 64 * 64


def test_grid_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        picture_grid([("doctor", [])], tmp_path / "grid.png")
    with pytest.raises(ValueError, match="at least one picture"):
        picture_grid([], tmp_path / "grid.png")
    with pytest.raises(ValueError, match="columns hold 1 pictures, but a row has 2"):
        picture_grid([("doctor", [square(RED)] * 2)], tmp_path / "grid.png", columns=[("before", 1)])


def page(tmp_path: Path, *sections: Section, title: str = "T", lead: str = "L") -> str:
    text = html_report(tmp_path / "out" / "report.html", title=title, lead=lead, sections=sections).read_text()
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    return text


def test_page_is_complete_and_self_contained(tmp_path: Path) -> None:
    square(RED).save(tmp_path / "grid.png")
    text = page(
        tmp_path,
        Section("Numbers", "One.\n\nTwo.", table=[{"method": "plain", "DevRat": 0.66, "n": 12}, {"method": "ours"}]),
        Section("Bars", bars=[Bar("doctor", 0.25, None)], bars_title="share of women"),
        Section("Pictures", picture=tmp_path / "grid.png", picture_text="rows of doctors"),
    )
    assert "what an automatic judge perceives in generated pictures; they say nothing about real people." in text
    assert "prefers-color-scheme: dark" in text and "viewport" in text
    assert not re.search(r"https?://|<script|<link|@import", text)
    assert "<p>One.</p>" in text and "<p>Two.</p>" in text
    assert "0.660" in text and "&ndash;" in text
    assert 'alt="rows of doctors"' in text
    embedded = re.search(r"data:image/png;base64,([^\"]+)", text)
    assert embedded and base64.b64decode(embedded[1]) == (tmp_path / "grid.png").read_bytes()


def test_bar_lengths_follow_the_shares(tmp_path: Path) -> None:
    text = page(tmp_path, Section("Bars", bars=[Bar("doctor", 0.25, 0.5), Bar("nurse", 1.0, None)]))
    before = [float(w) for w in re.findall(r'<rect class="before"[^>]*width="([\d.]+)"', text)]
    after = [float(w) for w in re.findall(r'<rect class="after"[^>]*width="([\d.]+)"', text)]
    assert before[1] == pytest.approx(4 * before[0])
    assert after == [pytest.approx(2 * before[0])]
    assert "not known" in text and "wanted 0.5" in text
    assert "wanted" not in page(tmp_path, Section("Bars", bars=[Bar("a", 0, 1)], line=None)).split("</style>")[1]


def test_every_text_is_escaped(tmp_path: Path) -> None:
    evil = '<img src=x onerror="alert(1)">'
    section = Section(evil, evil, table=[{evil: evil}], bars=[Bar(evil, 0.1, 0.2)], bars_title=evil)
    assert "<img" not in page(tmp_path, section, title=evil, lead=evil)


def test_page_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shares in 0\.\.1 or None, got 25"):
        page(tmp_path, Section("Bars", bars=[Bar("doctor", 25, 50)]))
    with pytest.raises(ValueError, match=r"absent\.png must be an existing"):
        page(tmp_path, Section("Pictures", picture=tmp_path / "absent.png"))
