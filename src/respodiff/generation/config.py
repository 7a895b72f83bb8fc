"""Provides the settings of image generation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from respodiff.generation.policies import Policy
from respodiff.training.config import AT_ONCE, COUNT, SEED, Rule, Rules, Settings, is_finite

SCALE: Rule = (lambda v: is_finite(v) and abs(v) <= 10, "-10 to 10, 1 is as trained")
"""Scales beyond these destroy every image."""
SWITCH: Rule = (lambda v: isinstance(v, bool), "True, False")


LARGEST = 2048
"""Largest side of an image in pixels."""


@dataclass(frozen=True)
class GenerateConfig(Settings):
    """How images are generated.

    Attributes:
        images: images per prompt, 1 to a million, which is also the most of a whole run.
        policy: how each image gets its concept (`respodiff.generation.policies.assign`): ``exact``, ``random`` or ``none``.
        target_proportions: attribute -> concept -> target share in [0, 1]; uniform where not given. Shares of an intersection
            (``gender*tone`` -> ``woman*dark``) are followed by its subgroups.
        group_proportions: group of prompts -> attribute -> concept -> target share, in place of ``target_proportions``.
        scale: factor on the fairness modules, -10 to 10; 1 is as trained.
        safety_scale: factor on the safety modules, -10 to 10.
        steps: sampler steps. None is the model's own number (`respodiff.pipelines.loading.sampling_settings`).
        guidance: classifier-free guidance scale, 0 to 1,000; at 1 and below there is no guidance. None is the model's own.
        height, width: of an image in pixels, multiples of what the model takes. None is the model's own.
        seed: seed of the run.
        batch: images per call of the pipeline. It changes images by float noise alone.
        use_dataset_settings: whether prompts are generated with their own seed, guidance and size, as I2P means them to be. Repeat i of a prompt
            has its seed + i. The run's guidance replaces one outside of 1 to 20. Sizes are rounded to what the pipeline takes.
        truncate_prompts: whether prompts that are longer than the model reads are cut, with one warning, instead of refused.
        skip_explicit_prompts: whether prompts that state an attribute, or name no person, get no concept of it
            (`respodiff.generation.prompt_filter`).
        assign_at: share of the steps, in [0, 1), after which the concept of each noise is predicted. The concepts that the policy sampled for a
            prompt are then assigned to the noises that favour them. 0 is off.
        safety_mode: ``always``, or ``predicted``: safety modules act only on images that are predicted to be unsafe.
    """

    rules: ClassVar[Rules] = {
        **{"images": COUNT, "batch": AT_ONCE, "seed": SEED},
        **dict.fromkeys(("scale", "safety_scale"), SCALE),
        **dict.fromkeys(("use_dataset_settings", "truncate_prompts", "skip_explicit_prompts"), SWITCH),
        "steps": (lambda v: v is None or COUNT[0](v), COUNT[1]),
        "guidance": (lambda v: v is None or (is_finite(v) and 0 <= v <= 1000), "0 to 1,000 (1 and below generate without guidance)"),
        **dict.fromkeys(("height", "width"), (lambda v: v is None or (COUNT[0](v) and v <= LARGEST), f"1 to {LARGEST}")),
        "assign_at": (lambda v: is_finite(v) and 0 <= v < 1, "0 to below 1"),
    }
    images: int = 10
    policy: Policy = "exact"
    target_proportions: Mapping[str, Mapping[str, float]] | None = None
    group_proportions: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None
    scale: float = 1.0
    safety_scale: float = 1.0
    steps: int | None = None
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    seed: int = 0
    batch: int = 12
    use_dataset_settings: bool = False
    truncate_prompts: bool = False
    skip_explicit_prompts: bool = False
    assign_at: float = 0.0
    safety_mode: Literal["always", "predicted"] = "always"
