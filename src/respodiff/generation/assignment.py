"""Assigns the concepts that the policy sampled to the initial noises that favour them, and gives each image its adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from respodiff.concepts.intersections import asked
from respodiff.generation.config import GenerateConfig
from respodiff.generation.plan import Groups, Job, attribute_of
from respodiff.generation.prediction import Array, Predictor
from respodiff.steering.adapter import Adapter

ALIGNED = 0.4
"""A noise with this margin favours its concept clearly."""
UNSAFE = 0.3
"""An image with this margin for a safety module's negative prompt counts as unsafe."""


def assign_concepts_to_noises(pipe: Any, jobs: Sequence[Job], groups: Groups, config: GenerateConfig, done: set[str]) -> Iterator[Job]:
    """The jobs that are not done, with each prompt's concepts assigned to the noises that favour them. Counts are unchanged.

    Concepts of several attributes that were sampled for one image stay together. A prompt is predicted as a whole, if that can change an image.

    Args:
        groups: attributes to predict. done: ids of images in the run folder.
    """
    predictor: Predictor | None = None
    prompts = {a: [m.header.target for m in group.values()] for a, group in groups.items()}
    for _, those in groupby(jobs, key=lambda job: job.prompt.id):
        of_prompt = list(those)
        todo = {job.id for job in of_prompt} - done
        if todo and _matters(of_prompt, groups, config):
            predictor = predictor or Predictor(pipe, config, max(1, round(config.assign_at * of_prompt[0].steps)))
            of_prompt = _assigned(of_prompt, predictor, prompts, groups)
        yield from (job for job in of_prompt if job.id in todo)


def _matters(jobs: Sequence[Job], groups: Groups, config: GenerateConfig) -> bool:
    """Whether a prediction can change an image of a prompt: its concepts differ, or one of two alternatives may get a reduced scale."""
    binary = any(asked(job.concepts, a) is not None for a, group in groups.items() if len(group) == 2 for job in jobs)
    return any(job.concepts != jobs[0].concepts for job in jobs) or (binary and config.aligned_scale != 1)


def _assigned(jobs: Sequence[Job], predictor: Predictor, prompts: Mapping[str, Sequence[str]], groups: Groups) -> list[Job]:
    """The jobs of one prompt with their concepts permuted, and the margins of these."""
    found = [predicted for _, predicted in predictor.predict(jobs, prompts)]
    places = [{a: list(group).index(name) for a, group in groups.items() if (name := asked(job.concepts, a)) is not None} for job in jobs]
    totals = np.array([[sum(own[a].scores[k] for a, k in place.items()) for place in places] for own in found])
    return [
        replace(job, concepts=jobs[j].concepts, margins={a: float(own[a].margins[k]) for a, k in places[j].items()})
        for job, own, j in zip(jobs, found, best_assignment(totals), strict=True)
    ]


def best_assignment(scores: Array) -> list[int]:
    """The permutation with the greatest sum of scores: which of n samples each of n images gets.

    Args:
        scores: (n, n); row i holds the scores of image i for samples 0 to n - 1.

    >>> best_assignment(np.array([[1.0, 9.0, 9.0], [8.0, 2.0, 2.0], [3.0, 7.0, 7.0]]))
    [1, 0, 2]
    """
    rows, columns = linear_sum_assignment(scores, maximize=True)
    return [int(j) for _, j in sorted(zip(rows.tolist(), columns.tolist(), strict=True))]


class AdaptersOfImages:
    """The adapters of each image, at the scales of the run.

    Args:
        groups: alternatives that the policy samples from. common: adapters of every image.
    """

    def __init__(self, groups: Groups, common: Sequence[Adapter], config: GenerateConfig) -> None:
        self.groups, self.common, self.config = groups, common, config
        self._scaled: dict[tuple[int, float], Adapter] = {}

    def of(self, job: Job) -> list[tuple[Adapter, Adapter]]:
        """For each adapter of an image (the adapter as in its file, the adapter at its scale)."""
        out = []
        for attribute, group in self.groups.items():
            if (name := asked(job.concepts, attribute)) is not None:
                # Of three alternatives and more the order of images can be trusted, but not their margins.
                part = reduced_scale(job.margins.get(attribute, 0.0), self.config.aligned_scale) if len(group) == 2 else 1.0
                out.append(self._pair(group[name], self.config.scale * round(part, 2)))
        common = [m for m in self.common if m.header.kind != "attribute" or attribute_of(m) not in job.skipped_attributes]
        if self.config.safety_mode == "predicted" and not any(job.margins[m.name] > UNSAFE for m in common if m.header.kind == "safety"):
            common = [m for m in common if m.header.kind != "safety"]
        scales = self.config.scale, self.config.safety_scale
        return out + [self._pair(m, scales[m.header.kind != "attribute"]) for m in common]

    def _pair(self, adapter: Adapter, scale: float) -> tuple[Adapter, Adapter]:
        key = (id(adapter), scale)
        if key not in self._scaled:
            self._scaled[key] = adapter.scale(scale)
        return adapter, self._scaled[key]


def reduced_scale(margin: float, aligned_scale: float) -> float:
    """Factor on the scale of an image whose noise has this margin: 1 up to margin 0, ``aligned_scale`` from `ALIGNED` on, linear between.

    >>> [round(reduced_scale(q, 0.1), 3) for q in (-0.5, 0.0, 0.2, 0.4, 1.0)]
    [1.0, 1.0, 0.55, 0.1, 0.1]
    """
    return 1 - (1 - aligned_scale) * min(1.0, max(0.0, margin / ALIGNED))
