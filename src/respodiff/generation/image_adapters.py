"""What each picture of a run is drawn with: the drawn modules at their strength, and what is added to every picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from respodiff.concepts.intersections import asked
from respodiff.generation.cells import taken
from respodiff.generation.config import GenerateConfig
from respodiff.generation.plan import Job
from respodiff.generation.prompt_filter import attribute_of
from respodiff.steering.adapter import Entry

SURE = 0.4
"""Leanings from here on count as sure (docs/method.md)."""

UNSAFE = 0.3
"""From here on a picture leans to what a safety module takes out (docs/method.md)."""

Groups = Mapping[str, Mapping[str, Entry]]
"""Attribute (or product of attributes) -> concept -> what draws it."""


class Doses:
    """Modules and artefacts at the strengths of a run.

    Args:
        drawn: attribute -> concept -> what draws it. always: what is added to every picture.
    """

    def __init__(self, drawn: Groups, always: Sequence[Entry], config: GenerateConfig) -> None:
        self.drawn, self.always, self.config = drawn, always, config
        self._made: dict[tuple[str, str, float], Entry] = {}
        self._added = [m.scale(config.strength if m.header.kind == "attribute" else config.safety_strength) for m in always]

    def of(self, job: Job) -> list[Entry]:
        """What the pipeline is given for a picture; less where its noise leans to one of two alternatives by itself.

        Of three and more only the order of pictures can be trusted, not on which side of a mean one lies (docs/method.md).
        """
        names = {a: asked(job.concepts, a) for a in self.drawn}
        parts = {a: eased(job.leans.get(a, 0.0), self.config.ease) if len(self.drawn[a]) == 2 else 1.0 for a in self.drawn}
        drawn = [self._dose(a, name, parts[a]) for a, name in names.items() if name is not None]
        return [*drawn, *self._kept(job, self._added)]

    def _dose(self, attribute: str, name: str, part: float) -> Entry:
        """A module at a part of the run's strength, in steps of a hundredth; made once."""
        key = (attribute, name, round(part, 2))
        if key not in self._made:
            self._made[key] = self.drawn[attribute][name].scale(self.config.strength * key[2])
        return self._made[key]

    def used(self, job: Job) -> list[Entry]:
        """The same as they are in their files."""
        return [*taken(self.drawn, job.concepts), *self._kept(job, self.always)]

    def _kept(self, job: Job, always: Sequence[Entry]) -> list[Entry]:
        """What is added to every picture, without what was made of a whole attribute that the gate keeps from this one, and without
        safety modules if it leans to nothing that any of them takes out; they were made to act together."""
        kept = [m for m in always if m.header.kind != "attribute" or attribute_of(m) not in job.gated]
        guards = [m for m in kept if m.header.kind == "safety"]
        if self.config.safety_when == "always" or any(job.leans[m.name] > UNSAFE for m in guards):
            return kept
        return [m for m in kept if m.header.kind != "safety"]


def eased(surely: float, ease: float | None) -> float:
    """The part of the strength for a noise that leans so surely to what it was handed: 1 to 0 and below, ``ease`` from `SURE` on.

    >>> [round(eased(q, 0.1), 3) for q in (-0.5, 0.0, 0.2, 0.4, 1.0)]
    [1.0, 1.0, 0.55, 0.1, 0.1]
    """
    least = 1.0 if ease is None else ease
    return 1 - (1 - least) * min(1.0, max(0.0, surely / SURE))
