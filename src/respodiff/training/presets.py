"""The presets of training: settings that differ from those of `respodiff.training.config.TrainConfig`.

``default`` is what the experiments of docs/method.md found best on the embedded model. ``neutral`` is its core alone: trained from the neutral
prompt and acting at every step (docs/training.md). ``paper`` follows the text of arXiv 2509.15257, and the released code where the text is
silent (initialisation, timestep label, learning rates). ``released`` follows the released scripts where they differ from the text.
"""

from __future__ import annotations

from typing import Any, Literal

from respodiff.training.axes import OWN

Preset = Literal["default", "neutral", "paper", "official"]

_PAPER: dict[str, Any] = {
    "iterations": 5000,
    "objective": "guided",
    "target_guidance": 1.0,
    "ram_lr": 1e-2,
    "sam_lr": 1e-3,
    "sam_weight": 0.5,
    "preservation_weight": 0.0,
    "train_scale": 1.0,
    "max_relative_norm": 0.0,
    "betas": (0.9, 0.999),
    "decay": "constant",
    "init_range": 0.316,
    "batch": 1,
    "steps": 50,
    "timestep_labels": "official",
    "rollouts": 1,
    "rollout_batch": 1,
    "rollout_prompts": "neutral",
    "timesteps": "last",
    "refresh_every": 1,
    "rollout_guidance": 3.0,
    "rollout_modules": "ram",
}
_PAPER_SAFETY = {**_PAPER, "iterations": 1500, "target_guidance": 12.0, "sam_lr": 1e-4}

PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ("default", "fairness"): {"contexts": OWN, "train_scale": 5.0, "max_relative_norm": 2.0, "many": 0.6, "release": 0.4},
    ("neutral", "fairness"): {},
    ("neutral", "safety"): {"train_scale": 1.25},
    # Two safety modules are added to one image, so that each goes less far.
    ("default", "safety"): {"train_scale": 1.25},
    ("paper", "fairness"): _PAPER,
    ("paper", "safety"): _PAPER_SAFETY,
    ("official", "fairness"): {**_PAPER, "sam_weight": 1.0, "target_guidance": 4.0, "rollout_modules": "both"},
    ("official", "safety"): {**_PAPER_SAFETY, "iterations": 5000, "sam_weight": 1.0, "rollout_modules": "both"},
}
"""(preset, kind of concept) -> settings."""
