"""Settings of image generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from respodiff.data.checks import check_setting, is_finite, is_whole
from respodiff.generation.policies import Policy

MATCH, MATCH_MANY, EASE = 0.25, 0.45, 0.1
"""How modules of RAM and SAM are drawn unless said otherwise: attributes of two alternatives, and of more (docs/method.md)."""


@dataclass(frozen=True)
class GenerateConfig:
    """How pictures are drawn. The defaults are right for the embedded model; Stable Diffusion wants 50 steps and guidance 7.5.

    Attributes:
        images: pictures per prompt.
        policy: which concept each picture gets (`respodiff.generation.policies.assign`).
        shares: attribute -> concept -> target share; uniform where not given. Shares of a product (``gender*tone`` -> ``woman*dark``) are
            drawn as counts of its cells.
        group_shares: group of prompts -> attribute -> concept -> target share, before ``shares`` for the prompts of that group.
        strength: factor on the drawn fairness modules. safety_strength: factor on the safety modules.
        steps, guidance: of the pipeline. seed: of the run. batch: pictures at a time (no effect on them beyond float noise).
        own_settings: a prompt that brings a seed, guidance or size of its own is drawn with that, as I2P means it to be. Guidance outside
            1 to 20 gives way to the run's; sizes are rounded to what the pipeline can draw; repeat i of a prompt has its seed + i.
        long_prompts: ``refuse`` prompts with more tokens than the model reads, or ``cut`` their ends off, with one warning.
        gate: ``off``, or ``auto``: prompts that state an attribute themselves, or have no people, get no concept of it; the words of
            `respodiff.generation.prompt_words` decide. Or a list of words that mark such prompts, each ``word`` or ``attribute:word``.
        match: share of the steps after which is read what each noise leans to (at least the first step); a prompt's draws are then handed to
            the noises that lean to them (`respodiff.generation.assignment`). 0 reads nothing and hands out by chance. None is `MATCH` for
            attributes of two alternatives with RespoDiff's modules, `MATCH_MANY` if one has more, and 0 for all others.
        ease: factor on the strength where the noise surely leans to the drawn concept by itself (in between where it is unsure); counts for
            attributes of two alternatives that are read. None is `EASE` if RespoDiff's modules alone are read, else 1.
        safety_when: ``always``, or ``leaning``: all safety modules are added to a picture whose first step leans to what one of them takes
            out, and none to the others (`respodiff.generation.safety_mode`), which stay, bit for bit, as they would be without.
    """

    images: int = 10
    policy: Policy = "exact"
    shares: Mapping[str, Mapping[str, float]] | None = None
    group_shares: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None
    strength: float = 1.0
    safety_strength: float = 1.0
    steps: int = 20
    guidance: float = 3.0
    seed: int = 0
    batch: int = 12
    own_settings: bool = False
    long_prompts: Literal["refuse", "cut"] = "refuse"
    gate: str | Sequence[str] = "off"
    match: float | None = None
    ease: float | None = None
    safety_when: Literal["always", "leaning"] = "always"

    def __post_init__(self) -> None:
        check_setting("own_settings", self.own_settings, isinstance(self.own_settings, bool), "True, False")
        check_setting("long_prompts", self.long_prompts, self.long_prompts in ("refuse", "cut"), "refuse, cut")
        words = not isinstance(self.gate, str) and len(self.gate) > 0 and all(isinstance(w, str) and w.strip() for w in self.gate)
        check_setting("gate", self.gate, self.gate in ("off", "auto") or words, "off, auto, or a list of words")
        for name in ("images", "steps", "batch"):
            check_setting(
                name, getattr(self, name), is_whole(getattr(self, name)) and getattr(self, name) >= 1, "a whole number of at least 1"
            )
        for name in ("strength", "safety_strength", "guidance"):
            check_setting(name, getattr(self, name), is_finite(getattr(self, name)), "a finite number")
        check_setting("safety_when", self.safety_when, self.safety_when in ("always", "leaning"), "always, leaning")
        check_setting("ease", self.ease, self.ease is None or is_finite(self.ease), "a finite number")
        check_setting("match", self.match, self.match is None or (is_finite(self.match) and 0 <= self.match < 1), "0 to below 1")
        if self.guidance < 0:
            raise ValueError(f"guidance is {self.guidance}; allowed: 0 or more (1 and below draw without guidance)")
