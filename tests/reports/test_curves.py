"""Trade-off curves: points stand where the numbers are, and nothing overlaps or is lost."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path

import pytest

from respodiff.reports.curves import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Curves, Point, Scale
from respodiff.reports.html import Section, html_report


def test_points_stand_where_the_numbers_are() -> None:
    text = Curves("t", "lost", "DevRat", [("ours", [Point(0.0, 0.6, "0.5", (0.0, 0.1)), Point(0.2, 0.2, "1", y_range=(0.1, 0.3))])]).html()
    first, second = re.findall(r'<g><title>.*?<circle cx="([\d.]+)" cy="([\d.]+)"', text)
    assert (float(first[0]), float(second[0])) == (LEFT, WIDTH - RIGHT)  # 0 and 0.2 are the outer ticks across
    assert (float(first[1]), float(second[1])) == (TOP, HEIGHT - BOTTOM)  # 0.6 and 0.2 those upwards
    assert "ours, 0.5: lost 0.000 [0.000, 0.100], DevRat 0.600" in text and "DevRat 0.200 [0.100, 0.300]" in text
    assert text.count('class="whisker"') == 2 and text.count("<svg") == 1


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.0, 1.0], (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
        ([3.0, 3.0], (3.0, 3.5)),
        ([-12.0, 31.0], (-20.0, -10.0, 0.0, 10.0, 20.0, 30.0, 40.0)),
        ([0.0, 0.0], (0.0, 0.2)),
    ],
)
def test_ticks_are_round_and_hold_all_values(values: list[float], ticks: tuple[float, ...]) -> None:
    scale = Scale.over(values, 0, 1)
    assert scale.ticks == pytest.approx(ticks)
    assert scale.ticks[0] <= min(values) and max(values) <= scale.ticks[-1]


def test_names_of_points_at_one_place_do_not_overlap() -> None:
    many = [(f"method {i}", [Point(0.1, 0.1)]) for i in range(20)]
    text = Curves("t", "x", "y", [*many, ("far", [Point(1.0, 1.0)])]).html()
    ys = sorted(float(y) for y in re.findall(r'class="name" x="[\d.]+" y="([\d.]+)"', text))
    assert len(ys) == 21 and min(b - a for a, b in pairwise(ys)) > 14
    assert max(ys) <= HEIGHT - BOTTOM + 5


def test_long_names_get_room_beside_the_plot() -> None:
    def width(name: str) -> float:
        text = Curves("t", "x", "y", [(name, [Point(0.1, 0.1), Point(0.2, 0.2)])]).html()
        assert f'x1="{WIDTH - RIGHT}.0"' in text  # the last line of the grid
        found = re.search(r'viewBox="0 0 (\d+) ', text)
        assert found
        return float(found[1])

    assert width("slider") == WIDTH
    assert width("RAM and SAM, lambda 0.5, and more") >= WIDTH - RIGHT + 32 + 33 * 6


def test_unknown_points_and_names_with_signs(tmp_path: Path) -> None:
    text = Curves("a < b", "x", "y", [("<b>", [Point(math.nan, 1.0), Point(0.5, 0.5)])]).html()
    assert "&lt;b&gt;" in text and "<b>" not in text and text.count("<title>") == 1
    assert "Nothing to show" in Curves("t", "x", "y", [("a", [Point(math.nan, 0.0)])]).html()
    page = html_report(
        tmp_path / "p.html", title="t", lead="l", sections=[Section("Trade-off", parts=[Curves("t", "x", "y", [("a", [Point(0, 0)])])])]
    )
    assert ".curves svg" in page.read_text()
