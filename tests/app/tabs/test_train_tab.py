"""The tab Train says how far a module is on its way to the goal."""

from __future__ import annotations

import pytest

from respodiff.app.trainings import Progress

pytest.importorskip("gradio", reason="needs the extra app")
from respodiff.app.tabs.train_tab import _plot, reached


@pytest.mark.parametrize(
    ("effects", "said"),
    [
        ([(10, 2.7)], "reached 3 % of the goal; train longer"),
        ([(10, 2.7), (20, 100.0)], "reached 100 % of the goal"),
        ([(10, -5.0)], "reached 0 % of the goal, as it leads away from it; train longer"),
        ([(10, 49.0)], "reached 49 % of the goal; train longer"),
        ([(10, 50.0)], "reached 50 % of the goal"),
        ([(10, 60.0)], "reached 60 % of the goal"),
        ([], "is kept, and has no effect that can be measured"),
    ],
)
def test_how_far_it_is(effects: list[tuple[int, float]], said: str) -> None:
    assert reached(Progress(effects[-1][0] if effects else 10, effects=effects)) == said


def test_the_effect_of_an_earlier_iteration_is_not_said() -> None:
    assert reached(Progress(15, effects=[(10, 60.0)])) == reached(Progress(15))


def test_the_chart_reaches_from_0_to_the_goal() -> None:
    plot = _plot(Progress(iterations=20, effects=[(10, 2.7)]))
    assert plot.y_lim == [0, 100] and ["goal", 100.0] in [[row[2], row[1]] for row in plot.value["data"]]
