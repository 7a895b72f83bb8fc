"""Charts and strips: positions follow the numbers, images are veiled where they should be."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import pytest
from PIL import Image

from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.reports.charts import Dots, Gallery, Shot, Stacks, thumbnail


def test_dots_and_whiskers_stand_where_the_numbers_are() -> None:
    rows = [("doctor", {"before": Estimate(0.25, 0.1, 0.4, 12), "after": Estimate(0.5, 0.3, 0.7, 12)}), ("nurse", {"before": None})]
    text = Dots("share of women", ["before", "after"], rows, target=0.5).html()
    assert re.findall(r'class="dot k(\d)" style="left:([\d.]+)%"', text) == [("0", "25.00"), ("1", "50.00")]
    assert re.findall(r'class="whisker k0" style="left:([\d.]+)%;width:([\d.]+)%"', text) == [("10.00", "30.00")]
    assert text.count('class="wanted" style="left:50.00%"') == 2 and "wanted 0.50" in text
    assert "before: 0.25 [0.10, 0.40], n = 12" in text and text.count("not known") == 2
    assert "wanted" not in Dots("t", ["a"], [("x", {"a": None})]).html()


def test_dots_refuse_what_is_no_share() -> None:
    with pytest.raises(ValueError, match=r"shares in 0\.\.1, got a 25"):
        Dots("t", ["a"], [("x", {"a": Estimate(25, 20, 30, 5)})]).html()


def test_stacks_add_up() -> None:
    text = Stacks("tone", ["plain", "ours"], ["light", "medium", "dark"], [("doctor", {"plain": [0.5, 0.25, 0.25], "ours": None})]).html()
    assert re.findall(r'<i class="k(\d)" style="width:([\d.]+)%"', text) == [("0", "50.00"), ("1", "25.00"), ("2", "25.00")]
    assert "plain: light 0.50, medium 0.25, dark 0.25" in text and "ours: not known" in text
    assert "from top to bottom: plain, ours" in text


def test_gallery_veils_and_says_what_cannot_be_read(tmp_path: Path) -> None:
    Image.new("RGB", (300, 200), "red").save(tmp_path / "a.png")
    shots = [Shot(tmp_path / "a.png", "woman"), Shot(tmp_path / "a.png", veiled=True), Shot(tmp_path / "absent.png")]
    text = Gallery([("a doctor", [("plain", shots)])]).html()
    assert text.count("data:image/webp;base64,") == 2 and text.count('class="veiled"') == 1 and text.count("unreadable") == 1
    assert "show images of unsafe prompts" in text
    assert "show images of unsafe prompts" not in Gallery([("a doctor", [("plain", shots[:1])])]).html()


def test_thumbnail_keeps_the_shape_and_is_twice_the_size_shown(tmp_path: Path) -> None:
    Image.new("RGB", (800, 400), "red").save(tmp_path / "a.png")
    found = thumbnail(tmp_path / "a.png", 50)
    assert found is not None
    image = Image.open(io.BytesIO(base64.b64decode(found.split(",")[1])))
    assert image.size == (100, 50)
    (tmp_path / "b.png").write_bytes(b"no picture")
    assert thumbnail(tmp_path / "b.png", 50) is None
