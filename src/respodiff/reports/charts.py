"""Charts as inline HTML and SVG: shares with intervals, proportions that sum to 1, and two quantities against each other.

Colours and marks both differ between series, so that no reader has to tell colours apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.reports.html import render
from respodiff.reports.tables import number

COLOURS, DASHES = 8, 3
"""Colours (``.k0`` to ``.k7``) and dash patterns (``.d0`` to ``.d2``) of templates/style.css."""
MARKS = (
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0z",  # circle
    "M-4.5-4.5h9v9h-9z",  # square
    "M0-6l6 6l-6 6l-6-6z",  # diamond
    "M0-5.8l5.4 9.8h-10.8z",  # triangle
    "M0 5.8l5.4-9.8h-10.8z",  # triangle, pointing down
    "M-2-5.5h4v3.5h3.5v4h-3.5v3.5h-4v-3.5h-3.5v-4h3.5z",  # plus
)
WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 62, 150, 18, 48
LETTER, LINE = 6.6, 15.0  # mean width of a letter of 12 px, and height of a line of names


def style(i: int) -> dict[str, Any]:
    """Colour, dash pattern and mark of the i-th series; no two of the first 48 are alike in colour and mark."""
    return {
        "colour": f"k{i % COLOURS}",
        "dash": f"d{i // COLOURS % DASHES}",
        "mark": MARKS[(i + i // (3 * COLOURS)) % len(MARKS)],
        "open": i // COLOURS % 2 == 1,
    }


@dataclass(frozen=True)
class Dots:
    """Shares in 0..1 with intervals: a row a group, a line a series.

    Attributes:
        series: Names of the runs. rows: (group, series -> estimate, or None where it is not known).
        target: The wanted share, shown as a dashed line, or None. A mapping gives every group its own; a mapping in it, every series.
    """

    title: str
    series: Sequence[str]
    rows: Sequence[tuple[str, Mapping[str, Estimate | None]]]
    target: float | Mapping[str, float | Mapping[str, float]] | None = None

    def html(self) -> Markup:
        """The chart."""
        return render("dots.html.j2", chart=self, styles=[style(i) for i in range(len(self.series))], wanted=self._wanted())

    def _wanted(self) -> str:
        """What the dashed lines are, in words."""
        if not isinstance(self.target, Mapping):
            return "" if self.target is None else f"wanted {number(float(self.target))}"
        own = list(self.target.values())
        by_run = any(isinstance(share, Mapping) for share in own)
        by_group = not by_run or any(share != own[0] for share in own)
        return f"wanted, by {' and '.join(['group'] * by_group + ['run'] * by_run)}"


@dataclass(frozen=True)
class Stacks:
    """Shares of several concepts that sum to 1: a row a group, a bar a series, a colour a concept.

    Attributes:
        series: Names of the runs. rows: (group, series -> share of each concept in their order, or None).
    """

    title: str
    series: Sequence[str]
    concepts: Sequence[str]
    rows: Sequence[tuple[str, Mapping[str, Sequence[float] | None]]]

    def html(self) -> Markup:
        """The chart."""
        return render("stacks.html.j2", chart=self, styles=[style(i) for i in range(len(self.concepts))])


@dataclass(frozen=True)
class Point:
    """One setting of a method: where it lies, its name (such as the scale), and the interval of y (None where not known)."""

    x: float
    y: float
    name: str = ""
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Curves:
    """Two quantities whose best value is 0 against each other: a line a method over its scales. Non-finite points are left out.

    Attributes:
        series: (method, its points in the order of its scales).
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[tuple[str, Sequence[Point]]]

    def html(self) -> Markup:
        """The plot; every point says its numbers when it is pointed at."""
        finite = [(i, name, [p for p in points if math.isfinite(p.x + p.y)]) for i, (name, points) in enumerate(self.series)]
        known = [row for row in finite if row[2]]
        if not known:
            return render("curves.html.j2", chart=self, lines=[])
        across = Scale([0.0, *(p.x for *_, points in known for p in points)], LEFT, WIDTH - RIGHT)
        up = Scale([0.0, *(p.y for *_, points in known for p in points)], HEIGHT - BOTTOM, TOP)
        heights = spread([up(points[-1].y) for *_, points in known])
        lines = []
        for (i, name, points), height in zip(known, heights, strict=True):
            places = [(round(across(p.x), 1), round(up(p.y), 1), self._words(name, p)) for p in points]
            ends = [(round(across(p.x), 1), *(round(up(end), 1) for end in p.interval)) for p in points if p.interval]
            lines.append({"name": name, "style": style(i), "points": places, "whiskers": ends, "name_y": round(height, 1)})
        longest = max(len(name) for _, name, _ in known)
        frame = {"left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM, "height": HEIGHT}
        frame["width"] = WIDTH + max(0, round(LETTER * longest) + 36 - RIGHT)
        return render("curves.html.j2", chart=self, lines=lines, across=across.labels(), up=up.labels(), **frame)

    def _words(self, name: str, p: Point) -> str:
        y = number(p.y) + (f" [{number(p.interval[0])}, {number(p.interval[1])}]" if p.interval else "")
        return f"{name}{', ' * bool(p.name)}{p.name}: {self.x_label} {number(p.x)}, {self.y_label} {y}"


class Scale:
    """Values to pixels; all values lie between ticks of 1, 2 or 5 times a power of ten, about five of them."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        rough = ((high - low) or abs(high) or 1.0) / 4
        power = 10.0 ** math.floor(math.log10(rough))
        step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(s - rough))
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        self.ticks = [round(k * step, 12) for k in range(first, max(last, first + 1) + 1)]
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        share = min(max((value - low) / (high - low), -0.03), 1.03)  # a whisker may leave the plot, but not the page
        return self.start + share * (self.end - self.start)

    def labels(self) -> list[tuple[float, str]]:
        """Pixel and number of every tick, with as many digits as the step has."""
        digits = max(0, -math.floor(math.log10(self.ticks[1] - self.ticks[0]) + 1e-9))
        return [(round(self(value), 1), f"{value:.{digits}f}") for value in self.ticks]


def spread(heights: Sequence[float]) -> list[float]:
    """Heights of the names beside the plot: those of the last points, moved apart where names would overlap.

    >>> spread([100.0, 300.0, 100.0, 392.0, 391.0])
    [100.0, 300.0, 115.0, 392.0, 377.0]
    """
    order, room = np.argsort(heights, kind="stable"), LINE * np.arange(len(heights))
    lowered = np.maximum.accumulate(np.maximum(heights, TOP + 6.0)[order] - room)  # each at least a line below the one above it
    ys = np.empty(len(heights))
    ys[order] = np.minimum(lowered, HEIGHT - BOTTOM - room[-1]) + room  # and the crowd is pushed up again from the bottom
    return [float(y) for y in ys]
