"""What a noise favours by itself, read from h of the plain model: no judge, no image, no module.

The bottleneck of the first sampler steps already tells much of what the finished image will show. Where h of an image lies among the mean
h of the alternatives' own prompts ("a woman", "a man") says which of them its noise favours (`scores`). A policy's draws are assigned by
it (`matched`), and an image that is assigned what it favours needs little steering.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from respodiff.data.run_folder import noise_seed
from respodiff.pipelines.latents import Size, latent_shape, to_pipeline_format
from respodiff.steering.steer import capture_h

ROLLOUTS = 24
"""Noises that each alternative's own prompt is drawn from, the same ones for all: with 8 the prediction is read markedly worse."""


class StopPipeline(Exception):
    """Ends a call of the pipeline whose h has been read."""


@dataclass(frozen=True)
class Moment:
    """When and how h is read: after so many calls of the model (1 is the first step) of a sampler with these settings."""

    calls: int
    steps: int
    guidance: float
    size: Size | None = None


def read(pipe: Any, prompts: Sequence[str], latents: Tensor, moment: Moment, generators: Sequence[torch.Generator] | None = None) -> Tensor:
    """h (B, F) of the conditional rows of unsteered images, flattened, float32 on the CPU; the pipeline is stopped there.

    Args:
        prompts: one text an image. latents: start latents (B, C, H, W).
    """
    found: list[Tensor] = []

    def seen(h: Tensor) -> None:
        found.append(h)
        if len(found) == moment.calls:
            raise StopPipeline

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
    except StopPipeline:
        pass
    return found[-1].detach().float().flatten(1).cpu()


def means(pipe: Any, targets: Sequence[str], moment: Moment, batch: int = 12, rollouts: int = ROLLOUTS) -> Tensor:
    """Mean h (K, F) of the images of K prompts, each from the same ``rollouts`` noises.

    Args:
        targets: the prompt of each alternative ("a woman").
    """
    height, width = moment.size or (0, 0)
    shape = (1, *latent_shape(pipe, height, width))
    out = []
    for prompt in targets:
        found = []
        for start in range(0, rollouts, batch):
            seeds = [noise_seed(0, "leaning", i) for i in range(start, min(start + batch, rollouts))]
            generators = [torch.Generator().manual_seed(s) for s in seeds]
            latents = torch.cat([torch.randn(shape, generator=g) for g in generators])
            found.append(read(pipe, [prompt] * len(seeds), latents, moment, generators))
        out.append(torch.cat(found).mean(0))
    return torch.stack(out)


class Means:
    """Means of a run's prompts, each read once a moment."""

    def __init__(self, pipe: Any, batch: int) -> None:
        self.pipe, self.batch = pipe, batch
        self._held: dict[tuple[str, Moment], Tensor] = {}

    def of(self, targets: Sequence[str], moment: Moment) -> Tensor:
        """`means` (K, F) of these prompts at this moment."""
        for prompt in targets:
            if (prompt, moment) not in self._held:
                self._held[prompt, moment] = means(self.pipe, [prompt], moment, self.batch)[0]
        return torch.stack([self._held[prompt, moment] for prompt in targets])


def scores(h: Tensor, centres: Tensor) -> np.ndarray[Any, Any]:
    """How far each image favours each alternative, (B, K): <h, m_k> - |m_k|^2 / 2.

    The difference of two is half that of the squared distances to both means, so that the nearest mean scores highest.

    Args:
        h: (B, F). centres: means m (K, F).
    """
    found: np.ndarray[Any, Any] = (h @ centres.T - centres.square().sum(1) / 2).numpy()
    return found


def alignment_margin(h: Tensor, centres: Tensor) -> np.ndarray[Any, Any]:
    """How surely each image favours each alternative rather than to the nearest other one, (B, K).

    0 is half-way between the two means, 1 at the alternative's own, -1 at the other's:
    q_k = min over j of (w_k - w_j) / (|m_k - m_j|^2 / 2), w of `scores`. On the embedded model .4 was hardly ever wrong (docs/method.md).
    """
    assignment_scores = torch.from_numpy(scores(h, centres))
    gaps = torch.cdist(centres, centres).square() / 2
    apart = (assignment_scores[:, :, None] - assignment_scores[:, None, :]) / gaps.clamp_min(1e-12)
    apart[:, range(len(centres)), range(len(centres))] = torch.inf
    found: np.ndarray[Any, Any] = apart.amin(2).numpy()
    return found


def matched(assignment_scores: np.ndarray[Any, Any]) -> list[int]:
    """Which draw each image of a prompt is assigned, so that the sum of what they are worth is greatest: a permutation.

    Args:
        assignment_scores: (n, n), row i the scores of image i for the draws 0 to n - 1.

    >>> matched(np.array([[1.0, 9.0, 9.0], [8.0, 2.0, 2.0], [3.0, 7.0, 7.0]]))
    [1, 0, 2]
    """
    rows, columns = linear_sum_assignment(assignment_scores, maximize=True)
    return [int(j) for _, j in sorted(zip(rows.tolist(), columns.tolist(), strict=True))]
