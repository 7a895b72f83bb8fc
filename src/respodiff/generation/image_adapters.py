"""What each image of a run is drawn with: the drawn modules at their scale, and what is added to every image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from respodiff.concepts.intersections import asked
from respodiff.generation.cells import selected
from respodiff.generation.config import GenerateConfig
from respodiff.generation.plan import Job
from respodiff.generation.prompt_filter import attribute_of
from respodiff.steering.adapter import Adapter

ALIGNED = 0.4
"""Predictions from here on count as sure (docs/method.md)."""

UNSAFE = 0.3
"""From here on an image favours what a safety module takes out (docs/method.md)."""

Groups = Mapping[str, Mapping[str, Adapter]]
"""Attribute (or product of attributes) -> concept -> what draws it."""


class ScaledAdapters:
    """Modules and adapters at the scales of a run.

    Args:
        drawn: attribute -> concept -> what draws it. always: what is added to every image.
    """

    def __init__(self, drawn: Groups, always: Sequence[Adapter], config: GenerateConfig) -> None:
        self.drawn, self.always, self.config = drawn, always, config
        self._made: dict[tuple[str, str, float], Adapter] = {}
        self._added = [m.scale(config.scale if m.header.kind == "attribute" else config.safety_scale) for m in always]

    def of(self, job: Job) -> list[Adapter]:
        """What the pipeline is given for an image; less where its noise favours one of two alternatives by itself.

        Of three and more only the order of images can be trusted, not on which side of a mean one lies (docs/method.md).
        """
        names = {a: asked(job.concepts, a) for a in self.drawn}
        parts = {
            a: reduced_scale(job.margins.get(a, 0.0), self.config.aligned_scale) if len(self.drawn[a]) == 2 else 1.0 for a in self.drawn
        }
        drawn = [self._scaled(a, name, parts[a]) for a, name in names.items() if name is not None]
        return [*drawn, *self._kept(job, self._added)]

    def _scaled(self, attribute: str, name: str, part: float) -> Adapter:
        """A module at a part of the run's scale, in steps of a hundredth; made once."""
        key = (attribute, name, round(part, 2))
        if key not in self._made:
            self._made[key] = self.drawn[attribute][name].scale(self.config.scale * key[2])
        return self._made[key]

    def used(self, job: Job) -> list[Adapter]:
        """The same as they are in their files."""
        return [*selected(self.drawn, job.concepts), *self._kept(job, self.always)]

    def _kept(self, job: Job, always: Sequence[Adapter]) -> list[Adapter]:
        """What is added to every image, without what was made of a whole attribute that the prompt filter keeps from this one, and without
        safety modules if it favours nothing that any of them takes out; they were made to act together."""
        kept = [m for m in always if m.header.kind != "attribute" or attribute_of(m) not in job.skipped_attributes]
        conditional_safety = [m for m in kept if m.header.kind == "safety"]
        if self.config.safety_mode == "always" or any(job.margins[m.name] > UNSAFE for m in conditional_safety):
            return kept
        return [m for m in kept if m.header.kind != "safety"]


def reduced_scale(alignment_margin: float, aligned_scale: float | None) -> float:
    """The part of the scale for a noise that leans so surely to what it was assigned: 1 to 0 and below, ``aligned_scale`` from `ALIGNED` on.

    >>> [round(reduced_scale(q, 0.1), 3) for q in (-0.5, 0.0, 0.2, 0.4, 1.0)]
    [1.0, 1.0, 0.55, 0.1, 0.1]
    """
    least = 1.0 if aligned_scale is None else aligned_scale
    return 1 - (1 - least) * min(1.0, max(0.0, alignment_margin / ALIGNED))
