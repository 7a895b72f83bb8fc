"""Studies: one method with one thing changed at a time, as the rows of a comparison (``respodiff compare --ablation NAME``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from respodiff.experiments.plan import DRAWING, NEUTRAL, TUNED_ON
from respodiff.generation.config import ALIGNED_SCALE, ASSIGN_AT
from respodiff.methods.base import get_method
from respodiff.training.axes import OWN
from respodiff.training.presets import PRESETS


@dataclass(frozen=True)
class Ablation:
    """What is varied.

    Attributes:
        base: settings of every row, with which a model's own preset begins (`full` for full-size models: the paper's preset).
        rows: label -> settings that differ from the base; None leaves one of the base out.
        scales: factors on every row, so that each is a curve.
    """

    base: Mapping[str, Any]
    rows: Mapping[str, Mapping[str, Any]]
    scales: tuple[float, ...] = (0.5, 1.0, 1.5)

    def settings(self, small: bool) -> dict[str, dict[str, Any]]:
        """Variant of a method -> its settings: of ``respodiff`` for the embedded model, of ``respodiff-paper`` for others.

        A row that changes nothing of a preset is left out there.
        """
        name, base = ("respodiff", self.base) if small else ("respodiff-paper", {})
        seen: list[Any] = []
        out = {}
        for label, changes in self.rows.items():
            both = {k: v for k, v in {**base, **changes}.items() if v is not None}
            config = get_method(name).settings("fairness", **{k: v for k, v in both.items() if k not in DRAWING})
            if (config, drawn := {k: v for k, v in both.items() if k in DRAWING}) not in seen:
                seen.append((config, drawn))
                out[f"{name}:{label}"] = both
        return out


IN_CONTEXTS = {"contexts": OWN}

ABLATIONS = {
    "ablation": Ablation(
        {**NEUTRAL, "sam_lr": 0.02},
        {
            "RAM only, lambda 0": {"sam_lr": 0.0, "sam_weight": 0.0},
            "RAM and SAM, lambda 0.5": {"sam_weight": 0.5},
            "RAM and SAM, lambda 1": {"sam_weight": 1.0},
            "RAM and SAM, lambda 2": {"sam_weight": 2.0},
            "RAM and SAM, lambda 4": {"sam_weight": 4.0},
            "shared module, lambda 0.5": {"modules": "shared", "sam_weight": 0.5},
        },
    ),
    "axes": Ablation(
        NEUTRAL,
        {
            "neutral": {},
            "channel": {"form": "channel"},
            "binned": {"form": "binned"},
            "lowrank": {"form": "lowrank"},
            "blended, lambda 0.5": {"objective": "guided", "target_guidance": 1.0, "blend": 0.5, "sam_lr": 0.0},
            "guided 1": {"objective": "guided", "target_guidance": 1.0},
            "guided 2, no gain": {"objective": "guided", "target_guidance": 2.0, "train_scale": 1.0},
            "guided 4, no gain": {"objective": "guided", "target_guidance": 4.0, "train_scale": 1.0},
            "no preservation": {"preservation_weight": 0.0},
            "replay": {"refresh_every": 25, "rollouts": 6, "replay": 4},
            "contexts": {"contexts": tuple(f"a {name}" for name in TUNED_ON), "rollouts": 39},
        },
    ),
    "drawing": Ablation(
        NEUTRAL,
        {
            "neutral, by chance": {},
            "contexts": IN_CONTEXTS,
            "contexts, matched": {**IN_CONTEXTS, "assign_at": ASSIGN_AT},
            "contexts, matched, scaled down": {**IN_CONTEXTS, "assign_at": ASSIGN_AT, "aligned_scale": ALIGNED_SCALE},
            "default": {**PRESETS["default", "fairness"], "assign_at": None, "aligned_scale": None},
            "default, by chance": PRESETS["default", "fairness"],
            "default, first step read": {**PRESETS["default", "fairness"], "assign_at": 0.05, "aligned_scale": ALIGNED_SCALE},
            "default, no contexts": {**PRESETS["default", "fairness"], "contexts": (), "assign_at": None, "aligned_scale": None},
        },
        (1.0,),
    ),
}
"""``ablation``: the paper's table (RAM only, RAM and SAM, shared module, lambda); ``axes``: parameterisation, objective and rollouts in turn;
``drawing``: what the default preset and its drawing add to the preset ``neutral``, one after the other."""


def ablation_of(name: str) -> Ablation:
    """A ablation by its name. ValueError for one that there is not."""
    if name not in ABLATIONS:
        raise ValueError(f"--ablation is {name!r}; allowed: {', '.join(ABLATIONS)}")
    return ABLATIONS[name]
