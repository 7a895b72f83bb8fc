"""Trains all alternatives of an attribute in one run, which shares latents, scores and the encoder half of the UNet."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Sequence
from typing import Any

from respodiff.concepts.concept import Attribute, Concept
from respodiff.concepts.concept import attribute as find_attribute
from respodiff.steering.module import ConceptModule
from respodiff.training.config import TrainConfig
from respodiff.training.respodiff import fit, train_together


def fit_attribute(pipe: Any, attribute: Attribute | str, config: TrainConfig | None = None) -> dict[str, ConceptModule]:
    """Train all alternatives of an attribute to the end: name -> module, in the order of the attribute.

    Each alternative steers an equal part of later rollouts, and all alternatives train on all of them. With one pool of latents and a
    ``projection`` of 0 each module is, within float noise, that of `respodiff.fit`.

    Args:
        attribute: an attribute, or the name of a built-in one or an intersection. config: default is the preset ``default``.

    Raises:
        ValueError: as `respodiff.train`, and for an unknown attribute. Settings that cannot be shared are a warning (`not_shared`).
    """
    chosen = find_attribute(attribute) if isinstance(attribute, str) else attribute
    configs = [config or TrainConfig.preset("default", c) for c in chosen.concepts]
    if reason := not_shared(chosen.concepts, configs):
        warnings.warn(f"{chosen.name!r} is trained one concept after the other: {reason}", stacklevel=2)
        return {c.name: fit(pipe, c, x) for c, x in zip(chosen.concepts, configs, strict=True)}
    (last,) = deque(train_together(pipe, chosen.concepts, configs[0]), maxlen=1)
    modules: dict[str, ConceptModule] = last.module
    return modules


def not_shared(concepts: Sequence[Concept], configs: Sequence[TrainConfig]) -> str:
    """Why concepts cannot be trained in one run, in words; empty if they can."""
    first, config, targets = concepts[0], configs[0], {c.target for c in concepts}
    if any(c.kind != "fairness" or (c.neutral, c.preserve) != (first.neutral, first.preserve) for c in concepts):
        return "its concepts differ in kind, neutral prompt or preserved prompts"
    if any({c.target, *c.opposites} != targets for c in concepts):
        return "its concepts are not each other's opposites"
    if any(x != config for x in configs):
        return "its concepts have different settings"
    if (n := min(config.rollouts, config.rollout_batch)) < len(concepts):
        return f"rollouts or rollout_batch is {n}, and each of its {len(concepts)} concepts steers at least one"
    return ""
