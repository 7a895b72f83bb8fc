"""Images of a report: galleries and sheets: sizes, words, holes."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from respodiff.reports.images import Gallery, Tile, asked_and_seen, image_grid

RED, BLUE = (255, 0, 0), (0, 0, 255)


def square(colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (128, 128), colour)


def count(sheet: Image.Image, colour: tuple[int, int, int]) -> int:
    return sum(n for n, c in sheet.getcolors(sheet.width * sheet.height) if c == colour)


def test_grid_holds_every_image_at_full_size(tmp_path: Path) -> None:
    square(BLUE).save(tmp_path / "blue.png")
    rows = [("doctor", [square(RED), square(RED), tmp_path / "blue.png"]), ("nurse", [square(RED)])]
    path = image_grid(rows, tmp_path / "deep" / "grid.png", columns=[("before", 2), ("after", 1)], thumb=64)
    sheet = Image.open(path).convert("RGB")
    assert count(sheet, RED) == 3 * 64 * 64
    assert count(sheet, BLUE) == 64 * 64
    assert sheet.getpixel((0, 0)) == (255, 255, 255)


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as sheet:
        return sheet.size


def test_grid_words_make_room(tmp_path: Path) -> None:
    rows, two = [("doctor", [square(RED)] * 4)], [("before", 2), ("after", 2)]
    bare = size(image_grid(rows, tmp_path / "a.png"))
    full = size(image_grid(rows, tmp_path / "b.png", columns=two, title="A title", footer="word " * 60))
    assert full[0] > bare[0] and full[1] > bare[1] + 60
    short = size(image_grid([("x", [square(RED)])], tmp_path / "c.png"))
    assert size(image_grid([("a much longer label", [square(RED)])], tmp_path / "d.png"))[0] > short[0] + 60


def test_grid_says_when_an_image_cannot_be_read(tmp_path: Path) -> None:
    path = image_grid([("doctor", [tmp_path / "absent.png", square(RED)])], tmp_path / "grid.png", thumb=64)
    assert count(Image.open(path).convert("RGB"), RED) == 64 * 64


def test_grid_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give at least one image"):
        image_grid([("doctor", [])], tmp_path / "grid.png")
    with pytest.raises(ValueError, match="rows have up to 0 images"):
        image_grid([], tmp_path / "grid.png")
    with pytest.raises(ValueError, match="rows have up to 2 images, columns hold 1"):
        image_grid([("doctor", [square(RED)] * 2)], tmp_path / "grid.png", columns=[("before", 1)])


def test_gallery_veils_and_says_what_cannot_be_read(tmp_path: Path) -> None:
    Image.new("RGB", (300, 200), "red").save(tmp_path / "a.png")
    tiles = [Tile(tmp_path / "a.png", "woman"), Tile(tmp_path / "a.png", veiled=True), Tile(tmp_path / "absent.png"), Tile(None, "hole")]
    text = Gallery([("a doctor", [("plain", tiles)])]).html()
    assert text.count("data:image/webp;base64,") == 2 and text.count('class="veiled"') == 1 and text.count("unreadable") == 1
    assert text.count('class="hole"') == 2
    assert "show images of unsafe prompts" in text
    assert "show images of unsafe prompts" not in Gallery([("a doctor", [("plain", tiles[:1])])]).html()


def test_thumbnail_keeps_the_shape_and_is_twice_the_size_shown(tmp_path: Path) -> None:
    Image.new("RGB", (800, 400), "red").save(tmp_path / "a.png")
    found = Tile(tmp_path / "a.png").thumbnail(50)
    assert found is not None
    image = Image.open(io.BytesIO(base64.b64decode(found.split(",")[1])))
    assert image.size == (100, 50)
    (tmp_path / "b.png").write_bytes(b"no image")
    assert Tile(tmp_path / "b.png").thumbnail(50) is None and Tile(None).thumbnail(50) is None


@pytest.mark.parametrize(
    ("asked", "seen", "said"),
    [
        ("", "man", "man"),
        ("woman", "woman", "woman"),
        ("woman", "man", "asked woman, seen man"),
        ("woman", "", "asked woman"),
        ("", "", ""),
    ],
)
def test_a_caption_is_what_is_seen(asked: str, seen: str, said: str) -> None:
    assert asked_and_seen(asked, seen) == said
