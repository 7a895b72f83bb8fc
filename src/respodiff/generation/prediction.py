"""Predicts what an initial noise would become, from h of the first unsteered steps.

m_k   mean h of images of the k-th prompt ("a woman"), over the same noises for all k
w_k = <h, m_k> - |m_k|^2 / 2                              score: highest for the nearest mean
q_k = min over j of (w_k - w_j) / (|m_k - m_j|^2 / 2)     margin: 1 at m_k, 0 half-way to the nearest other mean, -1 at it
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from respodiff.data.records import noise_seed
from respodiff.generation.config import GenerateConfig
from respodiff.generation.plan import Job, batches, start
from respodiff.pipelines.latents import Size, latent_shape, to_pipeline_format
from respodiff.steering.adapter import Adapter
from respodiff.steering.steer import capture_h

ROLLOUTS = 24
"""Noises that a mean is taken over. With 8 the prediction is markedly worse."""
HARMLESS = ("a person", "an animal", "an object", "a thing", "")
"""Harmless prompts that an unsafe one is compared with. With people alone, images of things would be nearer to "violence"."""

Array = np.ndarray[Any, Any]


class Prediction(NamedTuple):
    """Scores w (K,) and margins q (K,) of one image for K prompts."""

    scores: Array
    margins: Array


@dataclass(frozen=True)
class Moment:
    """When h is read: after ``calls`` calls of the model (1 is the first step) of a sampler with these settings."""

    calls: int
    steps: int
    guidance: float
    size: Size | None = None


class Predictor:
    """Compares h of images with the mean h of prompts, each of which is computed once.

    Args:
        pipe: diffusers pipeline.
        calls: calls of the model after which h is read.
    """

    def __init__(self, pipe: Any, config: GenerateConfig, calls: int = 1) -> None:
        self.pipe, self.config, self.calls = pipe, config, calls
        self._means: dict[tuple[str, Moment], Tensor] = {}

    def predict(self, jobs: Iterable[Job], prompts: Mapping[str, Sequence[str]]) -> Iterator[tuple[Job, dict[str, Prediction]]]:
        """Each job with name -> prediction, for the named lists of prompts."""
        for batch in batches(jobs, self.config.batch):
            moment = Moment(self.calls, batch[0].steps, batch[0].guidance, batch[0].size)
            latents, generators = zip(*(start(self.pipe, self.config, job) for job in batch), strict=True)
            h = read(self.pipe, [job.prompt.text for job in batch], torch.cat(latents), moment, generators)
            means = {name: self.means(texts, moment) for name, texts in prompts.items()}
            found = {name: (scores(h, m), alignment_margin(h, m)) for name, m in means.items()}
            for i, job in enumerate(batch):
                yield job, {name: Prediction(w[i], q[i]) for name, (w, q) in found.items()}

    def means(self, prompts: Sequence[str], moment: Moment) -> Tensor:
        """Mean h (K, F) of images of K prompts."""
        for prompt in prompts:
            if (prompt, moment) not in self._means:
                self._means[prompt, moment] = self._mean(prompt, moment)
        return torch.stack([self._means[prompt, moment] for prompt in prompts])

    def _mean(self, prompt: str, moment: Moment) -> Tensor:
        shape = (1, *latent_shape(self.pipe, *(moment.size or (0, 0))))
        found = []
        for first in range(0, ROLLOUTS, self.config.batch):
            seeds = [noise_seed(0, "prediction", i) for i in range(first, min(first + self.config.batch, ROLLOUTS))]
            generators = [torch.Generator().manual_seed(s) for s in seeds]
            latents = torch.cat([torch.randn(shape, generator=g) for g in generators])
            found.append(read(self.pipe, [prompt] * len(seeds), latents, moment, generators))
        return torch.cat(found).mean(0)


def predict_unsafe(pipe: Any, jobs: Iterable[Job], safety: Sequence[Adapter], config: GenerateConfig) -> Iterator[Job]:
    """The jobs with the margin of each safety module's negative prompt against harmless prompts, in ``Job.margins`` by the module's name."""
    prompts = {m.name: contrast_prompts(m.header.negative, m.header.neutral) for m in safety}
    for job, found in Predictor(pipe, config).predict(jobs, prompts):
        yield replace(job, margins={**job.margins, **{name: float(p.margins[0]) for name, p in found.items()}})


def contrast_prompts(negative: str, neutral: str) -> list[str]:
    """A safety module's negative prompt, and the harmless prompts that it is compared with.

    >>> contrast_prompts("violence", "a person")
    ['violence', 'a person', 'an animal', 'an object', 'a thing', '']
    """
    return list(dict.fromkeys([negative, neutral, *HARMLESS]))


class _StopPipeline(Exception):
    """Ends a call of the pipeline after h has been read."""


def read(pipe: Any, prompts: Sequence[str], latents: Tensor, moment: Moment, generators: Sequence[torch.Generator] | None = None) -> Tensor:
    """h (B, F) of the conditional rows of B unsteered images, flattened, float32 on the CPU. The pipeline is stopped there.

    Args:
        prompts: one text an image. latents: start latents (B, C, H, W). generators: for schedulers that add noise.
    """
    found: list[Tensor] = []

    def seen(h: Tensor) -> None:
        found.append(h)
        if len(found) == moment.calls:
            raise _StopPipeline

    height, width = moment.size or (None, None)
    try:
        with capture_h(pipe, seen):
            pipe(
                list(prompts),
                height=height,
                width=width,
                num_inference_steps=moment.steps,
                guidance_scale=moment.guidance,
                latents=to_pipeline_format(pipe, latents),
                generator=list(generators) if generators else None,
                output_type="latent",
            )
    except _StopPipeline:
        pass
    return found[-1].detach().float().flatten(1).cpu()


def scores(h: Tensor, means: Tensor) -> Array:
    """Scores w (B, K) of h (B, F) for means (K, F). The difference of two is half that of the squared distances to both means."""
    found: Array = (h @ means.T - means.square().sum(1) / 2).numpy()
    return found


def alignment_margin(h: Tensor, means: Tensor) -> Array:
    """Margins q (B, K) of h (B, F) for means (K, F). On the embedded model .4 was hardly ever wrong."""
    w = torch.from_numpy(scores(h, means))
    gaps = torch.cdist(means, means).square() / 2
    margins = (w[:, :, None] - w[:, None, :]) / gaps.clamp_min(1e-12)
    margins[:, range(len(means)), range(len(means))] = torch.inf
    found: Array = margins.amin(2).numpy()
    return found
