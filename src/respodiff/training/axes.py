"""The three axes of training, parameterisation x objective x rollout: which settings go together, and which methods take them."""

from __future__ import annotations

from typing import Any

AXES: dict[str, Any] = {
    "form": "constant",
    "bins": 4,
    "map_rank": 4,
    "map_rate": 0.1,
}
"""Setting of `respodiff.training.config.TrainConfig` -> its default: one constant each."""

FORM = ("form", "bins", "map_rank", "map_rate")
"""What a method takes that trains a `respodiff.training.state.TrainState` by examples of its own."""

READ_BY = {"bins": "binned", "map_rank": "lowrank", "map_rate": "lowrank"}
"""Setting -> the only form that reads it."""


def check_axes(config: Any) -> None:
    """ValueError, one line, for settings of a TrainConfig that would be ignored, or that are another setting in disguise."""
    for name, form in READ_BY.items():
        if config.form != form and getattr(config, name) != AXES[name]:
            raise ValueError(
                f"{name} is {getattr(config, name)}, which form {config.form!r} does not read; leave it out, or set form={form}"
            )


def refuse_axes(method: str, config: Any, taken: tuple[str, ...]) -> None:
    """ValueError for a setting of the axes that a method has not: ``taken`` names those that it has."""
    for name, default in AXES.items():
        if name not in taken and (found := getattr(config, name, default)) != default:
            has = f"; it has {', '.join(taken)} of them" if taken else ""
            raise ValueError(f"{name} is {found!r}, which method {method!r} does not take{has}; leave it out")
