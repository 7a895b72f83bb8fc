"""Studies: one method with one thing changed at a time, as the rows of a contest (``respodiff compare --study NAME``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from respodiff.experiments.plan import DRAWING, NEUTRAL
from respodiff.generation.config import EASE, MATCH
from respodiff.methods.base import method
from respodiff.training.presets import PRESETS


@dataclass(frozen=True)
class Study:
    """What is varied.

    Attributes:
        base: settings of every row, with which a model's own preset begins (`full` for full-size models: the paper's preset).
        rows: label -> settings that differ from the base; None leaves one of the base out.
        strengths: factors on every row, so that each is a curve.
    """

    base: Mapping[str, Any]
    rows: Mapping[str, Mapping[str, Any]]
    strengths: tuple[float, ...] = (0.5, 1.0, 1.5)

    def settings(self, small: bool) -> dict[str, dict[str, Any]]:
        """Variant of a method -> its settings: of ``respodiff`` for the embedded model, of ``respodiff-paper`` for others.

        A row that changes nothing of a preset is left out there.
        """
        name, base = ("respodiff", self.base) if small else ("respodiff-paper", {})
        seen: list[Any] = []
        out = {}
        for label, changes in self.rows.items():
            both = {k: v for k, v in {**base, **changes}.items() if v is not None}
            config = method(name).settings("fairness", **{k: v for k, v in both.items() if k not in DRAWING})
            if (config, drawn := {k: v for k, v in both.items() if k in DRAWING}) not in seen:
                seen.append((config, drawn))
                out[f"{name}:{label}"] = both
        return out


STUDIES = {
    "ablation": Study(
        {**NEUTRAL, "sam_lr": 0.02},
        {
            "RAM only, lambda 0": {"sam_lr": 0.0, "lam": 0.0},
            "RAM and SAM, lambda 0.5": {"lam": 0.5},
            "RAM and SAM, lambda 1": {"lam": 1.0},
            "RAM and SAM, lambda 2": {"lam": 2.0},
            "RAM and SAM, lambda 4": {"lam": 4.0},
        },
    ),
    "axes": Study(
        NEUTRAL,
        {
            "neutral": {},
            "channel": {"spatial": "no"},
            "guided 1": {"objective": "guided", "target_guidance": 1.0},
            "guided 2, no gain": {"objective": "guided", "target_guidance": 2.0, "gain": 1.0},
            "guided 4, no gain": {"objective": "guided", "target_guidance": 4.0, "gain": 1.0},
            "no preservation": {"mu": 0.0},
            "a pool every 25 updates": {"refresh": 25},
        },
    ),
    "drawing": Study(
        NEUTRAL,
        {
            "neutral, by chance": {},
            "matched": {"match": MATCH},
            "matched, eased": {"match": MATCH, "ease": EASE},
            "default": {**PRESETS["default", "fairness"], "match": None, "ease": None},
            "default, by chance": PRESETS["default", "fairness"],
            "default, first step read": {**PRESETS["default", "fairness"], "match": 0.05, "ease": EASE},
        },
        (1.0,),
    ),
}
"""``ablation``: the paper's table (RAM only, RAM and SAM, lambda); ``axes``: parameterisation, objective and rollouts in turn;
``drawing``: what the default preset and its drawing add to the preset ``neutral``, one after the other."""


def study_of(name: str) -> Study:
    """A study by its name. ValueError for one that there is not."""
    if name not in STUDIES:
        raise ValueError(f"--study is {name!r}; allowed: {', '.join(STUDIES)}")
    return STUDIES[name]
