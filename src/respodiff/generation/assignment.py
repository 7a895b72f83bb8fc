"""Predicts which concept a noise would show, assigns the sampled concepts to the noises that favour them, and gives each image its adapters.

h of the first unsteered steps is compared with its mean for prompts that name a concept:

m_k   mean h of images of the k-th prompt ("a woman"), over the same noises for all k
w_k = <h, m_k> - |m_k|^2 / 2                              score: highest for the nearest mean
q_k = min over j of (w_k - w_j) / (|m_k - m_j|^2 / 2)     margin: 1 at m_k, 0 half-way to the nearest other mean, -1 at it
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from respodiff.concepts.intersections import asked
from respodiff.generation.config import GenerateConfig
from respodiff.generation.plan import Groups, Job, attribute_of, batches, run_sampler, start
from respodiff.pipelines.latents import Size, latent_shape, noise_generator
from respodiff.pipelines.registry import spec_of
from respodiff.steering.adapter import Adapter
from respodiff.steering.steer import capture_h

UNSAFE = 0.3
"""An image with this margin for a safety module's negative prompt counts as unsafe."""
ROLLOUTS = 24
"""Noises that a mean is taken over. With 8 the prediction is markedly worse."""
HARMLESS = ("a person", "an animal", "an object", "a thing", "")
"""Harmless prompts that an unsafe one is compared with. With people alone, images of things would be nearer to "violence"."""

Array = np.ndarray[Any, Any]


class Prediction(NamedTuple):
    """Scores w (K,) and margins q (K,) of one image for K prompts."""

    scores: Array
    margins: Array


class _StopPipeline(Exception):
    """Ends a call of the pipeline after h has been read."""


class Predictor:
    """Compares h of images, after ``calls`` calls of the model (1 is the first step), with the mean h of prompts."""

    def __init__(self, pipe: Any, config: GenerateConfig, calls: int = 1) -> None:
        self.pipe, self.config, self.calls = pipe, config, calls
        self._means: dict[tuple[str, float, Size | None], Tensor] = {}

    def predict(self, jobs: Iterable[Job], prompts: Mapping[str, Sequence[str]]) -> Iterator[tuple[Job, dict[str, Prediction]]]:
        """Each job with name -> prediction, for the named lists of prompts."""
        for batch in batches(jobs, self.config.batch, spec_of(self.pipe).one_text):
            latents, generators = zip(*(start(self.pipe, self.config, job) for job in batch), strict=True)
            h = self.read([job.prompt.text for job in batch], torch.cat(latents), batch[0], generators)
            means = {name: self.means(texts, batch[0]) for name, texts in prompts.items()}
            found = {name: (scores(h, m), alignment_margin(h, m)) for name, m in means.items()}
            for i, job in enumerate(batch):
                yield job, {name: Prediction(w[i], q[i]) for name, (w, q) in found.items()}

    def means(self, prompts: Sequence[str], at: Job) -> Tensor:
        """Mean h (K, F) of images of K prompts with the steps, guidance and size of a job. Each is computed once."""
        for prompt in prompts:
            if (key := (prompt, at.guidance, at.size)) not in self._means:
                self._means[key] = self._mean(prompt, at)
        return torch.stack([self._means[prompt, at.guidance, at.size] for prompt in prompts])

    def _mean(self, prompt: str, at: Job) -> Tensor:
        found = []
        for first in range(0, ROLLOUTS, self.config.batch):
            repeats = range(first, min(first + self.config.batch, ROLLOUTS))
            generators = [noise_generator(0, "prediction", i) for i in repeats]
            latents = torch.cat([torch.randn(1, *latent_shape(self.pipe, *(at.size or ())), generator=g) for g in generators])
            found.append(self.read([prompt] * len(repeats), latents, at, generators))
        return torch.cat(found).mean(0)

    def read(self, prompts: Sequence[str], latents: Tensor, at: Job, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """h (B, F) of the conditional rows of B unsteered images from start latents (B, C, H, W), float32 on the CPU.

        Steps, guidance and size are those of ``at``. The pipeline is stopped after h has been read.
        """
        found: list[Tensor] = []

        def seen(h: Tensor) -> None:
            found.append(h)
            if len(found) == self.calls:
                raise _StopPipeline

        try:
            with capture_h(self.pipe, seen):
                run_sampler(self.pipe, prompts, latents, generators, at, output_type="latent")
        except _StopPipeline:
            pass
        return found[-1].detach().float().flatten(1).cpu()


def scores(h: Tensor, means: Tensor) -> Array:
    """Scores w (B, K) of h (B, F) for means (K, F). The difference of two is half that of the squared distances to both means."""
    return (h @ means.T - means.square().sum(1) / 2).numpy()


def alignment_margin(h: Tensor, means: Tensor) -> Array:
    """Margins q (B, K) of h (B, F) for means (K, F)."""
    w = torch.from_numpy(scores(h, means))
    gaps = torch.cdist(means, means).square() / 2
    margins = (w[:, :, None] - w[:, None, :]) / gaps.clamp_min(1e-12)
    margins[:, range(len(means)), range(len(means))] = torch.inf
    return margins.amin(2).numpy()


def predict_unsafe(pipe: Any, jobs: Iterable[Job], safety: Sequence[Adapter], config: GenerateConfig) -> Iterator[Job]:
    """The jobs with the margin of each safety module's negative prompt against harmless prompts, in ``Job.margins`` by the module's name."""
    prompts = {m.name: list(dict.fromkeys([m.header.negative, m.header.neutral, *HARMLESS])) for m in safety}
    for job, found in Predictor(pipe, config).predict(jobs, prompts):
        yield replace(job, margins={**job.margins, **{name: float(p.margins[0]) for name, p in found.items()}})


def assign_concepts_to_noises(pipe: Any, jobs: Sequence[Job], groups: Groups, config: GenerateConfig, done: set[str]) -> Iterator[Job]:
    """The jobs whose id is not in ``done``, with each prompt's concepts assigned to the noises that favour them. Counts are unchanged.

    Concepts of several attributes that were sampled for one image stay together. A prompt is predicted as a whole, if its concepts differ.
    """
    predictor: Predictor | None = None
    prompts = {a: [m.header.target for m in group.values()] for a, group in groups.items()}
    for _, those in groupby(jobs, key=lambda job: job.prompt.id):
        of_prompt = list(those)
        todo = {job.id for job in of_prompt} - done
        if todo and any(job.concepts != of_prompt[0].concepts for job in of_prompt):
            predictor = predictor or Predictor(pipe, config, max(1, round(config.assign_at * of_prompt[0].steps)))
            of_prompt = _assigned(of_prompt, predictor, prompts, groups)
        yield from (job for job in of_prompt if job.id in todo)


def _assigned(jobs: Sequence[Job], predictor: Predictor, prompts: Mapping[str, Sequence[str]], groups: Groups) -> list[Job]:
    """The jobs of one prompt with their concepts permuted to the greatest sum of scores, and the margins of these."""
    found = [predicted for _, predicted in predictor.predict(jobs, prompts)]
    places = [{a: list(group).index(name) for a, group in groups.items() if (name := asked(job.concepts, a)) is not None} for job in jobs]
    totals = np.array([[sum(own[a].scores[k] for a, k in place.items()) for place in places] for own in found])
    _, columns = linear_sum_assignment(totals, maximize=True)  # rows come in order
    return [
        replace(job, concepts=jobs[j].concepts, margins={a: float(own[a].margins[k]) for a, k in places[j].items()})
        for job, own, j in zip(jobs, found, columns, strict=True)
    ]


class AdaptersOfImages:
    """The adapters of each image at the scales of the run: those of its concepts in ``groups``, and the ``common`` ones of every image."""

    def __init__(self, groups: Groups, common: Sequence[Adapter], config: GenerateConfig) -> None:
        self.by_need = config.safety_mode == "predicted"
        self.groups = {a: {name: (m, m.scale(config.scale)) for name, m in group.items()} for a, group in groups.items()}
        self.common = [(m, m.scale(config.scale if m.header.kind == "attribute" else config.safety_scale)) for m in common]

    def of(self, job: Job) -> list[tuple[Adapter, Adapter]]:
        """For each adapter of an image (the adapter as in its file, the adapter at its scale)."""
        names = {attribute: asked(job.concepts, attribute) for attribute in self.groups}
        out = [self.groups[attribute][name] for attribute, name in names.items() if name is not None]
        common = [(m, scaled) for m, scaled in self.common if m.header.kind != "attribute" or attribute_of(m) not in job.skipped_attributes]
        if self.by_need and not any(job.margins[m.name] > UNSAFE for m, _ in common if m.header.kind == "safety"):
            common = [(m, scaled) for m, scaled in common if m.header.kind != "safety"]
        return out + common
