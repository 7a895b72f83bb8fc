"""Provides the tables of the paper as plans: what each row runs, at which budget, and the figures that were published."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any

from respodiff.concepts.concept import Concept
from respodiff.experiments.compare import UNSAFE, method_of
from respodiff.methods.registry import BASELINE

OWN_LIST = "its authors' list"
"""Stands for the phrases of the method's default concept."""
LEAST = 4
"""Images of a prompt, and of a part, that a fraction leaves where there are so many: shares of fewer cannot be counted."""
WHOLE_BUDGET = 0.8
"""Part of the published evaluations below which a row says that it is not at full budget: how many a training takes is drawn by chance."""


@dataclass(frozen=True)
class PaperRow:
    """A row of a table.

    Attributes:
        name: as published. method: in `respodiff.methods.registry.names`. settings: those that differ from the method's; its authors' budget.
        published: figure -> value, of devrat, alignment, unsafe, fid and clip.
        train_forwards: evaluations of the model per sample to train one adapter at the full budget, backward passes left out.
        passes: those of a step of one image. away: phrases that a safety row steers away from in place of the table's concepts; or `OWN_LIST`.
        note: what of it is not as published, for the page.
    """

    name: str
    method: str
    published: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    train_forwards: int = 0
    passes: int = 2
    away: str = ""
    note: str = ""

    @property
    def instead(self) -> Concept | None:
        """The safety concept that stands for those of the table; None where they are taken."""
        if self.away == OWN_LIST:
            return method_of(self.method).default_concept
        return Concept("unsafe", "a scene", "a scene", self.away, "safety") if self.away else None


@dataclass(frozen=True)
class PaperTable:
    """A table.

    Attributes:
        title: heading. model: hub id that the paper ran it on.
        attributes: attribute -> scale of its modules; empty for safety.
        suite: prompts, with ``images`` of each. captions: suite of one image a prompt for FID and CLIP; empty where none was published.
        scheduler, steps, guidance: the sampler, a name in `respodiff.pipelines.schedulers.SCHEDULERS`; empty and None are the model's own.
        judges: what ``--judge`` takes to measure as published; DIR and FILE stand for one's own.
        rows: the first one is what others are compared with.
        fraction: part of prompts, images, rollouts and iterations that is run; 1 is the published budget.
    """

    title: str
    model: str
    suite: str
    images: int
    rows: tuple[PaperRow, ...]
    attributes: Mapping[str, float] = field(default_factory=dict)
    captions: str = ""
    scheduler: str = ""
    steps: int | None = None
    guidance: float | None = None
    judges: tuple[str, ...] = ()
    fraction: float = 1.0

    @property
    def kind(self) -> str:
        """``fairness`` or ``safety``."""
        return "safety" if self.suite in UNSAFE else "fairness"

    @property
    def figures(self) -> tuple[str, ...]:
        """What the table shows: one devrat an attribute, such as ``devrat gender``."""
        main = ("unsafe",) if self.kind == "safety" else (*(f"devrat {name}" for name in self.attributes), "alignment")
        return (*main, *(("fid", "clip") if self.captions else ()))

    def part(self, prompts: int, images: int) -> tuple[int, int]:
        """(prompts, images each) that the fraction leaves of a suite.

        >>> replace(tables()["gender"], fraction=0.01).part(180, 30)
        (14, 4)
        """
        if self.fraction == 1:
            return prompts, images
        total = max(min(LEAST, prompts * images), round(prompts * images * self.fraction))
        each = max(min(LEAST, images), round(images * math.sqrt(self.fraction)))
        return min(prompts, math.ceil(total / each)), each


def tables(*, embedded: bool = False, fraction: float = 1.0) -> dict[str, PaperTable]:
    """The tables by name.

    Args:
        embedded: as they are run on the embedded model, in minutes: its suites, tone for race, fewer images and iterations.
        fraction: of prompts, images, rollouts and iterations, above 0 and at most 1.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction:g}; allowed: above 0, at most 1, which is the published budget")
    plans, twin = _plans()
    found = {}
    for name, table in plans.items():
        made = _twin(table, twin) if embedded else table
        rows = tuple(replace(row, settings=_shortened(row, made.kind, fraction)) for row in made.rows)
        found[name] = replace(made, rows=rows, fraction=fraction)
    return found


@cache
def _plans() -> tuple[dict[str, PaperTable], dict[str, Any]]:
    read = tomllib.loads((files("respodiff") / "experiments" / "paper.toml").read_text(encoding="utf-8"))
    twin, authors = read.pop("embedded"), read.pop("authors")
    twin["authors"] = authors

    def made(row: dict[str, Any]) -> PaperRow:
        return PaperRow(**{**row, "settings": {**authors.get(row["method"], {}), **row.get("settings", {})}})

    return {name: PaperTable(**{**t, "rows": tuple(map(made, t["rows"])), "judges": tuple(t["judges"])}) for name, t in read.items()}, twin


def _twin(table: PaperTable, twin: Mapping[str, Any]) -> PaperTable:
    def own(row: PaperRow) -> Mapping[str, Any]:
        kept = {k: v for k, v in row.settings.items() if k not in twin["authors"].get(row.method, {})}
        return {**twin["settings"].get(row.method, {}), **twin["rows"].get(row.name, {}), **kept}

    rows = tuple(replace(row, settings=own(row), published={}, train_forwards=0, away="", note="") for row in table.rows)
    return replace(
        table,
        title=f"{table.title.partition(',')[0]}, twin on the embedded model",
        model="embedded",
        suite=twin["suites"][table.suite],
        images=twin["images"],
        captions=twin["suites"].get(table.captions, ""),
        attributes={twin["attributes"].get(name, name): scale for name, scale in table.attributes.items()},
        scheduler="",
        steps=None,
        guidance=None,
        judges=(),
        rows=rows,
    )


def _shortened(row: PaperRow, kind: str, fraction: float) -> Mapping[str, Any]:
    """The settings with that part of the iterations and rollouts, where the method has any."""
    if row.method == BASELINE or fraction == 1:
        return row.settings
    whole = method_of(row.method).settings(kind, **row.settings)
    parts = {name: max(1, round(n * fraction)) for name in ("iterations", "rollouts") if (n := getattr(whole, name, 0))}
    return {**row.settings, **parts}


def below_budget(row: str, spent: int, published: float) -> list[str]:
    """A note where training took too few evaluations of the model; none else."""
    if spent >= WHOLE_BUDGET * published:
        return []
    return [f"{row}: not at the published budget: {spent:,} evaluations of the model for {published:,.0f} by the authors' loops."]


def adapter_budgets(kind: str) -> dict[str, int]:
    """Method -> evaluations of the model for one adapter by the authors' loops, of those that the tables of a kind have."""
    rows = [row for table in tables().values() if table.kind == kind for row in table.rows]
    return {row.method: max(r.train_forwards for r in rows if r.method == row.method) for row in rows if row.train_forwards}
