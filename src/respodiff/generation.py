"""Prompts, modules and a policy in; pictures with their records out."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from respodiff.adapters import adapter, backbone
from respodiff.config import GenerateConfig
from respodiff.denoiser import latent_shape, pack
from respodiff.module_file import ConceptModule
from respodiff.pipelines import check_length, model_name, weights_digest
from respodiff.policies import assign, prompt_seed
from respodiff.records import ImageRecord, Prompt, RunFolder, image_id, noise_seed
from respodiff.steering import Row, steer


@dataclass(frozen=True)
class _Job:
    prompt: Prompt
    repeat: int
    concepts: dict[str, str]

    @property
    def id(self) -> str:
        return image_id(self.prompt.id, self.repeat)


def by_attribute(modules: Sequence[ConceptModule]) -> dict[str, dict[str, ConceptModule]]:
    """Attribute -> concept -> module; concepts of no attribute (a user's own prompts) are alternatives of one called "concept".

    Raises:
        ValueError: for two modules of one concept.
    """
    out: dict[str, dict[str, ConceptModule]] = {}
    for m in modules:
        group = out.setdefault(m.header.attribute or "concept", {})
        if m.name in group:
            raise ValueError(f"two modules are called {m.name!r}; give each concept once")
        group[m.name] = m
    return out


def generate(
    pipe: Any,
    prompts: Sequence[Prompt | str],
    modules: Sequence[ConceptModule] = (),
    config: GenerateConfig | None = None,
    *,
    safety: Sequence[ConceptModule] = (),
    out: str | Path | None = None,
) -> Iterator[tuple[ImageRecord, Image.Image]]:
    """Draw ``config.images`` pictures of every prompt, each steered to the concept that the policy drew for it.

    The noise of a picture depends on (run seed, prompt id, repeat) alone; modules of kind "safety" are added to every picture.

    Args:
        pipe: diffusers pipeline.
        prompts: texts or `Prompt` records.
        modules: alternatives to draw from; several attributes are combined (gender x tone).
        config: see `GenerateConfig`.
        safety: modules added on top of whatever was drawn.
        out: run folder to write to (made if absent); pictures that it already holds are skipped.

    Yields:
        (record, image) per picture that was drawn.

    Raises:
        ValueError: for prompts that are empty, too long or not distinct, and for settings that make no sense, before anything is drawn.
    """
    config = config or GenerateConfig()
    for m in (*modules, *safety):
        if not isinstance(m, ConceptModule):
            raise ValueError(f"modules holds {m!r}; give ConceptModule objects: a file is read with respodiff.load(path)")
    if isinstance(prompts, str):
        raise ValueError(f"prompts is the text {prompts!r}; give a list of prompts")
    if getattr(pipe, "safety_checker", None) is not None:
        warnings.warn(
            "this pipeline blacks out pictures that its safety checker dislikes, and judges would take them for safe; "
            "switch it off with pipe.safety_checker = None to measure",
            stacklevel=2,
        )
    if images := adapter(pipe).images:
        raise ValueError(
            f"{type(pipe).__name__} draws from pictures ({', '.join(images)}), not from prompts alone; call it inside of steer()"
        )
    asked = [p if isinstance(p, Prompt) else Prompt(id=p, text=p, group=p) for p in prompts]
    _check_prompts(pipe, asked)
    always = [*(m for m in modules if m.header.kind == "safety"), *safety]
    if twice := [name for name, k in Counter(m.name for m in always).items() if k > 1]:
        raise ValueError(f"two modules are called {twice[0]!r}; give each concept once")
    drawn = by_attribute([m for m in modules if m.header.kind != "safety"])
    jobs = [job for p in asked for job in _jobs(p, drawn, config)]
    folder = RunFolder(out).create(_settings(pipe, config, modules, safety)) if out else None
    done = folder.done() if folder else set()
    todo = [job for job in jobs if job.id not in done]
    return _draw(pipe, todo, drawn, always, config, folder)


def _settings(pipe: Any, config: GenerateConfig, modules: Sequence[ConceptModule], safety: Sequence[ConceptModule]) -> dict[str, Any]:
    """What must be equal for a run folder to be resumed: everything that a picture depends on, but not the batch size.

    The number of images is among it, because exact counts are counts out of that number.
    """
    settings = {k: v for k, v in asdict(config).items() if k != "batch"}
    settings |= {"model": model_name(pipe), "model_digest": weights_digest(backbone(pipe)), "scheduler": type(pipe.scheduler).__name__}
    return settings | {"modules": [m.digest for m in modules], "safety": [m.digest for m in safety]}


def _check_prompts(pipe: Any, prompts: Sequence[Prompt]) -> None:
    if not prompts:
        raise ValueError("there is no prompt; give at least one")
    if empty := [p.id for p in prompts if not p.text.strip()]:
        raise ValueError(f"prompt {empty[0]!r} is empty; give a text")
    if twice := [i for i, k in Counter(p.id for p in prompts).items() if k > 1]:
        raise ValueError(f"prompt {twice[0]!r} is given twice; ask for more images of it instead")
    check_length(pipe, [p.text for p in prompts])


def _jobs(prompt: Prompt, drawn: Mapping[str, Mapping[str, ConceptModule]], config: GenerateConfig) -> list[_Job]:
    names = {a: list(group) for a, group in drawn.items()}
    rows = assign(names, config.images, config.policy, shares=config.shares, seed=prompt_seed(config.seed, prompt.id))
    return [_Job(prompt, i, row) for i, row in enumerate(rows)]


def _draw(
    pipe: Any,
    todo: Sequence[_Job],
    drawn: Mapping[str, Mapping[str, ConceptModule]],
    always: Sequence[ConceptModule],
    config: GenerateConfig,
    folder: RunFolder | None,
) -> Iterator[tuple[ImageRecord, Image.Image]]:
    scaled = {a: {n: m.scale(config.strength) for n, m in group.items()} for a, group in drawn.items()}
    added = [m.scale(config.safety_strength) for m in always]
    model, digest = model_name(pipe), weights_digest(backbone(pipe))
    for start in range(0, len(todo), config.batch):
        batch = todo[start : start + config.batch]
        rows: list[Row] = [[*(scaled[a][c] for a, c in job.concepts.items()), *added] for job in batch]
        latents = torch.cat([noise(pipe, config.seed, job.prompt.id, job.repeat) for job in batch])
        with steer(pipe, rows):
            images = pipe(
                [job.prompt.text for job in batch],
                num_inference_steps=config.steps,
                guidance_scale=config.guidance,
                latents=_as_taken(pipe, latents),
                # Used by schedulers that draw noise at every step (ancestral ones, DDPM).
                generator=[_generator(config.seed, f"{job.prompt.id}/steps", job.repeat) for job in batch],
            ).images
        for job, image in zip(batch, images, strict=True):
            used = [drawn[a][c] for a, c in job.concepts.items()] + list(always)
            record = ImageRecord(
                id=job.id,
                file="",
                prompt=job.prompt.text,
                prompt_id=job.prompt.id,
                suite=job.prompt.suite,
                group=job.prompt.group,
                subject=job.prompt.subject,
                method="respodiff" if used else "plain",
                concepts=job.concepts,
                modules=[m.digest for m in used],
                strength=config.strength,
                safety_strength=config.safety_strength,
                seed=config.seed,
                repeat=job.repeat,
                guidance=config.guidance,
                steps=config.steps,
                scheduler=type(pipe.scheduler).__name__,
                model=model,
                model_digest=digest,
                width=image.width,
                height=image.height,
            )
            yield (folder.add(record, image) if folder else record), image


def noise(pipe: Any, seed: int, prompt_id: str, repeat: int) -> Tensor:
    """Start latent (1, C, H, W) of one picture, float32 on the CPU, from these three and the latent's shape alone."""
    return torch.randn(1, *latent_shape(pipe), generator=_generator(seed, prompt_id, repeat))


def _as_taken(pipe: Any, latents: Tensor) -> Tensor:
    """Latents (B, C, H, W) as the pipeline takes them."""
    latents = latents.to(backbone(pipe).device, backbone(pipe).dtype)
    return pack(latents) if adapter(pipe).family == "flux" else latents


def _generator(seed: int, stream: str, repeat: int) -> torch.Generator:
    return torch.Generator().manual_seed(noise_seed(seed, stream, repeat))


@contextmanager
def counted(unet: Any) -> Iterator[list[int]]:
    """Counts UNet evaluations per sample while active, as the one number of the list it gives."""
    total = [0]

    def count(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        total[0] += len(args[0] if args else kwargs["sample"] if "sample" in kwargs else kwargs["hidden_states"])

    handle = unet.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield total
    finally:
        handle.remove()
