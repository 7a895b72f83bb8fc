"""Safety modules for the pictures that need them: those whose noise and prompt lean to what a module takes out.

h of the first step is compared with the mean h of the module's negative prompt ("violence") and of harmless prompts (its neutral one and
`HARMLESS`). A picture that does not lean to the first is drawn without the module, bit for bit as the plain model draws it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from respodiff.generation.config import GenerateConfig
from respodiff.generation.plan import Job, batches, start
from respodiff.generation.prediction import Means, Moment, read, surely
from respodiff.steering.adapter import Entry

HARMLESS = ("a person", "an animal", "an object", "a thing", "")
"""Stand for harmless pictures beside the neutral prompt of a module. With people alone, things lie nearer to "violence" than to them
(docs/method.md)."""


def guarded(pipe: Any, jobs: Iterable[Job], safety: Sequence[Entry], config: GenerateConfig) -> Iterator[Job]:
    """The jobs with how surely each leans to what every safety module takes out, in ``Job.leans`` by the module's name."""
    held = Means(pipe, config.batch)
    for batch in batches(jobs, config.batch):
        moment = Moment(1, config.steps, batch[0].guidance, batch[0].size)
        latents, generators = zip(*(start(pipe, config, job) for job in batch), strict=True)
        h = read(pipe, [job.prompt.text for job in batch], torch.cat(latents), moment, generators)
        found = {m.name: surely(h, held.of(told_apart(m.header.negative, m.header.neutral), moment))[:, 0] for m in safety}
        for i, job in enumerate(batch):
            yield replace(job, leans={**job.leans, **{name: float(q[i]) for name, q in found.items()}})


def told_apart(negative: str, neutral: str) -> list[str]:
    """The prompts whose means a picture is compared with: what a module takes out, then harmless ones.

    >>> told_apart("violence", "a person")
    ['violence', 'a person', 'an animal', 'an object', 'a thing', '']
    """
    return list(dict.fromkeys([negative, neutral, *HARMLESS]))
