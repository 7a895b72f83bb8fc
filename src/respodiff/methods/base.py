"""Provides the interface that all methods share, and what those share that learn from images."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from respodiff.concepts.concept import Concept
from respodiff.data.prompt_sets.winobias import PROFESSIONS
from respodiff.steering.adapter import Adapter, for_unets, header_of
from respodiff.steering.module import ConceptModule
from respodiff.steering.serialization import Header
from respodiff.training.config import Rules, Settings
from respodiff.training.state import StepRecord

Classify = Callable[[Tensor], Tensor]
"""Images (N, 3, H, W) in [0, 1] -> logits (N, K) of the alternatives, in the order target, opposites; differentiable for FDF."""
MakeHeader = Callable[..., Header]
"""(fields that differ) -> header of the adapter that is being made."""
Make = Callable[..., Iterator[StepRecord]]
"""(pipe, concept, config, header=, classify=, resume=) -> records; the last one holds the adapter."""


@dataclass(frozen=True)
class Method:
    """One way to steer the images of a pipeline.

    Attributes:
        name: key in `respodiff.methods.registry.names`. kinds: kinds of concepts that it takes ("fairness", "safety").
        config: dataclass of its settings. defaults: concept or kind -> settings that differ from the dataclass's own.
        presets: (name of a preset, concept or kind, changes) -> settings, for a method that has several.
        make: trains or builds its adapter; None where there are no tensors. adapter: class of its adapters, which says how they act.
        needs_classifier: kinds of concepts for which it needs a classifier of images; it then makes one adapter of all alternatives.
        resumes: whether a stopped training can go on. transformers: whether it takes pipelines with a transformer.
        unfit: pipeline -> why the method cannot take it, where a transformer alone does not tell; empty if it can.
        default_concept: the concept that is taken where none is named.
    """

    name: str
    kinds: tuple[str, ...]
    config: Any
    make: Make | None = None
    adapter: type[Adapter] = ConceptModule
    defaults: Callable[[Concept | str], dict[str, Any]] = lambda _concept: {}
    presets: Callable[..., Any] | None = None
    needs_classifier: tuple[str, ...] = ()
    resumes: bool = False
    transformers: bool = False
    unfit: Callable[[Any], str] = lambda _pipe: ""
    default_concept: Concept | None = None

    @property
    def trains(self) -> bool:
        """Whether there is something to make."""
        return self.make is not None

    def settings(self, concept: Concept | str = "fairness", *, preset: str = "default", **changes: Any) -> Any:
        """Its settings for a concept or a kind of concepts, with ``changes`` on top. ValueError lists the known settings or presets."""
        if self.presets:
            return self.presets(preset, concept, **changes)
        if preset != "default":
            raise ValueError(f"preset {preset!r} is given beside method {self.name!r}, which has no presets; leave it out")
        known = [f.name for f in fields(self.config)]
        if unknown := sorted(set(changes) - set(known)):
            raise ValueError(f"setting {unknown[0]!r} is unknown; method {self.name!r} has: {', '.join(known) or 'none'}")
        return self.config(**{**self.defaults(concept), **changes})

    def refuses(self, pipe: Any) -> str:
        """Why it cannot take a pipeline; empty if it can."""
        return ("" if self.transformers else for_unets(pipe, self.name)) or self.unfit(pipe)

    def check(self, concept: Concept) -> None:
        """ValueError for a concept of a kind that the method does not take."""
        if concept.kind not in self.kinds:
            raise ValueError(
                f"method {self.name!r} takes {' and '.join(self.kinds)} concepts, {concept.name!r} is a {concept.kind} concept; "
                "choose another method or concept"
            )

    def train(
        self, pipe: Any, concept: Concept, config: Any = None, *, classify: Classify | None = None, resume: Any = None
    ) -> Iterator[StepRecord]:
        """Train or build the adapter of a concept, as a generator of records; the pipeline is left as it was.

        ``config`` is from `settings`, ``resume`` is ``record.state.tensors()`` of an earlier run. ValueError for a concept or settings that
        the method cannot take, before anything is computed.
        """
        self.check(concept)
        if reason := self.refuses(pipe):
            raise ValueError(reason)
        config, about, more = config or self.settings(concept), concept, {}
        if concept.kind in self.needs_classifier:
            classify = checked(self.name, concept, classify)
            about, more = replace(concept, name=concept.attribute or concept.name), {"kind": "attribute"}
        header = partial(header_of, pipe, self.name, about, config, **more)
        if self.make is None:
            return built(self.adapter(header()))
        return self.make(pipe, concept, config, header=header, classify=classify, resume=resume)

    def fit(self, pipe: Any, concept: Concept, config: Any = None, *, classify: Classify | None = None) -> Adapter:
        """`train` to the end: the adapter."""
        (last,) = deque(self.train(pipe, concept, config, classify=classify), maxlen=1)
        made: Adapter = last.module
        return made


def built(adapter: Adapter, seconds: float = 0.0, loss: float = 0.0, forwards: int = 0) -> Iterator[StepRecord]:
    """The one record of an adapter that no training made."""
    yield StepRecord(1, 1, loss, forwards, seconds, None, lambda: adapter)


def checked(method: str, concept: Concept, classify: Classify | None) -> Classify:
    """A classifier of all alternatives of a concept, whose logits are checked and float32. ValueError if it or the alternatives lack."""
    if classify is None:
        raise ValueError(
            f"method {method!r} needs a classifier of images for {concept.kind} concepts; give classify=, or --judge NAME on the command line"
        )
    if not concept.opposites:
        raise ValueError(
            f"concept {concept.name!r} has no alternatives, and a distribution needs them; give a known concept, or --opposite TEXT"
        )

    def logits(images: Tensor) -> Tensor:
        found, wanted = classify(images), (len(images), 1 + len(concept.opposites))
        if found.shape != wanted:
            raise ValueError(f"classify gave {tuple(found.shape)} for {len(images)} images; allowed: logits of shape {wanted}")
        return found.float()

    return logits


def decoded(pipe: Any, z: Tensor) -> Tensor:
    """Images (N, 3, H, W), about [0, 1] and not clamped, of latents (N, C, h, w); differentiable."""
    vae, c, z = pipe.vae, pipe.vae.config, z.to(pipe.vae.dtype)
    if c.get("latents_mean") and c.get("latents_std"):
        mean, std = (torch.tensor(c[k], device=z.device, dtype=z.dtype).view(1, -1, 1, 1) for k in ("latents_mean", "latents_std"))
        z = z * std / c.scaling_factor + mean
    else:
        z = z / c.scaling_factor + (c.get("shift_factor") or 0.0)
    images: Tensor = vae.decode(z).sample / 2 + 0.5
    return images.float()


@dataclass(frozen=True)
class SubjectConfig(Settings):
    """Settings of images to learn from; their prompts are ``draw`` with each of the ``subjects`` in it."""

    rules: ClassVar[Rules] = {
        "subjects": (
            lambda v: isinstance(v, tuple) and len(v) > 0 and all(isinstance(s, str) and s.strip() for s in v),
            "one text or more",
        ),
        "draw": (lambda v: "{}" in v, "a text with {} where the subject goes"),
    }
    subjects: tuple[str, ...] = PROFESSIONS
    draw: str = "image of {}"

    @property
    def prompts(self) -> list[str]:
        """Prompt of each subject."""
        return [self.draw.format(subject) for subject in self.subjects]


def phrases(text: str) -> list[str]:
    """The phrases of a text that separates them by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]
