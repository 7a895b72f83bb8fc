"""Trade-off curves as inline SVG: two figures against each other, a line a method over its scales. No script; readable in the dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 62, 150, 18, 48
LETTER = 6.6  # width of a letter of 12 px, on average
MARKS = 6  # shapes: circle, square, diamond, triangle, cross, ring


@dataclass(frozen=True)
class Point:
    """One setting of a method: where it lies, its intervals (None where not known), and its name (such as the scale)."""

    x: float
    y: float
    name: str = ""
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Curves:
    """Lines of points.

    Attributes:
        title: what is shown, and which corner is best. x_label, y_label: the two figures.
        series: (method, its points in the order of its scales). Non-finite points are left out.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[tuple[str, Sequence[Point]]]

    def html(self) -> str:
        """A figure; every point says its numbers when it is pointed at, and the table beside the chart has them all."""
        lines = [(name, [p for p in points if math.isfinite(p.x) and math.isfinite(p.y)]) for name, points in self.series]
        shown = [p for _, points in lines for p in points]
        if not shown:
            return f'<figure class="chart"><figcaption>{escape(self.title)}</figcaption><p>Nothing to show yet.</p></figure>'
        across = Scale.over([p.x for p in shown], LEFT, WIDTH - RIGHT)
        up = Scale.over([p.y for p in shown], HEIGHT - BOTTOM, TOP)
        body = self._axes(across, up)
        body += [self._line(i, name, points, across, up) for i, (name, points) in enumerate(lines) if points]
        body += _names([(i, name, across(points[-1].x), up(points[-1].y)) for i, (name, points) in enumerate(lines) if points])
        text = f"{self.title}. Across: {self.x_label}. Up: {self.y_label}."
        longest = max(len(name) for name, points in lines if points)
        width = WIDTH + max(0, round(LETTER * longest) + 36 - RIGHT)  # long names get room, the plot stays as it is
        return (
            f'<figure class="chart curves"><figcaption>{escape(self.title)}</figcaption>\n'
            f'<svg viewBox="0 0 {width} {HEIGHT}" role="img" aria-label="{escape(text)}">\n' + "\n".join(body) + "\n</svg></figure>"
        )

    def _axes(self, across: Scale, up: Scale) -> list[str]:
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        out = [f'<line class="grid" x1="{across(v):.1f}" y1="{TOP}" x2="{across(v):.1f}" y2="{bottom}"/>' for v in across.ticks]
        out += [f'<line class="grid" x1="{LEFT}" y1="{up(v):.1f}" x2="{right}" y2="{up(v):.1f}"/>' for v in up.ticks]
        out += [f'<text x="{across(v):.1f}" y="{bottom + 16}" text-anchor="middle">{across.word(v)}</text>' for v in across.ticks]
        out += [f'<text x="{LEFT - 7}" y="{up(v) + 4:.1f}" text-anchor="end">{up.word(v)}</text>' for v in up.ticks]
        middle = (TOP + bottom) / 2
        out.append(f'<text class="label" x="{(LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(self.x_label)}</text>')
        out.append(f'<text class="label" transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{escape(self.y_label)}</text>')
        return out

    def _line(self, i: int, name: str, points: Sequence[Point], across: Scale, up: Scale) -> str:
        places = [(across(p.x), up(p.y)) for p in points]
        path = " ".join(f"{'M' if k == 0 else 'L'}{x:.1f} {y:.1f}" for k, (x, y) in enumerate(places))
        out = [f'<path d="{path}"/>'] if len(points) > 1 else []
        for p, (x, y) in zip(points, places, strict=True):
            if p.x_range:
                a, b = map(across, p.x_range)
                out.append(f'<line class="whisker" x1="{a:.1f}" y1="{y:.1f}" x2="{b:.1f}" y2="{y:.1f}"/>')
            if p.y_range:
                a, b = map(up, p.y_range)
                out.append(f'<line class="whisker" x1="{x:.1f}" y1="{a:.1f}" x2="{x:.1f}" y2="{b:.1f}"/>')
            words = (
                f"{name}{f', {p.name}' if p.name else ''}: {self.x_label} {_range(p.x, p.x_range)}, {self.y_label} {_range(p.y, p.y_range)}"
            )
            out.append(f"<g><title>{escape(words)}</title>{mark(i, x, y)}</g>")
        return f'<g class="k{i % MARKS}">' + "".join(out) + "</g>"


def _range(value: float, ends: tuple[float, float] | None) -> str:
    return f"{value:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")


@dataclass(frozen=True)
class Scale:
    """Values to pixels, with round ticks.

    >>> s = Scale.over([0.1, 0.72], 0, 100)
    >>> s.ticks, s(s.ticks[0]), s(s.ticks[-1])
    ((0.0, 0.2, 0.4, 0.6, 0.8), 0.0, 100.0)
    """

    ticks: tuple[float, ...]
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> Scale:
        """A scale that holds all values between ticks of 1, 2 or 5 times a power of ten, about five of them."""
        low, high = min(values), max(values)
        span = (high - low) or abs(high) or 1.0
        rough = span / 4
        power = 10.0 ** math.floor(math.log10(rough))
        step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(s - rough))
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        return cls(tuple(round(k * step, 12) for k in range(first, max(last, first + 1) + 1)), start, end)

    def __call__(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        share = min(max((value - low) / (high - low), -0.03), 1.03)  # a whisker may leave the chart, but not the page
        return self.start + share * (self.end - self.start)

    def word(self, value: float) -> str:
        """A tick's number with as many digits as the step has."""
        step = self.ticks[1] - self.ticks[0]
        return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def mark(i: int, x: float, y: float) -> str:
    """The mark of the i-th series: shapes differ, so that colours need not be distinguished."""
    r = 4.5
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>',
        f'<rect x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r}" height="{2 * r}"/>',
        f'<path class="full" d="M{x:.1f} {y - 1.4 * r:.1f}l{1.4 * r:.1f} {1.4 * r:.1f}l{-1.4 * r:.1f} {1.4 * r:.1f}l{-1.4 * r:.1f} {-1.4 * r:.1f}z"/>',
        f'<path class="full" d="M{x:.1f} {y - 1.3 * r:.1f}l{1.2 * r:.1f} {2.2 * r:.1f}h{-2.4 * r:.1f}z"/>',
        f'<path class="cross" d="M{x - r:.1f} {y - r:.1f}l{2 * r} {2 * r}m0 {-2 * r}l{-2 * r} {2 * r}"/>',
        f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>',
    )
    return shapes[(i + i // MARKS) % MARKS]


def _names(ends: Sequence[tuple[int, str, float, float]]) -> list[str]:
    """Names of the series at the right, moved apart where they would overlap, each with its mark and a line to its last point."""
    room, out = 15.0, []
    rows = sorted(ends, key=lambda e: e[3])
    ys: list[float] = []
    for _, _, _, y in rows:
        ys.append(max(y, ys[-1] + room) if ys else max(y, TOP + 6.0))
    over = ys[-1] - (HEIGHT - BOTTOM)
    if over > 0:  # pushed out at the bottom: push the crowd up again
        ys[-1] -= over
        for k in range(len(ys) - 2, -1, -1):
            ys[k] = min(ys[k], ys[k + 1] - room)
    x = WIDTH - RIGHT + 22
    for (i, name, end_x, end_y), y in zip(rows, ys, strict=True):
        out.append(
            f'<g class="k{i % MARKS}"><path class="lead" d="M{end_x + 6:.1f} {end_y:.1f}L{x - 8:.1f} {y:.1f}"/>{mark(i, x, y)}'
            f'<text class="name" x="{x + 10}" y="{y + 4:.1f}">{escape(name)}</text></g>'
        )
    return out


CSS = """
.curves svg { width: 100%; max-width: 52rem; height: auto; font: 12px system-ui, sans-serif; overflow: visible; }
.curves text { fill: var(--quiet); }
.curves .label, .curves .name { fill: var(--ink); }
.curves .grid { stroke: var(--rule); stroke-width: 1; }
.curves path { fill: none; stroke: var(--c); stroke-width: 2; }
.curves .whisker { stroke: var(--c); stroke-width: 1.5; opacity: .45; }
.curves circle, .curves rect, .curves .full { fill: var(--c); stroke: none; }
.curves .ring { fill: var(--paper); stroke: var(--c); stroke-width: 2; }
.curves .lead { stroke-width: 1; stroke-dasharray: 2 3; opacity: .6; }
"""
