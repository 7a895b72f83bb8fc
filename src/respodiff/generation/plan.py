"""Plans a run: checks the prompts, makes one job an image with its settings, and batches jobs of equal settings."""

from __future__ import annotations

import logging
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from respodiff.concepts.concept import is_unicode
from respodiff.concepts.intersections import factors, split
from respodiff.data.records import Prompt, image_id
from respodiff.generation.config import LARGEST, GenerateConfig
from respodiff.generation.policies import Target, assign_run, checked_shares
from respodiff.pipelines.denoiser import check_length
from respodiff.pipelines.latents import Size, latent_shape, noise, noise_generator, pixels_of_latent, to_pipeline_format
from respodiff.pipelines.loading import sampling_settings
from respodiff.pipelines.registry import call_arguments, spec_of
from respodiff.steering.adapter import Adapter
from respodiff.training.config import MOST

GUIDANCE = (1.0, 20.0)
"""Range in which a data set's own guidance is used. Beyond it (I2P has 255) images burn out."""

Groups = Mapping[str, Mapping[str, Adapter]]
"""Attribute (or intersection of attributes) -> concept -> adapter."""


@dataclass(frozen=True)
class Job:
    """One image to generate; fields as in `respodiff.data.records.ImageRecord`.

    Attributes:
        size: (height, width) in pixels, None for the model's own.
        own_seed: the data set's own seed, to which ``repeat`` is added; None if the noise comes from the run's seed.
    """

    prompt: Prompt
    repeat: int
    concepts: dict[str, str]
    steps: int
    guidance: float
    size: Size | None = None
    own_seed: int | None = None
    skipped_attributes: Mapping[str, str] = field(default_factory=dict)
    margins: Mapping[str, float] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return image_id(self.prompt.id, self.repeat)


def attribute_of(adapter: Adapter) -> str:
    """The attribute that an adapter is sampled for; "concept" for concepts of no attribute."""
    return adapter.header.attribute or "concept"


def plan(
    pipe: Any,
    prompts: Sequence[Prompt],
    names: Mapping[str, Sequence[str]],
    config: GenerateConfig,
    skipped: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Job]:
    """The jobs of a run, ``config.images`` of every prompt.

    The concepts of an image depend on all prompts of the run (`respodiff.generation.policies.assign_run`): a part of a run is planned as a whole.

    Args:
        names: attribute -> concepts to sample from.
        skipped: text of a prompt -> attribute that it gets no concept of -> why.

    Warns once of each kind of data set setting that cannot be followed. ValueError for wrong proportions, or more than a million jobs.
    """
    if len(prompts) * config.images > MOST:
        raise ValueError(f"images is {config.images:,} of each of {len(prompts):,} prompts; allowed: {MOST:,} images; make several runs")
    steps, run_guidance = sampling_settings(pipe, config.steps, config.guidance)
    if config.use_dataset_settings:
        _warn_of_ignored_settings(prompts, run_guidance)
    of_group = config.group_proportions or {}
    if unknown := sorted(set(of_group) - {p.group for p in prompts}):
        raise ValueError(f"group_proportions has group {unknown[0]!r}, which no prompt is of; leave it out")
    for group, own in of_group.items():
        try:
            checked_shares(names, own)
        except ValueError as error:
            raise ValueError(f"group {group!r}: {error}") from error
    why = {p.id: (skipped or {}).get(p.text, {}) for p in prompts}
    left_out = {p: {f for name in found for f in factors(name)} for p, found in why.items()}
    targets = {
        p.id: Target(
            p.group,
            {**(config.target_proportions or {}), **of_group.get(p.group, {})},
            [a for a in names if left_out[p.id].issuperset(factors(a))],
        )
        for p in prompts
    }
    whole = run_size(pipe, config)
    rows = assign_run(names, config.images, config.policy, targets, config.seed)
    jobs: list[Job] = []
    for prompt in prompts:
        guidance, size, seed = float(run_guidance), whole, None
        if config.use_dataset_settings:
            size, seed = own_size(pipe, prompt) if prompt.height and prompt.width else whole, prompt.seed
            if prompt.guidance is not None and GUIDANCE[0] <= prompt.guidance <= GUIDANCE[1]:
                guidance = float(prompt.guidance)
        for i, row in enumerate(rows[prompt.id]):
            concepts = {a: c for a, c in split(row).items() if a not in left_out[prompt.id]}
            jobs.append(Job(prompt, i, concepts, steps, guidance, size, seed, why[prompt.id]))
    return jobs


def check_prompts(pipe: Any, prompts: Sequence[Prompt], config: GenerateConfig) -> None:
    """ValueError for prompts that are empty, given twice, or longer than the model reads; a warning if their ends are cut off."""
    if not prompts:
        raise ValueError("there is no prompt; give at least one")
    if empty := [p.id for p in prompts if not p.text.strip()]:
        raise ValueError(f"prompt {empty[0]!r} is empty; give a text")
    if halves := [p.text for p in prompts if not is_unicode(p.text)]:
        raise ValueError(f"prompt {halves[0]!r} holds half of a character; give a text in UTF-8")
    if twice := [i for i, k in Counter(p.id for p in prompts).items() if k > 1]:
        raise ValueError(f"prompt {twice[0]!r} is given twice; ask for more images of it instead")
    texts = list(dict.fromkeys(p.text for p in prompts))
    if not config.truncate_prompts:
        try:
            check_length(pipe, texts)
        except ValueError as error:
            raise ValueError(f"{error}, or have it cut off there with truncate_prompts=True (--truncate-prompts)") from error
    elif n := sum(len(ids) > pipe.tokenizer.model_max_length for ids in pipe.tokenizer(texts).input_ids):
        warnings.warn(f"{n} of {len(texts)} prompts are longer than the model reads: their ends are cut off", stacklevel=3)


def check_steps(pipe: Any, steps: int) -> None:
    """ValueError for more sampler steps than the scheduler has timesteps, which would fail at the first image."""
    config = pipe.scheduler.config
    # Leading timesteps are moved up by the offset, and the model must know the last one too.
    offset = config.get("steps_offset", 0) if config.get("timestep_spacing") == "leading" else 0
    most = config.get("num_train_timesteps", steps + offset) - offset
    if steps > most:
        raise ValueError(f"steps is {steps}; allowed: 1 to {most}, which is what {type(pipe.scheduler).__name__} of this model has")


def batches(jobs: Iterable[Job], most: int, one_text: bool = False) -> Iterator[Sequence[Job]]:
    """The jobs in batches of at most ``most``, each of one guidance and one size, and with ``one_text`` of one prompt.

    A batch comes as soon as it is full.
    """
    alike: dict[tuple[float, Size | None, str], list[Job]] = {}
    for job in jobs:
        key = (job.guidance, job.size, job.prompt.id if one_text else "")
        batch = alike.setdefault(key, [])
        batch.append(job)
        if len(batch) == most:
            yield alike.pop(key)
    yield from alike.values()


def start(pipe: Any, config: GenerateConfig, job: Job) -> tuple[Tensor, torch.Generator]:
    """Start latent (1, C, H, W) of an image, and the generator for schedulers that add noise at every step."""
    if job.own_seed is None:
        latent = noise(pipe, config.seed, job.prompt.id, job.repeat, job.size)
        return latent, noise_generator(config.seed, f"{job.prompt.id}/steps", job.repeat)
    generator = torch.Generator("cpu").manual_seed((job.own_seed + job.repeat) % (1 << 64))
    return torch.randn(1, *latent_shape(pipe, *(job.size or ())), generator=generator), generator


@contextmanager
def _without_truncation_notices(pipe: Any) -> Iterator[None]:
    """While active, diffusers does not say of every batch what `check_prompts` has said once."""

    def keep(record: logging.LogRecord) -> bool:
        return "truncated" not in str(record.msg)

    logger = logging.getLogger(type(pipe).__module__)
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def run_sampler(
    pipe: Any, prompts: Sequence[str], latents: Tensor, generators: Sequence[torch.Generator] | None, at: Job, **more: Any
) -> Any:
    """What the pipeline gives for these prompts and start latents, with the steps, guidance and size of a job."""
    height, width = at.size or native_size(pipe)
    more |= {"num_inference_steps": at.steps, "generator": list(generators) if generators else None}
    with _without_truncation_notices(pipe):
        return pipe(
            **call_arguments(pipe, prompts, at.guidance), height=height, width=width, latents=to_pipeline_format(pipe, latents), **more
        )


def run_size(pipe: Any, config: GenerateConfig) -> Size | None:
    """The (height, width) in pixels of the settings, None for the model's own; ValueError for one that the pipeline does not take."""
    latent = latent_shape(pipe, config.height or 0, config.width or 0)
    height, width = (side * pixels_of_latent(pipe) for side in latent[1:])
    return None if latent == latent_shape(pipe) else (height, width)


def native_size(pipe: Any) -> Size:
    """The model's own (height, width) in pixels."""
    height, width = (side * pixels_of_latent(pipe) for side in latent_shape(pipe)[1:])
    return height, width


def own_size(pipe: Any, prompt: Prompt) -> Size | None:
    """The (height, width) in pixels that a data set asks for, rounded to multiples of 8 and of the VAE's factor.

    None stands for the model's own size: if nothing else is asked for, or a side is below 1 or above `LARGEST`.
    """
    sides = [side for side in (prompt.height, prompt.width) if side is not None and 1 <= side <= LARGEST]
    if len(sides) < 2:
        return None
    step = math.lcm(8, pixels_of_latent(pipe), spec_of(pipe).multiple)
    height, width = (max(step, round(side / step) * step) for side in sides)
    return None if (height, width) == native_size(pipe) else (height, width)


def _warn_of_ignored_settings(prompts: Sequence[Prompt], guidance: float) -> None:
    if all(p.seed is None and p.guidance is None and p.height is None and p.width is None for p in prompts):
        warnings.warn("own settings are asked for, but no prompt brings any: the run's are used", stacklevel=4)
    low, high = GUIDANCE
    other = sum(p.guidance is not None and not low <= p.guidance <= high for p in prompts)
    sides = [(p.height, p.width) for p in prompts if p.height is not None and p.width is not None]
    refused = sum(not 1 <= min(pair) <= max(pair) <= LARGEST for pair in sides)
    for n, text in (
        (other, f"guidance outside {low:g} to {high:g}: the run's {guidance:g} is used"),
        (refused, f"a side outside 1 to {LARGEST} pixels: the model's own size is used"),
    ):
        if n:
            warnings.warn(f"{n} of {len(prompts)} prompts ask for {text}", stacklevel=4)
