"""Trains a concept from two phrases, with what it does so far: loss, effect, and images of the neutral phrase."""

from __future__ import annotations

import math
import warnings
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from respodiff.app.service import Service, Stop
from respodiff.concepts.concept import Concept, own_concept
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate
from respodiff.training.config import TrainConfig
from respodiff.training.diagnostics import module_with_verdict
from respodiff.training.respodiff import train
from respodiff.training.state import open_model

EVERY, SAMPLES = 10, 4
"""Iterations between two looks at the module, and images of each."""


@dataclass
class Progress:
    """A training so far.

    Attributes:
        loss: of ``iteration``. effects: (iteration, projection in percent of that of the settings): 0 is no effect, 100 the goal.
        plain, samples: images of the neutral phrase from the same noise, unsteered and steered by the module as it was at ``looked_at``.
        file: the module, once it is kept.
    """

    iteration: int = 0
    iterations: int = 0
    loss: float = math.nan
    effects: list[tuple[int, float]] = field(default_factory=list)
    plain: list[Image.Image] = field(default_factory=list)
    samples: list[Image.Image] = field(default_factory=list)
    looked_at: int = 0
    file: Path | None = None


def concept_of(target: str, neutral: str = "", opposite: str = "") -> Concept:
    """The concept of these phrases; ValueError for an empty target, or one that is the neutral phrase."""
    target, neutral, opposite = target.strip(), neutral.strip() or "a person", opposite.strip()
    if not target or target.lower() == neutral.lower():
        raise ValueError(
            f"target phrase is {target!r}; give one that differs from the neutral phrase {neutral!r}, such as 'a person with a hat'"
        )
    return own_concept("", target, neutral, "", [opposite] if opposite else [])


def follow(service: Service, concept: Concept, config: TrainConfig, stop: Stop) -> Generator[Progress, None, None]:
    """Train, and keep the module in ``out/modules``, also one that is stopped: as it then is. Errors as `respodiff.training.respodiff.train`.

    One that is closed, or whose visitor is gone, leaves no file.
    """
    found = Progress(iterations=config.iterations)
    record: Any = None
    with service.turns.turn():
        found.plain = _images(service, concept, None)
    for record in service.by_turns(train(service.pipe, concept, config), stop):  # type: ignore[arg-type]
        found.iteration, found.loss = record.iteration, record.loss
        if record.iteration % EVERY == 0 or record.iteration == record.iterations:
            with service.turns.turn():
                _look(service, concept, config, record.module, found)
        yield found
    if record is None or stop.left:
        return
    found.file = service.keep_module(record.module)
    if found.looked_at != found.iteration:
        with service.turns.turn():
            _look(service, concept, config, record.module, found)
    yield found


def _look(service: Service, concept: Concept, config: TrainConfig, module: Any, found: Progress) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a module that is not done yet
        try:
            verdict = module.header.verdict or module_with_verdict(open_model(service.pipe, config), concept, module).header.verdict
        except RuntimeError:  # no effect yet
            verdict = {}
        found.samples, found.looked_at = _images(service, concept, module), found.iteration
    if "projection" in verdict:
        found.effects.append((found.iteration, 100 * verdict.get("reached", verdict["projection"]) / (config.projection or 1)))


def _images(service: Service, concept: Concept, module: Any) -> list[Image.Image]:
    """Images of the neutral phrase in one batch, from the same noise each time."""
    images = generate(service.pipe, [concept.neutral], [module] if module else [], GenerateConfig(images=SAMPLES, batch=SAMPLES))
    return [image for _, image in images]
