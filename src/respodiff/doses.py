"""What each picture of a run is drawn with: the drawn modules at their strength, and what is added to every picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from respodiff.cells import taken
from respodiff.config import GenerateConfig
from respodiff.gate import attribute_of
from respodiff.jobs import Job
from respodiff.methods.artefact import Entry
from respodiff.module_file import ConceptModule

Groups = Mapping[str, Mapping[str, Entry]]


class Doses:
    """Modules and artefacts at the strengths of a run.

    Args:
        drawn: attribute -> concept -> what draws it. always: what is added to every picture.

    Raises:
        ValueError: a release is asked of what has none.
    """

    def __init__(self, drawn: Groups, always: Sequence[Entry], config: GenerateConfig) -> None:
        self.drawn, self.always = drawn, always
        self._scaled, self._eased = (
            {a: {n: _released(m.scale(s), config.release) for n, m in group.items()} for a, group in drawn.items()}
            for s in (config.strength, config.strength * (config.ease if config.ease is not None else 1.0))
        )
        self._added = [m.scale(config.strength if m.header.kind == "attribute" else config.safety_strength) for m in always]

    def of(self, job: Job) -> list[Entry]:
        """What the pipeline is given for a picture; less where its noise leans to the concept by itself."""
        chosen = {a: (self._eased if a in job.leans else self._scaled)[a] for a in self.drawn}
        return [*taken(chosen, job.concepts), *_kept(job, self._added)]

    def used(self, job: Job) -> list[Entry]:
        """The same as they are in their files."""
        return [*taken(self.drawn, job.concepts), *_kept(job, self.always)]


def _released(entry: Entry, share: float) -> Entry:
    if not share:
        return entry
    if not isinstance(entry, ConceptModule):
        raise ValueError(f"release is {share}, but {entry.name!r} is of method {entry.header.method!r}, which acts at every step; give 0")
    return entry.released(share)


def _kept(job: Job, always: Sequence[Entry]) -> list[Entry]:
    """What is added to every picture, without what was made of a whole attribute that the gate keeps from this one."""
    return [m for m in always if m.header.kind != "attribute" or attribute_of(m) not in job.gated]
