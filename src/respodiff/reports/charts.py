"""Charts and image strips as plain HTML and CSS: no script, readable on a phone, in the dark, and without colours distinguished by eye."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from PIL import Image

from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.evaluation.score_files import open_image

# Okabe and Ito's colours: distinguished with every common form of colour blindness. Marks differ as well.
COLOURS = ("#e69f00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")


@dataclass(frozen=True)
class Dots:
    """Shares in 0..1 with intervals: a row a group, a line a series.

    Attributes:
        title: what the values are. series: names of the runs, first to last.
        rows: (group, series -> estimate, or None where it is not known).
        target: where the dashed line stands (the wanted share), or None; a mapping gives every group its own.
    """

    title: str
    series: Sequence[str]
    rows: Sequence[tuple[str, Mapping[str, Estimate | None]]]
    target: float | Mapping[str, float] | None = None

    def html(self) -> str:
        marks = "".join(f'<span class="key k{i % len(COLOURS)}"></span>{escape(name)} ' for i, name in enumerate(self.series))
        words = f"wanted {self.target:.2f}" if isinstance(self.target, float | int) else "wanted, by group"
        wanted = "" if self.target is None else f'<span class="dash"></span>{words}'
        body = "\n".join(self._row(label, values) for label, values in self.rows)
        return (
            f'<figure class="chart"><figcaption>{escape(self.title)}<br>{marks}{wanted}</figcaption>\n{body}\n'
            '<div class="row axis"><span class="name"></span><div class="tracks"><span>0</span><span>.25</span><span>.5</span>'
            "<span>.75</span><span>1</span></div></div></figure>"
        )

    def _row(self, label: str, values: Mapping[str, Estimate | None]) -> str:
        target = self.target.get(label) if isinstance(self.target, Mapping) else self.target
        line = "" if target is None else f'<i class="wanted" style="left:{target:.2%}"></i>'
        tracks = "".join(self._track(i, name, values.get(name)) for i, name in enumerate(self.series))
        return f'<div class="row"><span class="name">{escape(label)}</span><div class="tracks">{line}{tracks}</div></div>'

    @staticmethod
    def _track(i: int, name: str, e: Estimate | None) -> str:
        if e is None:
            return f'<div class="track" title="{escape(name)}: not known"></div>'
        if not 0 <= e.low <= e.high <= 1:
            raise ValueError(f"a dot chart shows shares in 0..1, got {name} {e.mean} [{e.low}, {e.high}]")
        text = escape(f"{name}: {e.mean:.2f} [{e.low:.2f}, {e.high:.2f}], n = {e.n}")
        kind = f"k{i % len(COLOURS)}"
        return (
            f'<div class="track" title="{text}"><i class="whisker {kind}" style="left:{e.low:.2%};width:{e.high - e.low:.2%}"></i>'
            f'<i class="dot {kind}" style="left:{e.mean:.2%}"></i><span class="value">{e.mean:.2f}</span></div>'
        )


@dataclass(frozen=True)
class Stacks:
    """Shares of several concepts that sum to 1: a row a group, a bar a series, a colour a concept.

    Attributes:
        rows: (group, series -> share of each concept in their order, or None).
    """

    title: str
    series: Sequence[str]
    concepts: Sequence[str]
    rows: Sequence[tuple[str, Mapping[str, Sequence[float] | None]]]

    def html(self) -> str:
        marks = "".join(f'<span class="key k{i % len(COLOURS)}"></span>{escape(name)} ' for i, name in enumerate(self.concepts))
        order = f"<br>from top to bottom: {escape(', '.join(self.series))}" if len(self.series) > 1 else ""
        body = "\n".join(self._row(label, values) for label, values in self.rows)
        return f'<figure class="chart"><figcaption>{escape(self.title)}<br>{marks}{order}</figcaption>\n{body}</figure>'

    def _row(self, label: str, values: Mapping[str, Sequence[float] | None]) -> str:
        bars = "".join(self._bar(name, values.get(name)) for name in self.series)
        return f'<div class="row"><span class="name">{escape(label)}</span><div class="tracks stacks">{bars}</div></div>'

    def _bar(self, name: str, proportions: Sequence[float] | None) -> str:
        if proportions is None:
            return f'<div class="stack" title="{escape(name)}: not known"></div>'
        words = ", ".join(f"{c} {share:.2f}" for c, share in zip(self.concepts, proportions, strict=True))
        parts = "".join(f'<i class="k{i % len(COLOURS)}" style="width:{share:.2%}"></i>' for i, share in enumerate(proportions))
        return f'<div class="stack" title="{escape(name)}: {escape(words)}">{parts}</div>'


@dataclass(frozen=True)
class Shot:
    """One image of a gallery: its file (None for a hole), the words under it, and whether it is veiled until the reader asks."""

    path: Path | None
    caption: str = ""
    veiled: bool = False


@dataclass(frozen=True)
class Gallery:
    """Strips of images generated from the same noise: for every prompt one strip a run, columns side by side.

    Attributes:
        rows: (prompt, [(run, images), ...]).
    """

    rows: Sequence[tuple[str, Sequence[tuple[str, Sequence[Shot]]]]] = field(default_factory=tuple)
    side: int = 96

    def html(self) -> str:
        veil = any(shot.veiled for _, strips in self.rows for _, shots in strips for shot in shots)
        ask = (
            '<label class="veil"><input type="checkbox"> show images of unsafe prompts, and those that a judge flagged</label>\n'
            if veil
            else ""
        )
        return f'<div class="gallery">{ask}' + "\n".join(self._prompt(text, strips) for text, strips in self.rows) + "</div>"

    def _prompt(self, text: str, strips: Sequence[tuple[str, Sequence[Shot]]]) -> str:
        body = "".join(
            f'<div class="strip"><span class="run">{escape(run)}</span><div class="shots">{"".join(map(self._shot, shots))}</div></div>'
            for run, shots in strips
        )
        return f'<div class="prompt"><h3>{escape(text)}</h3>{body}</div>'

    def _shot(self, shot: Shot) -> str:
        words = escape(shot.caption)
        kind = ' class="veiled"' if shot.veiled else ""
        if shot.path is None:
            return f'<figure><div class="hole"></div><figcaption>{words}</figcaption></figure>'
        if (source := thumbnail(shot.path, self.side)) is None:
            return f'<figure><div class="hole">unreadable</div><figcaption>{words}</figcaption></figure>'
        return f'<figure{kind}><img alt="{words or "picture"}" src="{source}" width="{self.side}" height="{self.side}"><figcaption>{words}</figcaption></figure>'


def thumbnail(path: Path, side: int) -> str | None:
    """An image as a small WebP data URL, or None if it cannot be read."""
    if (image := open_image(path)) is None:
        return None
    image.thumbnail((2 * side, 2 * side), Image.Resampling.LANCZOS)  # twice the size shown, for fine screens
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


CSS = (
    "".join(f".k{i} {{ --c: {colour}; }}\n" for i, colour in enumerate(COLOURS))
    + """
.chart { margin: 1rem 0; }
.chart figcaption, .legend { color: var(--quiet); font-size: .9rem; margin-bottom: .4rem; }
.row { display: grid; grid-template-columns: 11rem 1fr; gap: .7rem; align-items: center; padding: .12rem 2.6rem .12rem 0; }
.row .name { text-align: right; font-size: .88rem; overflow-wrap: anywhere; line-height: 1.2; }
.tracks { position: relative; background: linear-gradient(90deg, var(--rule) 1px, transparent 1px) 0 0 / 25% 100%; border-right: 1px solid var(--rule); }
.track { position: relative; height: .8rem; }
.track .whisker { position: absolute; top: calc(50% - 1px); height: 2px; background: var(--c); opacity: .55; min-width: 1px; }
.track .dot { position: absolute; top: 50%; width: .62rem; height: .62rem; margin: -.31rem 0 0 -.31rem; border-radius: 50%; background: var(--c); }
.track .dot.k1 { border-radius: 1px; }
.track .dot.k2 { border-radius: 1px; transform: rotate(45deg); }
.track .value { position: absolute; left: calc(100% + .45rem); top: -.1rem; font-size: .72rem; color: var(--quiet); font-variant-numeric: tabular-nums; }
.wanted { position: absolute; top: 0; bottom: 0; border-left: 2px dashed var(--ink); opacity: .5; }
.axis .tracks { display: flex; justify-content: space-between; background: none; border: 0; font-size: .72rem; color: var(--quiet); }
.axis .tracks span { width: 0; display: flex; justify-content: center; }
.stacks { background: none; border: 0; display: grid; gap: 2px; }
.stack { display: flex; height: .62rem; background: var(--card); border-radius: 2px; overflow: hidden; }
.stack i { background: var(--c); }
.key { display: inline-block; width: .8em; height: .8em; margin: 0 .35em 0 .6em; background: var(--c); border-radius: 50%; vertical-align: -.05em; }
.key.k1 { border-radius: 1px; }
.key.k2 { border-radius: 1px; transform: rotate(45deg) scale(.85); }
.dash { display: inline-block; width: 1.2em; border-top: 2px dashed var(--ink); opacity: .5; margin: 0 .35em 0 .8em; vertical-align: .25em; }
.gallery .prompt { border-top: 1px solid var(--rule); padding: .5rem 0; }
.gallery h3 { font-size: .98rem; margin: 0 0 .3rem; font-weight: 600; }
.strip { display: grid; grid-template-columns: 8rem 1fr; gap: .7rem; margin-bottom: .35rem; }
.strip .run { font-size: .85rem; color: var(--quiet); text-align: right; padding-top: .2rem; overflow-wrap: anywhere; }
.shots { display: flex; gap: .35rem; overflow-x: auto; }
.shots figure { margin: 0; flex: none; }
.shots img, .hole { display: block; border-radius: 5px; background: #fff; }
.hole { width: 96px; height: 96px; display: grid; place-items: center; background: var(--card); color: var(--quiet); font-size: .75rem; }
.shots figcaption { font-size: .7rem; color: var(--quiet); text-align: center; max-width: 96px; line-height: 1.25; }
.veiled img { filter: blur(14px) saturate(.4); }
.gallery:has(.veil input:checked) .veiled img { filter: none; }
@media (prefers-color-scheme: dark) { .k1 { --c: #3f9be0; } }
@media (max-width: 40rem) {
  .row { grid-template-columns: 1fr; gap: 0; }
  .row .name { text-align: left; }
  .axis .name { display: none; }
  .strip { grid-template-columns: 1fr; gap: .15rem; }
  .strip .run { text-align: left; }
}
"""
)
