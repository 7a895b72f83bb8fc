"""Settings of image generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from respodiff.data.checks import check_setting, is_finite, is_whole
from respodiff.generation.policies import Policy

ASSIGN_AT, ASSIGN_AT_MANY, ALIGNED_SCALE = 0.25, 0.45, 0.1
"""How modules of RAM and SAM are drawn unless said otherwise: attributes of two alternatives, and of more (docs/method.md)."""


@dataclass(frozen=True)
class GenerateConfig:
    """How images are generated. The defaults are right for the embedded model; Stable Diffusion wants 50 steps and guidance 7.5.

    Attributes:
        images: images per prompt.
        policy: which concept each image gets (`respodiff.generation.policies.assign`).
        target_proportions: attribute -> concept -> target share; uniform where not given. Shares of a product (``gender*tone`` -> ``woman*dark``) are
            drawn as counts of its cells.
        group_proportions: group of prompts -> attribute -> concept -> target share, before ``target_proportions`` for the prompts of that group.
        scale: factor on the drawn fairness modules. safety_scale: factor on the safety modules.
        steps, guidance: of the pipeline. seed: of the run. batch: images at a time (no effect on them beyond float noise).
        use_dataset_settings: a prompt that brings a seed, guidance or size of its own is drawn with that, as I2P means it to be. Guidance outside
            1 to 20 gives way to the run's; sizes are rounded to what the pipeline can draw; repeat i of a prompt has its seed + i.
        truncate_prompts: cut off the ends of prompts with more tokens than the model reads, with one warning, instead of refusing them.
        skip_explicit_prompts: False, or True: prompts that state an attribute themselves, or have no people, get no concept of it (`respodiff.generation.prompt_filter`);
            or a list of words that mark such prompts, each ``word`` or ``attribute:word``.
        assign_at: share of the steps after which is read what each noise favours (at least the first step); a prompt's draws are then assigned to
            the noises that favour them (`respodiff.generation.assignment`). 0 reads nothing and assigns by chance. None is `ASSIGN_AT` for
            attributes of two alternatives with RespoDiff's modules, `ASSIGN_AT_MANY` if one has more, and 0 for all others.
        aligned_scale: factor on the scale where the noise surely favours the drawn concept by itself (in between where it is unsure); counts for
            attributes of two alternatives that are read. None is `ALIGNED_SCALE` if RespoDiff's modules alone are read, else 1.
        safety_mode: ``always``, or ``predicted``: all safety modules are added to an image whose first step favours what one of them takes
            out, and none to the others (`respodiff.generation.safety_mode`), which stay, bit for bit, as they would be without.
    """

    images: int = 10
    policy: Policy = "exact"
    target_proportions: Mapping[str, Mapping[str, float]] | None = None
    group_proportions: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None
    scale: float = 1.0
    safety_scale: float = 1.0
    steps: int = 20
    guidance: float = 3.0
    seed: int = 0
    batch: int = 12
    use_dataset_settings: bool = False
    truncate_prompts: bool = False
    skip_explicit_prompts: bool | Sequence[str] = False
    assign_at: float | None = None
    aligned_scale: float | None = None
    safety_mode: Literal["always", "predicted"] = "always"

    def __post_init__(self) -> None:
        check_setting("use_dataset_settings", self.use_dataset_settings, isinstance(self.use_dataset_settings, bool), "True, False")
        check_setting("truncate_prompts", self.truncate_prompts, isinstance(self.truncate_prompts, bool), "True, False")
        words = (
            not isinstance(self.skip_explicit_prompts, str | bool)
            and len(self.skip_explicit_prompts) > 0
            and all(isinstance(w, str) and w.strip() for w in self.skip_explicit_prompts)
        )
        check_setting(
            "skip_explicit_prompts",
            self.skip_explicit_prompts,
            isinstance(self.skip_explicit_prompts, bool) or words,
            "False, True, or a list of words",
        )
        for name in ("images", "steps", "batch"):
            check_setting(
                name, getattr(self, name), is_whole(getattr(self, name)) and getattr(self, name) >= 1, "a whole number of at least 1"
            )
        for name in ("scale", "safety_scale", "guidance"):
            check_setting(name, getattr(self, name), is_finite(getattr(self, name)), "a finite number")
        check_setting("safety_mode", self.safety_mode, self.safety_mode in ("always", "predicted"), "always, predicted")
        check_setting("aligned_scale", self.aligned_scale, self.aligned_scale is None or is_finite(self.aligned_scale), "a finite number")
        check_setting(
            "assign_at", self.assign_at, self.assign_at is None or (is_finite(self.assign_at) and 0 <= self.assign_at < 1), "0 to below 1"
        )
        if self.guidance < 0:
            raise ValueError(f"guidance is {self.guidance}; allowed: 0 or more (1 and below draw without guidance)")
