"""What a comparison of methods is to do: methods, prompts, images, scales."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from respodiff.concepts import concept as concepts
from respodiff.concepts.concept import Attribute, Concept
from respodiff.data.prompt_sets import suite
from respodiff.data.run_folder import Prompt
from respodiff.methods.registry import NAMES, get_method, methods_for

DRAWING = ("scale", "assign_at", "aligned_scale")
"""Settings of drawing that every method may have of its own."""

BY_CHANCE = {"assign_at": 0.0, "aligned_scale": 1.0}
"""How images are generated for methods whose concepts are not assigned to noises by default."""


@dataclass(frozen=True)
class Plan:
    """What is to be compared.

    Attributes:
        suite: ``occupations`` (fairness) or ``unsafe`` (safety), or another suite of prompts of groups.
        methods: names of `respodiff.methods.registry.NAMES`, or ``NAME:VARIANT`` with an entry in `settings`; ``plain`` is drawn in any case, as the
            baseline.
        attribute: whose alternatives are drawn in exact counts (fairness). safety: concepts that are taken out together (safety).
        library: TOML file with concepts of one's own, in which `attribute` and `safety` are looked up beside the built-in ones.
        images: images a prompt. prompts: use so many prompts of the suite, evenly spaced; 0 uses all. groups: use prompts of these
            groups alone; empty uses all.
        scales: factors on what a method makes; a method without a scale is drawn once.
        axis: what the trade-off plot sets against the effect: ``drift``, or ``alignment`` (loss in %).
        settings: method or variant -> settings that differ from the method's defaults; those in `DRAWING` say how its images are generated:
            ``scale`` is a factor on what it makes, the others as in `respodiff.generation.config.GenerateConfig`.
    """

    suite: str = "occupations"
    methods: tuple[str, ...] = field(default_factory=lambda: methods_for("fairness"))
    attribute: str = "gender"
    safety: tuple[str, ...] = ("violence", "sexual")
    images: int = 4
    prompts: int = 0
    groups: tuple[str, ...] = ()
    scales: tuple[float, ...] = (1.0,)
    steps: int = 20
    guidance: float = 3.0
    seed: int = 0
    library: str = ""
    axis: Literal["drift", "alignment"] = "drift"
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := [m for m in self.methods if base_of(m) not in NAMES or (":" in m and m not in self.settings)]:
            raise ValueError(f"methods has {unknown[0]!r}; allowed: all, {', '.join(NAMES)}; a NAME:VARIANT needs its settings")
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods is {', '.join(self.methods) or 'empty'}; give each method once, or 'all'")
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales is {self.scales}; allowed: numbers above 0, 1 is as trained")
        if wrong := [name for name in self.settings if self.factor(name) <= 0]:
            raise ValueError(f"settings of {wrong[0]!r} have scale {self.factor(wrong[0]):g}; a scale is a number above 0, 1 is as trained")
        if self.images < 1 or self.prompts < 0:
            raise ValueError(f"images is {self.images} and prompts {self.prompts}; allowed: 1 or more, and 0 (all) or more")

    def training_settings(self, name: str) -> dict[str, Any]:
        """What a method or variant is trained with, beside its defaults."""
        return {k: v for k, v in self.settings.get(name, {}).items() if k not in DRAWING}

    def drawing(self, name: str) -> dict[str, Any]:
        """How a method's or variant's images are generated, beside the scale."""
        own = {} if get_method(base_of(name)).assign_by_default else BY_CHANCE
        return own | {k: float(v) for k, v in self.settings.get(name, {}).items() if k in DRAWING and k != "scale"}

    def factor(self, name: str) -> float:
        """The scale of a method or variant that counts as 1."""
        return float(self.settings.get(name, {}).get("scale", 1.0))

    @property
    def kind(self) -> str:
        """``safety`` for suites of unsafe prompts, else ``fairness``."""
        return "safety" if self.suite in ("unsafe", "i2p") else "fairness"

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """What every method is trained for."""
        if self.kind == "safety":
            return tuple(concepts.concept(name, self._known) for name in self.safety)
        return self.whole.concepts

    @property
    def whole(self) -> Attribute:
        """The attribute that is to be even. ValueError for one that is not known."""
        return concepts.attribute(self.attribute, self._known)

    @property
    def _known(self) -> dict[str, Attribute | Concept]:
        return {**concepts.builtin(), **(concepts.load_concepts(self.library) if self.library else {})}

    def asked(self) -> list[Prompt]:
        """The prompts of the suite that are used.

        Raises:
            ValueError: a group that the suite does not have.
        """
        found = suite(self.suite)
        if unknown := sorted(set(self.groups) - {p.group for p in found}):
            raise ValueError(f"groups has {unknown[0]!r}, which suite {self.suite!r} does not have; leave it out")
        return spaced([p for p in found if not self.groups or p.group in self.groups], self.prompts)

    def parts(self) -> dict[str, tuple[list[Prompt], int]]:
        """Part of a run -> prompts and images of each: the suite, and what must stay as it is (stated attributes; harmless prompts)."""
        prompts = self.asked()
        if self.kind == "fairness":
            return {"suite": (prompts, self.images), "stated": (stated_prompts(prompts, self.concepts), max(1, self.images // 4))}
        benign = [*spaced(suite("occupations"), len(prompts)), *spaced(suite("general"), len(prompts))]
        return {"suite": (prompts, self.images), "benign": (benign, max(1, self.images // 2))}


def base_of(name: str) -> str:
    """The method of a variant.

    >>> base_of("slider:rank 1"), base_of("uce")
    ('slider', 'uce')
    """
    return name.partition(":")[0]


def read_settings(file: str | Path, kind: str) -> dict[str, dict[str, Any]]:
    """Settings of methods and variants for `Plan.settings`, from the tables [KIND.NAME] of a TOML file; lists as tuples.

    Raises:
        ValueError: the file cannot be read, or has a table of another name.
    """
    try:
        tables = tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"settings file {str(file)!r} cannot be read: {error}") from error
    if unknown := sorted(set(tables) - {"fairness", "safety"}):
        raise ValueError(f"settings file {str(file)!r} has the table {unknown[0]!r}; allowed: fairness.NAME, safety.NAME")
    chosen = tables.get(kind, {})
    return {name: {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()} for name, changes in chosen.items()}


def spaced(prompts: Sequence[Prompt], n: int) -> list[Prompt]:
    """So many prompts of a suite, evenly spaced in its order; 0 or more than there are gives all.

    >>> [p.text for p in spaced([Prompt(id=t, text=t) for t in "abcdefg"], 3)]
    ['a', 'c', 'e']
    """
    if not n or n >= len(prompts):
        return list(prompts)
    return [prompts[int(i * len(prompts) / n)] for i in range(n)]


def stated_prompts(prompts: Sequence[Prompt], alternatives: Sequence[Concept]) -> list[Prompt]:
    """The suite's prompts with an alternative stated in them, by turns: a method for prompts that state none should leave these alone."""
    from respodiff.concepts.prompt_editing import rewriting, rewritten

    out = []
    for i, prompt in enumerate(prompts):
        concept = alternatives[i % len(alternatives)]
        text = rewritten(prompt.text, *rewriting(concept))
        out.append(dataclasses.replace(prompt, id=f"stated/{prompt.group}", text=text, suite="stated", categories=(concept.name,)))
    return out
