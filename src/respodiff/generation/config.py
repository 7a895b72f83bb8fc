"""Provides the settings of image generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from respodiff.data.checks import check_setting, is_finite, is_whole
from respodiff.generation.policies import Policy

LARGEST_SCALE = 10.0
"""Scales beyond this in either direction destroy every image."""


@dataclass(frozen=True)
class GenerateConfig:
    """How images are generated.

    Attributes:
        images: images per prompt, at least 1.
        policy: how each image gets its concept (`respodiff.generation.policies.assign`): ``exact``, ``random`` or ``none``.
        target_proportions: attribute -> concept -> target share in [0, 1]; uniform where not given. Shares of an intersection
            (``gender*tone`` -> ``woman*dark``) are followed by its subgroups.
        group_proportions: group of prompts -> attribute -> concept -> target share. For prompts of these groups they replace ``target_proportions``.
        scale: factor on the fairness modules, -10 to 10; 1 is as trained.
        safety_scale: factor on the safety modules, -10 to 10.
        steps: sampler steps. None is the model's own number (`respodiff.pipelines.loading.sampling_defaults`).
        guidance: classifier-free guidance scale, 0 or more; at 1 and below there is no guidance. None is the model's own.
        seed: seed of the run.
        batch: images per call of the pipeline. It changes images by float noise alone.
        use_dataset_settings: a prompt with a seed, guidance or size of its own is generated with these, as I2P means it to be. Guidance outside
            of 1 to 20 is replaced by the run's. Sizes are rounded to what the pipeline takes. Repeat i of a prompt has its seed + i.
        truncate_prompts: whether prompts that are longer than the model reads are cut, with one warning, instead of refused.
        skip_explicit_prompts: whether prompts that state an attribute, or name no person, get no concept of it
            (`respodiff.generation.prompt_filter`). A list of words, each ``word`` or ``attribute:word``, replaces the shipped words.
        assign_at: share of the steps, in [0, 1), after which the concept of each noise is predicted. The concepts that the policy sampled for a
            prompt are then assigned to the noises that favour them. 0 is off. Measured were 0.25 for two alternatives and 0.45 for more.
        aligned_scale: factor on ``scale`` for images whose noise favours their concept already, for attributes with two alternatives.
            1 is off; other values need ``assign_at``. Measured was 0.1.
        safety_mode: ``always``, or ``predicted``: safety modules act only on images that are predicted to be unsafe.
    """

    images: int = 10
    policy: Policy = "exact"
    target_proportions: Mapping[str, Mapping[str, float]] | None = None
    group_proportions: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None
    scale: float = 1.0
    safety_scale: float = 1.0
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    batch: int = 12
    use_dataset_settings: bool = False
    truncate_prompts: bool = False
    skip_explicit_prompts: bool | Sequence[str] = False
    assign_at: float = 0.0
    aligned_scale: float = 1.0
    safety_mode: Literal["always", "predicted"] = "always"

    def __post_init__(self) -> None:
        for name in ("images", "batch", "steps"):
            value = getattr(self, name)
            good = (name == "steps" and value is None) or (is_whole(value) and value >= 1)
            check_setting(name, value, good, "a whole number of at least 1")
        for name in ("scale", "safety_scale"):
            value = getattr(self, name)
            good = is_finite(value) and abs(value) <= LARGEST_SCALE
            check_setting(name, value, good, f"{-LARGEST_SCALE:g} to {LARGEST_SCALE:g}, 1 is as trained")
        choices = {"policy": get_args(Policy), "safety_mode": ("always", "predicted")}
        for name, allowed in (choices | dict.fromkeys(("use_dataset_settings", "truncate_prompts"), (True, False))).items():
            check_setting(name, getattr(self, name), getattr(self, name) in allowed, ", ".join(map(str, allowed)))
        good = self.guidance is None or (is_finite(self.guidance) and self.guidance >= 0)
        check_setting("guidance", self.guidance, good, "0 or more (1 and below generate without guidance)")
        words = self.skip_explicit_prompts
        listed = isinstance(words, Sequence) and not isinstance(words, str) and all(isinstance(w, str) and w.strip() for w in words)
        check_setting(
            "skip_explicit_prompts", words, isinstance(words, bool) or (listed and bool(words)), "False, True, or a list of words"
        )
        check_setting("assign_at", self.assign_at, is_finite(self.assign_at) and 0 <= self.assign_at < 1, "0 to below 1")
        good = is_finite(self.aligned_scale) and (self.aligned_scale == 1 or self.assign_at > 0)
        check_setting("aligned_scale", self.aligned_scale, good, "a number, and 1 unless assign_at is above 0")
