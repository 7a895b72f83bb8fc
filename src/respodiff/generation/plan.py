"""What a run has to draw: prompts checked, one job an image with the settings that it is drawn with, in batches of equal settings."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from respodiff.concepts.intersections import split
from respodiff.data.run_folder import Prompt, image_id
from respodiff.generation.config import GenerateConfig
from respodiff.generation.policies import assign, prompt_seed
from respodiff.pipelines.latents import Size, latent_shape, noise, noise_generator, noise_shape
from respodiff.pipelines.text_encoding import check_length

GUIDANCE = (1.0, 20.0)
"""A data set's own guidance within this range is used; beyond it (I2P holds 255) images burn out, and the run's is used."""
LARGEST = 2048
"""Sides in pixels beyond this are not drawn: the model's own size is used."""


@dataclass(frozen=True)
class Job:
    """One image to draw.

    Attributes:
        concepts: attribute -> concept that the policy drew; a subgroup of a product as its parts.
        skipped_attributes: attribute -> why nothing of it is drawn (`respodiff.generation.prompt_filter`).
        margins: attribute -> how surely the noise favours the drawn concept by itself (`respodiff.generation.prediction.alignment_margin`); empty if it was not read.
        guidance: the scale that is used. size: (height, width) in pixels, None for the model's own.
        own_seed: the data set's own seed, to which ``repeat`` is added; None where the noise comes from the run's seed.
    """

    prompt: Prompt
    repeat: int
    concepts: dict[str, str]
    guidance: float
    size: Size | None = None
    own_seed: int | None = None
    skipped_attributes: Mapping[str, str] = field(default_factory=dict)
    margins: Mapping[str, float] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return image_id(self.prompt.id, self.repeat)


def plan(pipe: Any, prompts: Sequence[Prompt], names: Mapping[str, Sequence[str]], config: GenerateConfig) -> list[Job]:
    """The jobs of a run: ``config.images`` of every prompt, in the order of the prompts.

    Args:
        pipe: diffusers pipeline, asked for its image size. names: attribute -> concepts to draw from.

    Raises:
        ValueError: proportions that do not sum to 1, or of a group or concept that is not there.

    Warns where a data set's own settings cannot be followed, once for each kind and with the count.
    """
    if config.use_dataset_settings:
        _say_what_is_not_followed(pipe, prompts, config)
    of_group = config.group_proportions or {}
    if unknown := sorted(set(of_group) - {p.group for p in prompts}):
        raise ValueError(f"group_proportions has group {unknown[0]!r}, which no prompt is of; leave it out")
    jobs: list[Job] = []
    for prompt in prompts:
        proportions = {**(config.target_proportions or {}), **of_group.get(prompt.group, {})}
        try:
            rows = assign(names, config.images, config.policy, proportions=proportions, seed=prompt_seed(config.seed, prompt.id))
        except ValueError as error:
            raise ValueError(f"group {prompt.group!r}: {error}" if prompt.group in of_group else str(error)) from error
        own = config.use_dataset_settings
        guidance = prompt.guidance if own and _usable(prompt.guidance) else config.guidance
        size, seed = (own_size(pipe, prompt), prompt.seed) if own else (None, None)
        jobs += [Job(prompt, i, split(row), float(guidance or 0.0), size, seed) for i, row in enumerate(rows)]
    return jobs


def check_prompts(pipe: Any, prompts: Sequence[Prompt], config: GenerateConfig) -> None:
    """ValueError for prompts that are empty, not distinct, or longer than the model reads; a warning where their ends are to be cut."""
    if not prompts:
        raise ValueError("there is no prompt; give at least one")
    if empty := [p.id for p in prompts if not p.text.strip()]:
        raise ValueError(f"prompt {empty[0]!r} is empty; give a text")
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
    """ValueError for more sampler steps than the scheduler has timesteps: it would fail at the first image."""
    config = pipe.scheduler.config
    # Leading timesteps are moved up by the offset, and the last one must still be one that the model knows.
    offset = config.get("steps_offset", 0) if config.get("timestep_spacing") == "leading" else 0
    most = config.get("num_train_timesteps", steps + offset) - offset
    if steps > most:
        raise ValueError(f"steps is {steps}; allowed: 1 to {most}, which is what {type(pipe.scheduler).__name__} of this model has")


def batches(jobs: Iterable[Job], most: int) -> Iterator[Sequence[Job]]:
    """The jobs in batches of at most ``most``, each of one guidance and one size; a batch comes as soon as it is full."""
    alike: dict[tuple[float, Size | None], list[Job]] = {}
    for job in jobs:
        batch = alike.setdefault((job.guidance, job.size), [])
        batch.append(job)
        if len(batch) == most:
            yield alike.pop((job.guidance, job.size))
    yield from alike.values()


def own_size(pipe: Any, prompt: Prompt) -> Size | None:
    """The (height, width) in pixels that a data set asks for, each rounded to what the pipeline can draw.

    That is a multiple of 8 and of the VAE's factor, and at least one such step. None for the model's own size: where nothing is
    asked for, where it is the model's own anyway, and where a side is below 1 or above `LARGEST`.
    """
    asked = (prompt.height, prompt.width)
    if asked[0] is None or asked[1] is None or not _drawable(prompt):
        return None
    step = math.lcm(8, pipe.vae_scale_factor)
    size = (max(step, round(asked[0] / step) * step), max(step, round(asked[1] / step) * step))
    return None if size == native_size(pipe) else size


def native_size(pipe: Any) -> Size:
    """The (height, width) in pixels of the images that the pipeline draws by itself."""
    _, height, width = latent_shape(pipe)
    return height * pipe.vae_scale_factor, width * pipe.vae_scale_factor


def _usable(guidance: float | None) -> bool:
    return guidance is not None and GUIDANCE[0] <= guidance <= GUIDANCE[1]


def _drawable(prompt: Prompt) -> bool:
    return all(side is not None and 1 <= side <= LARGEST for side in (prompt.height, prompt.width))


def _say_what_is_not_followed(pipe: Any, prompts: Sequence[Prompt], config: GenerateConfig) -> None:
    if all(p.seed is None and p.guidance is None and p.height is None and p.width is None for p in prompts):
        warnings.warn("own settings are asked for, but no prompt brings any: the run's are used", stacklevel=4)
    if n := sum(p.guidance is not None and not _usable(p.guidance) for p in prompts):
        warnings.warn(
            f"{n} of {len(prompts)} prompts ask for guidance outside {GUIDANCE[0]:g} to {GUIDANCE[1]:g}: "
            f"they are drawn with the run's {config.guidance:g}",
            stacklevel=4,
        )
    sized = [p for p in prompts if p.height is not None and p.width is not None]
    if n := sum(not _drawable(p) for p in sized):
        warnings.warn(
            f"{n} of {len(prompts)} prompts ask for a side outside 1 to {LARGEST} pixels: the model's own size is used", stacklevel=4
        )
    native = native_size(pipe)
    sizes = [size for p in sized if (size := own_size(pipe, p))]
    if n := sum(max(size) > 2 * max(native) or 2 * min(size) < min(native) for size in sizes):
        warnings.warn(
            f"{n} of {len(prompts)} prompts ask for images far from this model's {native[0]} x {native[1]} pixels, "
            "which it may not draw well: leave own settings off for this model",
            stacklevel=4,
        )


def start(pipe: Any, config: GenerateConfig, job: Job) -> tuple[Tensor, torch.Generator]:
    """Start latent of an image, and the generator for schedulers that draw noise at every step (ancestral ones, DDPM)."""
    if job.own_seed is None:
        latent = noise(pipe, config.seed, job.prompt.id, job.repeat, job.size)
        return latent, noise_generator(config.seed, f"{job.prompt.id}/steps", job.repeat)
    generator = torch.Generator("cpu").manual_seed((job.own_seed + job.repeat) % (1 << 64))
    return torch.randn(noise_shape(pipe, job.size), generator=generator), generator
