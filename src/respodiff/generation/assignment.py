"""A policy's draws assigned to the noises that favour them: counts stay as drawn, and images change less for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from respodiff.concepts.intersections import asked
from respodiff.generation.config import ALIGNED_SCALE, ASSIGN_AT, ASSIGN_AT_MANY, GenerateConfig
from respodiff.generation.image_adapters import Groups
from respodiff.generation.plan import Job, batches, start
from respodiff.generation.prediction import Means, Moment, alignment_margin, matched, read, scores
from respodiff.methods.registry import get_method
from respodiff.pipelines.compiled import is_compiled
from respodiff.pipelines.registry import spec_of
from respodiff.steering.adapter import Adapter


class NoiseScores(NamedTuple):
    """How far one image favours each of K concepts: what assigning them counts (K,), and `respodiff.generation.prediction.alignment_margin` (K,)."""

    assignment_scores: np.ndarray[Any, Any]
    alignment_margin: np.ndarray[Any, Any]


Scores = Mapping[str, NoiseScores]
"""Attribute -> how far one image favours its concepts."""


def assign_concepts_to_noises(pipe: Any, jobs: Sequence[Job], groups: Groups, config: GenerateConfig, done: set[str]) -> Iterator[Job]:
    """The jobs that are not done, with the draws of each prompt assigned anew by prediction (`respodiff.generation.prediction`).

    Every prompt keeps the concepts that the policy drew for it, and how often. Of several attributes the subgroups of an image stay together.
    A prompt is read as a whole when its first image is due; it is not read if every image is done, or if nothing depends on it: all draw the
    same and none can be scaled down.

    Args:
        groups: what is drawn. done: ids of images that the run folder holds.
    """
    reader = _NoiseReader(pipe, groups, config)
    for _, those in groupby(jobs, key=lambda job: job.prompt.id):
        of_prompt = list(those)
        todo = [job.id for job in of_prompt if job.id not in done]
        if todo and _matters(of_prompt, groups, config):
            of_prompt = _assign_prompt(of_prompt, reader.noise_scores(of_prompt), groups)
        yield from (job for job in of_prompt if job.id in todo)


def read_of(pipe: Any, drawn: Groups, config: GenerateConfig) -> tuple[Groups, GenerateConfig]:
    """The attributes of which predictions are read, and the settings with ``assign_at`` and ``aligned_scale`` decided where they are None.

    Unless the settings say otherwise, these are the attributes with RespoDiff's modules, read early if all have two alternatives and later
    if one has more: early steps tell two genders apart, and rank three skin tones hardly at all (docs/method.md). Of a compiled model nothing
    is read.

    Raises:
        ValueError: if the settings ask to read a compiled model.
    """
    compiled = is_compiled(getattr(pipe, spec_of(pipe).model))
    if compiled and (
        wanted := f"assign_at is {config.assign_at:g}"
        if config.assign_at
        else "safety_mode is 'predicted'"
        if config.safety_mode == "predicted"
        else ""
    ):
        raise ValueError(f"{wanted}, and h inside of a compiled model cannot be read; draw with the plain model, or leave it out")
    several = {} if compiled else {a: g for a, g in drawn.items() if len(g) > 1}
    own = {a: g for a, g in several.items() if all(get_method(m.method).assign_by_default for m in g.values())}
    found = several if config.assign_at else own if config.assign_at is None else {}
    usual = (ASSIGN_AT if all(len(g) == 2 for g in own.values()) else ASSIGN_AT_MANY) if own else 0.0
    aligned_scale = ALIGNED_SCALE if found and found.keys() == own.keys() else 1.0
    return found, replace(
        config,
        assign_at=usual if config.assign_at is None else config.assign_at,
        aligned_scale=aligned_scale if config.aligned_scale is None else config.aligned_scale,
    )


def _matters(jobs: Sequence[Job], groups: Groups, config: GenerateConfig) -> bool:
    """Whether reading can change any image of a prompt: its draws differ, or one of two alternatives may be scaled down."""
    some = [a for a, group in groups.items() if len(group) == 2 and any(asked(job.concepts, a) is not None for job in jobs)]
    return any(job.concepts != jobs[0].concepts for job in jobs) or (bool(some) and config.aligned_scale != 1)


def _assign_prompt(jobs: Sequence[Job], found: Sequence[Scores], groups: Groups) -> list[Job]:
    """The jobs of one prompt, each with the draw that it was assigned and how far its noise favours that."""
    order = matched(np.array([[_score_of(own, other, groups) for other in jobs] for own in found]))
    out = []
    for job, own, j in zip(jobs, found, order, strict=True):
        new = replace(job, concepts=jobs[j].concepts)
        places = {a: _place(new, a, group) for a, group in groups.items()}
        out.append(replace(new, margins={a: float(own[a].alignment_margin[k]) for a, k in places.items() if k is not None}))
    return out


class _NoiseReader:
    """Reads predictions, and keeps the means that they are measured from."""

    def __init__(self, pipe: Any, groups: Groups, config: GenerateConfig) -> None:
        self.pipe, self.groups, self.config = pipe, groups, config
        self.calls = max(1, round((config.assign_at or 0.0) * config.steps))
        self.means = Means(pipe, config.batch)

    def noise_scores(self, jobs: Sequence[Job]) -> list[Scores]:
        """Of every image of one prompt how far its noise favours each concept."""
        out: list[Scores] = []
        for batch in batches(jobs, self.config.batch):
            moment = Moment(self.calls, self.config.steps, batch[0].guidance, batch[0].size)
            latents, generators = zip(*(start(self.pipe, self.config, job) for job in batch), strict=True)
            h = read(self.pipe, [job.prompt.text for job in batch], torch.cat(latents), moment, generators)
            rows = {a: (scores(h, m), alignment_margin(h, m)) for a in self.groups for m in (self._means(a, moment),)}
            out += [
                {a: NoiseScores(assignment_scores[i], margin[i]) for a, (assignment_scores, margin) in rows.items()}
                for i in range(len(batch))
            ]
        return out

    def _means(self, attribute: str, moment: Moment) -> Tensor:
        return self.means.of([m.header.target for m in self.groups[attribute].values()], moment)


def _score_of(own: Scores, drawn: Job, groups: Groups) -> float:
    """The sum of an image's scores for the concepts of a draw."""
    places = {a: _place(drawn, a, group) for a, group in groups.items()}
    return float(sum(own[a].assignment_scores[k] for a, k in places.items() if k is not None))


def _place(job: Job, attribute: str, group: Mapping[str, Adapter]) -> int | None:
    """Which concept of an attribute a job draws; None where it draws none."""
    name = asked(job.concepts, attribute)
    return None if name is None else list(group).index(name)
