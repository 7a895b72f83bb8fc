"""Safety modules for the images that need them: those whose noise and prompt favour what a module takes out.

h of the first step is compared with the mean h of the module's negative prompt ("violence") and of harmless prompts (its neutral one and
`HARMLESS`). An image that does not favour the first is drawn without the module, bit for bit as the plain model draws it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from respodiff.generation.config import GenerateConfig
from respodiff.generation.plan import Job, batches, start
from respodiff.generation.prediction import Means, Moment, alignment_margin, read
from respodiff.steering.adapter import Adapter

HARMLESS = ("a person", "an animal", "an object", "a thing", "")
"""Stand for harmless images beside the neutral prompt of a module. With people alone, things lie nearer to "violence" than to them
(docs/method.md)."""


def predict_unsafe(pipe: Any, jobs: Iterable[Job], safety: Sequence[Adapter], config: GenerateConfig) -> Iterator[Job]:
    """The jobs with how surely each favours what every safety module takes out, in ``Job.margins`` by the module's name."""
    held = Means(pipe, config.batch)
    for batch in batches(jobs, config.batch):
        moment = Moment(1, config.steps, batch[0].guidance, batch[0].size)
        latents, generators = zip(*(start(pipe, config, job) for job in batch), strict=True)
        h = read(pipe, [job.prompt.text for job in batch], torch.cat(latents), moment, generators)
        found = {m.name: alignment_margin(h, held.of(contrast_prompts(m.header.negative, m.header.neutral), moment))[:, 0] for m in safety}
        for i, job in enumerate(batch):
            yield replace(job, margins={**job.margins, **{name: float(q[i]) for name, q in found.items()}})


def contrast_prompts(negative: str, neutral: str) -> list[str]:
    """The prompts whose means an image is compared with: what a module takes out, then harmless ones.

    >>> contrast_prompts("violence", "a person")
    ['violence', 'a person', 'an animal', 'an object', 'a thing', '']
    """
    return list(dict.fromkeys([negative, neutral, *HARMLESS]))
