"""Charts: positions follow the numbers, and nothing overlaps or is lost."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest

from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.reports.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Curves, Dots, Point, Scale, Stacks, style


def test_dots_and_whiskers_stand_where_the_numbers_are() -> None:
    rows = [("doctor", {"before": Estimate(0.25, 0.1, 0.4, 12), "after": Estimate(0.5, 0.3, 0.7, 12)}), ("nurse", {"before": None})]
    text = Dots("share of women", ["before", "after"], rows, target=0.5).html()
    assert re.findall(r'<svg class="mark k(\d)" viewBox="[^"]+" style="left:([\d.]+)%"', text) == [("0", "25.00"), ("1", "50.00")]
    assert re.findall(r'class="whisker k0" style="left:([\d.]+)%;width:([\d.]+)%"', text) == [("10.00", "30.00")]
    assert text.count('class="wanted" style="left:50.00%"') == 2 and "wanted 0.500" in text
    assert "before: 0.250 [0.100, 0.400], n = 12" in text and ">0.250 (12)<" in text and text.count("not known") == 2
    assert "wanted" not in Dots("t", ["a"], [("x", {"a": None})]).html()
    own = Dots("t", ["a"], [("x", {"a": None}), ("y", {"a": None})], target={"x": 0.25}).html()
    assert "wanted, by group" in own and re.findall(r'class="wanted" style="left:([\d.]+)%"', own) == ["25.00"]


def test_a_wanted_share_of_a_run_is_in_its_own_line() -> None:
    runs, wanted = {"a": Estimate(0.5, 0.4, 0.6, 9), "b": None}, {"a": 0.5, "b": 0.75}
    text = Dots("t", ["a", "b"], [("x", runs), ("y", runs)], target={"x": wanted, "y": wanted}).html()
    lines = re.findall(r'class="track" title="(\w)[^>]*><i class="wanted" style="left:([\d.]+)%"', text)
    assert lines == [("a", "50.00"), ("b", "75.00")] * 2 and text.count('class="wanted"') == 4 and "wanted, by run<" in text
    mixed = Dots("t", ["a", "b"], [("x", runs), ("y", runs)], target={"x": wanted, "y": 0.25}).html()
    assert mixed.count('class="wanted"') == 3 and "wanted, by group and run<" in mixed


def test_stacks_add_up() -> None:
    text = Stacks("tone", ["plain", "ours"], ["light", "medium", "dark"], [("doctor", {"plain": [0.5, 0.25, 0.25], "ours": None})]).html()
    assert re.findall(r'<i class="k(\d)" style="width:([\d.]+)%"', text) == [("0", "50.00"), ("1", "25.00"), ("2", "25.00")]
    assert "plain: light 0.500, medium 0.250, dark 0.250" in text and "ours: not known" in text
    assert "from top to bottom: plain, ours" in text


def test_no_two_of_ten_series_look_alike() -> None:
    styles = [style(i) for i in range(10)]
    assert len({s["colour"] for s in styles}) == 8 and len({(s["colour"], s["dash"]) for s in styles}) == 10
    assert len({(s["colour"], s["mark"]) for s in map(style, range(48))}) == 48


def test_points_stand_where_the_numbers_are() -> None:
    points = [Point(0.0, 0.6, "0.5"), Point(0.2, 0.0, "1", (0.0, 0.3))]
    text = Curves("t", "lost", "DevRat", [("ours", points)]).html()
    places = [(float(x), float(y)) for x, y in re.findall(r'</title><path class="mark" transform="translate\(([\d.]+) ([\d.]+)\)"', text)]
    # 0 and 0.2 are the outer ticks across, 0.6 and 0 those upwards
    assert places == [(LEFT, TOP), (WIDTH - RIGHT, HEIGHT - BOTTOM)]
    assert "ours, 0.5: lost 0.000, DevRat 0.600" in text and "DevRat 0.000 [0.000, 0.300]" in text
    assert text.count('class="whisker"') == 1 and text.count("<svg") == 1 and "&#8601; better" in text
    far = Curves("t", "lost", "DevRat", [("ours", [Point(0.5, 0.6), Point(0.6, 0.5)])]).html()
    assert f'y="{HEIGHT - BOTTOM + 4}.0" text-anchor="end">0.0<' in far, "0 is on both axes"


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
    scale = Scale(values, 0, 1)
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


def test_unknown_points_are_left_out() -> None:
    text = Curves("t", "x", "y", [("a", [Point(math.nan, 1.0), Point(0.5, 0.5)]), ("b", [Point(0.1, math.nan)])]).html()
    assert text.count("<title>") == 1 and ">b</text>" not in text
    assert "Nothing to show" in Curves("t", "x", "y", [("a", [Point(math.nan, 0.0)])]).html()
