"""Draws the pictures of ``docs/explained``.

    python -m recipes.documentation.pictures

What is plotted is computed by the library. A test compares the files with what this draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from respodiff.evaluation.metrics.fairness import dev_rat

FOLDER = Path(__file__).parents[2] / "docs" / "explained"
INK, GREY, BLUE, RED = "#222", "#999", "#1f6fb4", "#c0392b"
HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}" font-family="sans-serif" font-size="13">\n'
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0L8 4L0 8z" fill="#222"/></marker></defs>\n<rect width="{w}" height="{h}" fill="#fff"/>\n'
)


def drawing(width: int, height: int, *parts: str) -> str:
    """An SVG on white of so many pixels, of its parts in their order."""
    return HEAD.format(w=width, h=height) + "\n".join(parts) + "\n</svg>\n"


def text(x: float, y: float, words: str, colour: str = INK, anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" fill="{colour}" text-anchor="{anchor}">{words}</text>'


def box(x: float, y: float, width: float, height: float, words: str, colour: str = INK) -> str:
    """A frame with words in its middle."""
    frame = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" fill="none" stroke="{colour}"/>'
    return frame + text(x + width / 2, y + height / 2 + 5, words, colour)


def line(points: Sequence[tuple[float, float]], colour: str = INK, *, tip: bool = False, dashed: bool = False) -> str:
    """A line through points, with an arrow head at its end if ``tip``."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    more = ' marker-end="url(#tip)"' * tip + ' stroke-dasharray="5 4"' * dashed
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{more}/>'


def arrow(*points: tuple[float, float], colour: str = INK) -> str:
    return line(points, colour, tip=True)


def h_space() -> str:
    """The UNet, its bottleneck, and what is added there."""
    return drawing(
        *(720, 230),
        *(text(36, 64, "z, t, prompt"), arrow((82, 60), (110, 60)), box(112, 40, 130, 40, "encoder half")),
        *(arrow((177, 80), (177, 158), (228, 158)), box(230, 138, 100, 40, "mid block"), arrow((330, 158), (398, 158))),
        *(text(364, 150, "h", BLUE), f'<circle cx="410" cy="158" r="11" fill="none" stroke="{BLUE}"/>', text(410, 163, "+", BLUE)),
        *(arrow((410, 206), (410, 171), colour=BLUE), text(424, 212, "r + s, in conditional rows", BLUE, "start")),
        *(arrow((421, 158), (543, 158), (543, 82)), text(486, 150, "h + r + s", BLUE), box(478, 40, 130, 40, "decoder half")),
        *(arrow((242, 60), (476, 60)), text(360, 50, "skip connections, untouched"), arrow((608, 60), (636, 60))),
        text(676, 64, "e(z, y)"),
    )


def ram_and_sam() -> str:
    """Predictions for one latent as points: RAM leads to the target, SAM back to the neutral prompt."""
    start, target, ram, both = (90, 200), (560, 60), (442, 95), (300, 180)
    return drawing(
        *(720, 250),
        line([start, target], GREY, dashed=True),
        *(arrow(start, ram, colour=BLUE), text(180, 100, "RAM: r moves the prediction towards the target", BLUE)),
        *(arrow(ram, both, colour=RED), text(396, 160, "SAM: s holds on to the neutral prompt", RED, "start")),
        *(f'<circle cx="{x}" cy="{y}" r="4" fill="{INK}"/>' for x, y in (start, target, ram, both)),
        *(text(90, 224, "e(z, neutral)"), text(570, 50, "e_tar", anchor="start"), text(448, 84, "e[r](z, neutral)", anchor="end")),
        text(300, 204, "e[r + s](z, neutral)"),
    )


class Axes:
    """A square plot of two shares, both from 0 to 1."""

    left, top, side = 70, 20, 260

    def __init__(self, across: str, up: str) -> None:
        self.across, self.up = across, up

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point."""
        return self.left + x * self.side, self.top + (1 - y) * self.side

    def frame(self) -> list[str]:
        """Frame, ticks and names of the axes."""
        bottom, middle = self.top + self.side, self.top + self.side / 2
        parts = [f'<rect x="{self.left}" y="{self.top}" width="{self.side}" height="{self.side}" fill="none" stroke="{GREY}"/>']
        for tick in (0, 0.25, 0.5, 0.75, 1):
            parts.append(text(self.at(tick, 0)[0], bottom + 18, f"{tick:g}"))
            parts.append(text(self.left - 8, self.at(0, tick)[1] + 5, f"{tick:g}", anchor="end"))
        parts.append(text(self.left + self.side / 2, bottom + 40, self.across))
        return [*parts, f'<g transform="rotate(-90 22 {middle:g})">{text(22, middle, self.up)}</g>']


def devrat() -> str:
    """DevRat of two concepts against the share of one, for two targets."""
    axes, counts = Axes("share of women", "DevRat"), np.arange(0, 101)
    table = np.stack([counts, 100 - counts], -1)
    parts = axes.frame()
    for target, colour, height in ((0.5, BLUE, 120), (0.9, RED, 160)):
        values = dev_rat(table, [target, 1 - target])
        parts.append(line([axes.at(n / 100, v) for n, v in zip(counts, values, strict=True)], colour))
        parts.append(text(350, height, f"target {target:g} women, {1 - target:.1g} men", colour, "start"))
    return drawing(600, 340, *parts)


def judges() -> str:
    """The share that a judge reports against the share that is there, for two judges."""
    axes = Axes("share of women in the images", "share that the judge reports")
    parts = [
        *axes.frame(),
        line([axes.at(0, 0), axes.at(1, 1)], GREY, dashed=True),
        text(350, 100, "a judge without errors", GREY, "start"),
    ]
    for found, wrong, colour, height in ((0.9, 0.1, BLUE, 140), (0.7, 0.05, RED, 180)):
        parts.append(line([axes.at(x, x * found + (1 - x) * wrong) for x in (0.0, 1.0)], colour))
        parts.append(text(350, height, f"sees {found:.0%} of women as women, and {wrong:.0%} of men", colour, "start"))
    return drawing(660, 340, *parts)


PICTURES = {"h-space.svg": h_space, "ram-and-sam.svg": ram_and_sam, "devrat.svg": devrat, "judges.svg": judges}
"""Name of a file of `FOLDER` -> what draws it."""


def main() -> None:
    for name, draw in PICTURES.items():
        (FOLDER / name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
