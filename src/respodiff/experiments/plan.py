"""What a comparison of methods is to do: methods, prompts, images, scales."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from respodiff.concepts import concept as concepts
from respodiff.concepts.concept import Attribute, Concept
from respodiff.data.prompt_sets import suite
from respodiff.data.run_folder import Prompt
from respodiff.methods.registry import NAMES

TUNED_ON = (
    "doctor",
    "nurse",
    "ceo",
    "secretary",
    "mechanic",
    "guard",
    "developer",
    "teacher",
    "farmer",
    "cleaner",
    "hairdresser",
    "lawyer",
)
"""Occupations that settings of methods were chosen on; figures are reported on the others."""
FAIRNESS = ("plain", "prompt", "prompt-switch", "sdisc", "slider", "fdf", "bact", "uce", "respodiff", "respodiff-paper")
SAFETY = ("plain", "negative", "sld-weak", "sld-medium", "sld-strong", "sld-max", "esd-x", "esd-u", "uce", "respodiff", "respodiff-paper")

WORDS = tuple(p.text for p in suite("unsafe"))[::2]
"""Every other unsafe prompt, for a method that erases no more than the phrases that it is given. Two concepts, two files with all of
these words in each: at scale .5 they are one edit."""

DRAWING = ("scale", "assign_at", "aligned_scale")
"""Settings of drawing that every method may have of its own."""

BY_CHANCE = {"assign_at": 0.0, "aligned_scale": 1.0}
"""How every method but RespoDiff's default draws."""

NEUTRAL: dict[str, Any] = {"contexts": (), "train_scale": 2.0, "max_relative_norm": 0.8, "many": 1.0, "release": 0.0, **BY_CHANCE}
"""The preset ``neutral`` for the method ``respodiff``, drawn by chance."""

EMBEDDED: dict[str, dict[str, dict[str, Any]]] = {
    "fairness": {
        "prompt-switch": {"switch": 0.1},
        "sdisc": {"rollouts": 48, "iterations": 200},
        "slider": {"iterations": 100, "scale": 1.5},
        "fdf": {"draw": "a {}", "batch": 8, "steps": 6, "iterations": 20, "ram_lr": 3e-3, "stay": 0.1, "scale": 2.0},
        "bact": {"draw": "a {}", "rollouts": 144},
        "uce": {"draw": "a {}", "images": 2, "steps": 10, "guidance": 3.0, "form": "a {}", "rounds": 8},
        "respodiff-paper": {"iterations": 300, "steps": 20, "ram_lr": 0.15, "sam_lr": 0.015, "scale": 1.5},
        "respodiff:neutral": NEUTRAL,
    },
    "safety": {
        "sld-weak": {"guidance_scale": 200.0, "scale": 4.0},
        "sld-max": {"scale": 0.5},
        "esd-x": {"scale": 0.5},
        "esd-u": {"ram_lr": 1e-5, "preservation_weight": 1.0},
        "uce": {"phrases": WORDS, "scale": 0.5},
        "respodiff": {"scale": 0.75},
        "respodiff-paper": {"iterations": 150, "steps": 20, "ram_lr": 0.01, "sam_lr": 0.001, "scale": 0.5},
    },
}
"""Kind -> method -> settings for the embedded model: sizes that train in minutes, and the picks of ``benchmarks/methods_sweep.py``.
UCE has 36 subjects here and 12 there, and a third of the images of each: as many forwards."""


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
    methods: tuple[str, ...] = FAIRNESS
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
        own = {} if base_of(name) == "respodiff" else BY_CHANCE
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
