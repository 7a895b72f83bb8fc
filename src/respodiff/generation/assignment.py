"""A policy's draws handed to the noises that lean to them: counts stay as drawn, and pictures change less for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from respodiff.concepts.intersections import asked
from respodiff.generation.config import EASE, MATCH, MATCH_MANY, GenerateConfig
from respodiff.generation.image_adapters import Groups
from respodiff.generation.plan import Job, batches, start
from respodiff.generation.prediction import Means, Moment, matched, read, scores, surely
from respodiff.pipelines.compiled import is_compiled
from respodiff.pipelines.registry import adapter
from respodiff.steering.adapter import Entry

OWN = ("respodiff", "respodiff-paper")
"""Methods of which the modules are handed out by leaning unless said otherwise."""


class Leaning(NamedTuple):
    """How far one picture leans to each of K concepts: what handing them out counts (K,), and `respodiff.generation.prediction.surely` (K,)."""

    worth: np.ndarray[Any, Any]
    surely: np.ndarray[Any, Any]


Scores = Mapping[str, Leaning]
"""Attribute -> how far one picture leans to its concepts."""


def handed(pipe: Any, jobs: Sequence[Job], groups: Groups, config: GenerateConfig, done: set[str]) -> Iterator[Job]:
    """The jobs that are not done, with the draws of each prompt handed out anew by leaning (`respodiff.generation.prediction`).

    Every prompt keeps the concepts that the policy drew for it, and how often. Of several attributes the cells of a picture stay together.
    A prompt is read as a whole when its first picture is due; it is not read if every picture is done, or if nothing depends on it: all draw the
    same and none can be eased.

    Args:
        groups: what is drawn. done: ids of pictures that the run folder holds.
    """
    reader = _Reader(pipe, groups, config)
    for _, those in groupby(jobs, key=lambda job: job.prompt.id):
        of_prompt = list(those)
        todo = [job.id for job in of_prompt if job.id not in done]
        if todo and _matters(of_prompt, groups, config):
            of_prompt = _handed_out(of_prompt, reader.leanings(of_prompt), groups)
        yield from (job for job in of_prompt if job.id in todo)


def read_of(pipe: Any, drawn: Groups, config: GenerateConfig) -> tuple[Groups, GenerateConfig]:
    """The attributes of which leanings are read, and the settings with ``match`` and ``ease`` decided where they are None.

    Unless the settings say otherwise, these are the attributes with RespoDiff's modules, read early if all have two alternatives and later
    if one has more: early steps tell two genders apart, and rank three skin tones hardly at all (docs/method.md). Of a compiled model nothing
    is read.

    Raises:
        ValueError: if the settings ask to read a compiled model.
    """
    compiled = is_compiled(getattr(pipe, adapter(pipe).model))
    if compiled and (
        wanted := f"match is {config.match:g}" if config.match else "safety_when is 'leaning'" if config.safety_when == "leaning" else ""
    ):
        raise ValueError(f"{wanted}, and h inside of a compiled model cannot be read; draw with the plain model, or leave it out")
    several = {} if compiled else {a: g for a, g in drawn.items() if len(g) > 1}
    own = {a: g for a, g in several.items() if all(m.header.method in OWN for m in g.values())}
    found = several if config.match else own if config.match is None else {}
    usual = (MATCH if all(len(g) == 2 for g in own.values()) else MATCH_MANY) if own else 0.0
    ease = EASE if found and found.keys() == own.keys() else 1.0
    return found, replace(config, match=usual if config.match is None else config.match, ease=ease if config.ease is None else config.ease)


def _matters(jobs: Sequence[Job], groups: Groups, config: GenerateConfig) -> bool:
    """Whether reading can change any picture of a prompt: its draws differ, or one of two alternatives may be eased."""
    some = [a for a, group in groups.items() if len(group) == 2 and any(asked(job.concepts, a) is not None for job in jobs)]
    return any(job.concepts != jobs[0].concepts for job in jobs) or (bool(some) and config.ease != 1)


def _handed_out(jobs: Sequence[Job], found: Sequence[Scores], groups: Groups) -> list[Job]:
    """The jobs of one prompt, each with the draw that it was handed and how far its noise leans to that."""
    order = matched(np.array([[_worth(own, other, groups) for other in jobs] for own in found]))
    out = []
    for job, own, j in zip(jobs, found, order, strict=True):
        new = replace(job, concepts=jobs[j].concepts)
        places = {a: _place(new, a, group) for a, group in groups.items()}
        out.append(replace(new, leans={a: float(own[a].surely[k]) for a, k in places.items() if k is not None}))
    return out


class _Reader:
    """Reads leanings, and keeps the means that they are measured from."""

    def __init__(self, pipe: Any, groups: Groups, config: GenerateConfig) -> None:
        self.pipe, self.groups, self.config = pipe, groups, config
        self.calls = max(1, round((config.match or 0.0) * config.steps))
        self.means = Means(pipe, config.batch)

    def leanings(self, jobs: Sequence[Job]) -> list[Scores]:
        """Of every picture of one prompt how far its noise leans to each concept."""
        out: list[Scores] = []
        for batch in batches(jobs, self.config.batch):
            moment = Moment(self.calls, self.config.steps, batch[0].guidance, batch[0].size)
            latents, generators = zip(*(start(self.pipe, self.config, job) for job in batch), strict=True)
            h = read(self.pipe, [job.prompt.text for job in batch], torch.cat(latents), moment, generators)
            rows = {a: (scores(h, m), surely(h, m)) for a in self.groups for m in (self._means(a, moment),)}
            out += [{a: Leaning(worth[i], sure[i]) for a, (worth, sure) in rows.items()} for i in range(len(batch))]
        return out

    def _means(self, attribute: str, moment: Moment) -> Tensor:
        return self.means.of([m.header.target for m in self.groups[attribute].values()], moment)


def _worth(own: Scores, drawn: Job, groups: Groups) -> float:
    """The sum of a picture's scores for the concepts of a draw."""
    places = {a: _place(drawn, a, group) for a, group in groups.items()}
    return float(sum(own[a].worth[k] for a, k in places.items() if k is not None))


def _place(job: Job, attribute: str, group: Mapping[str, Entry]) -> int | None:
    """Which concept of an attribute a job draws; None where it draws none."""
    name = asked(job.concepts, attribute)
    return None if name is None else list(group).index(name)
