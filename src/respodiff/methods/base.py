"""Provides the interface that all methods share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from respodiff.concepts.concept import Concept
from respodiff.steering.adapter import Adapter
from respodiff.steering.module import ConceptModule

Classify = Callable[[Tensor], Tensor]
"""Images (N, 3, H, W) in [0, 1] -> logits (N, K) of the alternatives, in the order target, opposites; differentiable for FDF."""
Make = Callable[..., Iterator[Any]]
"""(pipe, concept, config, classify=, resume=) -> records (`respodiff.training.state.StepRecord`); the last one holds the adapter."""


@dataclass(frozen=True)
class Method:
    """One way to steer the images of a pipeline.

    Attributes:
        name: key in `respodiff.methods.registry.NAMES`.
        kinds: kinds of concepts that it takes ("fairness", "safety").
        config: dataclass of its settings. defaults: kind -> settings that differ from the dataclass's own.
        presets: (name of a preset, concept or kind, changes) -> settings, for a method that has several.
        make: trains or builds its adapter.
        adapter: class of its adapters, which says how they act.
        needs_classifier: kinds of concepts for which it needs a classifier of images; it then makes one adapter of all alternatives.
        trains: whether making an adapter calls the model.
        resumes: whether a stopped training can go on.
        default_concept: the concept that is taken where none is named.
    """

    name: str
    kinds: tuple[str, ...]
    config: Any
    make: Make
    adapter: type[Adapter] = ConceptModule
    defaults: Callable[[str], dict[str, Any]] = lambda _kind: {}
    presets: Callable[..., Any] | None = None
    needs_classifier: tuple[str, ...] = ()
    trains: bool = True
    resumes: bool = False
    default_concept: Concept | None = None

    def settings(self, concept: Concept | str = "fairness", *, preset: str = "default", **changes: Any) -> Any:
        """Its settings for a concept or a kind of concepts, with ``changes`` on top. ValueError lists the known settings or presets."""
        if self.presets:
            return self.presets(preset, concept, **changes)
        if preset != "default":
            raise ValueError(f"preset {preset!r} is given beside method {self.name!r}, which has no presets; leave it out")
        known = [f.name for f in fields(self.config)]
        if unknown := sorted(set(changes) - set(known)):
            raise ValueError(f"setting {unknown[0]!r} is unknown; method {self.name!r} has: {', '.join(known) or 'none'}")
        return self.config(**{**self.defaults(concept if isinstance(concept, str) else concept.kind), **changes})

    def check(self, concept: Concept) -> None:
        """ValueError for a concept of a kind that the method does not take."""
        if concept.kind not in self.kinds:
            raise ValueError(
                f"method {self.name!r} takes {' and '.join(self.kinds)} concepts, {concept.name!r} is a {concept.kind} concept; "
                "choose another method or concept"
            )

    def train(
        self, pipe: Any, concept: Concept, config: Any = None, *, classify: Classify | None = None, resume: Any = None
    ) -> Iterator[Any]:
        """Train or build the adapter of a concept, as a generator of records.

        Args:
            pipe: diffusers pipeline; left as it was. concept: prompts; its alternatives are the target and the opposites.
            config: from `settings`. classify: see `Classify`. resume: ``record.state.tensors()`` of an earlier run.

        Raises:
            ValueError: for a concept or settings that the method cannot take, before anything is computed.
        """
        self.check(concept)
        if concept.kind in self.needs_classifier and classify is None:
            raise ValueError(
                f"method {self.name!r} needs a classifier of images for {concept.kind} concepts; give classify=, or --judge NAME on the command line"
            )
        return self.make(pipe, concept, config or self.settings(concept.kind), classify=classify, resume=resume)

    def fit(self, pipe: Any, concept: Concept, config: Any = None, *, classify: Classify | None = None) -> Adapter:
        """`train` to the end: the adapter."""
        (last,) = deque(self.train(pipe, concept, config, classify=classify), maxlen=1)
        made: Adapter = last.module
        return made
