"""Prompts, modules and a policy in; images with their records out."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from respodiff.data.run_folder import ImageRecord, Prompt, RunFolder
from respodiff.generation.assignment import assign_concepts_to_noises, read_of
from respodiff.generation.cells import axes
from respodiff.generation.config import GenerateConfig
from respodiff.generation.image_adapters import ScaledAdapters
from respodiff.generation.plan import Job, batches, check_prompts, check_steps, plan, start
from respodiff.generation.prompt_filter import filter_jobs
from respodiff.generation.safety_mode import predict_unsafe
from respodiff.methods.registry import BASELINE
from respodiff.pipelines.latents import to_pipeline_format
from respodiff.pipelines.loading import model_name, weights_digest
from respodiff.pipelines.registry import backbone, spec_of
from respodiff.steering.adapter import Adapter
from respodiff.steering.steer import check_compatible, steer


def by_attribute(modules: Sequence[Adapter]) -> dict[str, dict[str, Adapter]]:
    """Attribute -> concept -> module; concepts of no attribute (a user's own prompts) are alternatives of one called "concept".

    Raises:
        ValueError: for two modules of one concept.
    """
    out: dict[str, dict[str, Adapter]] = {}
    for m in modules:
        group = out.setdefault(m.header.attribute or "concept", {})
        if m.name in group:
            raise ValueError(f"two modules are called {m.name!r}; give each concept once")
        group[m.name] = m
    return out


def generate(
    pipe: Any,
    prompts: Sequence[Prompt | str],
    modules: Sequence[Adapter] = (),
    config: GenerateConfig | None = None,
    *,
    safety: Sequence[Adapter] = (),
    out: str | Path | None = None,
    suite_digest: str = "",
) -> Iterator[tuple[ImageRecord, Image.Image]]:
    """Draw ``config.images`` images of every prompt, each steered to the concept that the policy drew for it.

    The noise of an image depends on (run seed, prompt id, repeat) alone; modules of kind "safety" are added to every image.
    With ``config.use_dataset_settings`` a prompt that brings a seed of its own is drawn from (that seed + repeat) instead, as other tools do.

    Args:
        pipe: diffusers pipeline. prompts: texts or `Prompt` records.
        modules: alternatives to draw from; several attributes are combined (gender x tone), with a module of every part or, trained
            together, of every cell (attribute ``gender*tone``). What a method other than RespoDiff made is as good (`respodiff.methods.registry`);
            what it made of a whole attribute is added to every image, which then asks for no concept.
        config: see `GenerateConfig`.
        safety: modules added on top of whatever was drawn.
        out: run folder to write to (made if absent); images that it already holds are skipped.
        suite_digest: SHA-256 of the file the prompts were read from (`respodiff.data.prompt_sets.Suite`); it is kept in ``run.json``.

    Yields:
        (record, image) per image that was drawn.

    Raises:
        ValueError: for prompts that are empty, too long or not distinct, modules that do not fit, and settings that make no sense, before
            anything is drawn or written.
    """
    config = config or GenerateConfig()
    _check_pipeline(pipe)
    asked = _asked(prompts)
    drawn, always = _sorted_modules(pipe, modules, safety)
    conditional_safety = [m for m in always if m.header.kind == "safety"] if config.safety_mode == "predicted" else []
    if both := [m.name for m in conditional_safety if m.name in drawn]:
        raise ValueError(
            f"safety holds {both[0]!r}, which is an attribute's name too: their predictions would be mixed up; give it another name"
        )
    readable, config = read_of(pipe, drawn, config)
    check_prompts(pipe, asked, config)
    check_steps(pipe, config.steps)
    jobs = plan(pipe, asked, axes({a: list(group) for a, group in drawn.items()}, config.target_proportions), config)
    jobs = filter_jobs(jobs, [*modules, *safety], config.skip_explicit_prompts)
    scaled_adapters = ScaledAdapters(drawn, always, config)
    folder = _folder(out, _settings(pipe, config, modules, safety, suite_digest)) if out else None
    done = folder.done() if folder else set()
    todo = assign_concepts_to_noises(pipe, jobs, readable, config, done) if readable else (job for job in jobs if job.id not in done)
    return _draw(
        pipe, predict_unsafe(pipe, todo, conditional_safety, config) if conditional_safety else todo, scaled_adapters, config, folder
    )


def _asked(prompts: Sequence[Prompt | str]) -> list[Prompt]:
    if isinstance(prompts, str):
        raise ValueError(f"prompts is the text {prompts!r}; give a list of prompts")
    return [p if isinstance(p, Prompt) else Prompt(id=p, text=p, group=p) for p in prompts]


def _check_pipeline(pipe: Any) -> None:
    """A warning for a safety checker, ValueError for a pipeline that wants more than prompts."""
    if getattr(pipe, "safety_checker", None) is not None:
        warnings.warn(
            "this pipeline blacks out images that its safety checker dislikes, and judges would take them for safe; "
            "switch it off with pipe.safety_checker = None to measure",
            stacklevel=3,
        )
    if images := spec_of(pipe).images:
        raise ValueError(
            f"{type(pipe).__name__} draws from images ({', '.join(images)}), not from prompts alone; call it inside of steer()"
        )


def _sorted_modules(
    pipe: Any, modules: Sequence[Adapter], safety: Sequence[Adapter]
) -> tuple[dict[str, dict[str, Adapter]], list[Adapter]]:
    """The alternatives to draw from, and what is added to every image. ValueError for what is no module or does not fit the pipeline."""
    for m in (*modules, *safety):
        check_compatible(pipe, m)  # its warnings are given when the pipeline is steered
    always = [*(m for m in modules if m.header.kind != "fairness"), *safety]
    if twice := [name for name, k in Counter(m.name for m in always).items() if k > 1]:
        raise ValueError(f"two modules are called {twice[0]!r}; give each concept once")
    return by_attribute([m for m in modules if m.header.kind == "fairness"]), always


def _folder(out: str | Path, settings: dict[str, Any]) -> RunFolder:
    """The run folder, made or checked. One of ours that holds no image yet takes the new settings: nothing in it depends on the old."""
    folder = RunFolder(out)
    written = folder.path / "run.json"
    empty = not folder.manifest.exists() and all(file.suffix == ".partial" for file in folder.images.glob("*"))
    if written.is_file() and empty and {"policy", "model_digest"} <= folder.settings().keys() and folder.settings() != settings:
        written.unlink()
    return folder.create(settings)


def _settings(
    pipe: Any, config: GenerateConfig, modules: Sequence[Adapter], safety: Sequence[Adapter], suite_digest: str
) -> dict[str, Any]:
    """What must be equal for a run folder to be resumed: everything that an image depends on, but not the batch size.

    The number of images is among it, because exact counts are counts out of that number.
    """
    settings = {k: v for k, v in asdict(config).items() if k != "batch"}
    settings |= {"model": model_name(pipe), "model_digest": weights_digest(backbone(pipe)), "scheduler": type(pipe.scheduler).__name__}
    settings |= {"modules": [m.digest for m in modules], "safety": [m.digest for m in safety]}
    if any(m.batch_dependent for m in (*modules, *safety)):
        settings |= {"batch": config.batch}  # its images depend on one another
    return settings | {"suite_digest": suite_digest}


def _draw(
    pipe: Any,
    todo: Iterable[Job],
    scaled_adapters: ScaledAdapters,
    config: GenerateConfig,
    folder: RunFolder | None,
) -> Iterator[tuple[ImageRecord, Image.Image]]:
    model, digest = model_name(pipe), weights_digest(backbone(pipe))
    for batch in batches(todo, config.batch):
        rows = [scaled_adapters.of(job) for job in batch]
        latents, generators = zip(*(start(pipe, config, job) for job in batch), strict=True)
        height, width = batch[0].size or (None, None)
        with steer(pipe, rows), _unsaid_twice(pipe):
            images = pipe(
                [job.prompt.text for job in batch],
                height=height,
                width=width,
                num_inference_steps=config.steps,
                guidance_scale=batch[0].guidance,
                latents=to_pipeline_format(pipe, torch.cat(latents)),
                generator=list(generators),
            ).images
        for job, image in zip(batch, images, strict=True):
            record = replace(
                _record(job, config, scaled_adapters.used(job)), scheduler=type(pipe.scheduler).__name__, model=model, model_digest=digest
            )
            record = replace(record, width=image.width, height=image.height)
            yield (folder.add(record, image) if folder else record), image


def _record(job: Job, config: GenerateConfig, used: Sequence[Adapter]) -> ImageRecord:
    """What was asked for; what the pipeline and the image say of themselves is still to be filled in."""
    return ImageRecord(
        id=job.id,
        file="",
        prompt=job.prompt.text,
        prompt_id=job.prompt.id,
        suite=job.prompt.suite,
        group=job.prompt.group,
        subject=job.prompt.subject,
        categories=job.prompt.categories,
        method="+".join(dict.fromkeys(m.header.method for m in used)) or BASELINE,
        concepts=job.concepts,
        skipped_attributes=dict(job.skipped_attributes),
        margins={a: round(q, 4) for a, q in job.margins.items()},
        modules=[m.digest for m in used],
        scale=config.scale,
        safety_scale=config.safety_scale,
        seed=config.seed,
        own_seed=job.own_seed,
        repeat=job.repeat,
        guidance=job.guidance,
        steps=config.steps,
    )


@contextmanager
def _unsaid_twice(pipe: Any) -> Iterator[None]:
    """The pipeline would say of every batch what was said once of the run: that ends of prompts are cut off."""
    log = logging.getLogger(type(pipe).__module__)

    def keep(record: logging.LogRecord) -> bool:
        return "truncated" not in str(record.msg)

    log.addFilter(keep)
    try:
        yield
    finally:
        log.removeFilter(keep)


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
