"""Generates images from prompts, modules and a policy, each with a record of what was asked for."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from respodiff.data.records import ImageRecord, Prompt
from respodiff.data.run_folder import RunFolder
from respodiff.data.shards import WHOLE, Shard
from respodiff.generation.assignment import AdaptersOfImages, assign_concepts_to_noises, predict_unsafe
from respodiff.generation.config import GenerateConfig
from respodiff.generation.plan import Groups, Job, attribute_of, batches, check_prompts, check_steps, plan, run_sampler, start
from respodiff.generation.policies import sampled_attributes
from respodiff.generation.prompt_filter import reasons
from respodiff.methods.registry import BASELINE
from respodiff.pipelines.bottleneck import is_compiled
from respodiff.pipelines.identity import lora_digest, pipeline_digest, precision, weights_digest
from respodiff.pipelines.loading import model_name, sampling_settings
from respodiff.pipelines.registry import backbone, spec_of
from respodiff.steering.adapter import Adapter
from respodiff.steering.steer import check_compatible, steer

Pair = tuple[ImageRecord, Image.Image]


class Generation(Iterator[Pair]):
    """The images of a run with their records, as they are drawn; ``left`` is how many are still to come."""

    def __init__(self, pairs: Generator[Pair, None, None], left: int) -> None:
        self._pairs, self.left = pairs, left

    def __next__(self) -> Pair:
        pair = next(self._pairs)
        self.left -= 1
        return pair

    def close(self) -> None:
        """Stop, and let others write the run folder."""
        self._pairs.close()


def generate(
    pipe: Any,
    prompts: Sequence[Prompt | str],
    modules: Sequence[Adapter] = (),
    config: GenerateConfig | None = None,
    *,
    safety: Sequence[Adapter] = (),
    out: str | Path | None = None,
    suite_digest: str = "",
    shard: Shard = WHOLE,
) -> Generation:
    """Yield (record, image) for ``config.images`` images of every prompt, each steered to the concept that the policy sampled for it.

    The noise of an image depends on (run seed, prompt id, repeat) alone, or on the data set's own seed with ``config.use_dataset_settings``.

    Args:
        prompts: texts or `Prompt` records.
        modules: alternatives to sample from, adapters of any method. Several attributes are combined (gender x tone), with a module of every
            concept or of every subgroup (attribute ``gender*tone``). An adapter of a whole attribute is added to every image.
        safety: adapters added to every image.
        out: run folder to write to, made if absent. Images that it holds are skipped, so that a run may be resumed. It may be
            given more prompts if the images that it holds would get the same concepts.
        suite_digest: SHA-256 of the file the prompts were read from (`respodiff.data.prompt_sets.Suite`), kept in ``run.json``.
        shard: the part of the prompts to generate now. Concepts are those of the whole run, whatever the number of shards.

    Raises:
        ValueError: prompts that are empty, too long or given twice; modules that do not fit; settings that make no sense; a run folder of other
            settings, or with images of other prompts or concepts. All of it before anything is generated or written.
        OSError: the run folder cannot be written, or another process writes it.
    """
    config = config or GenerateConfig()
    if isinstance(prompts, str):
        raise ValueError(f"prompts is the text {prompts!r}; give a list of prompts")
    asked = [p if isinstance(p, Prompt) else Prompt(id=p, text=p, group=p) for p in prompts]
    _check_pipeline(pipe, config)
    groups, common = _checked_modules(pipe, modules, safety, config)
    predicted = [m for m in common if m.header.kind == "safety"] if config.safety_mode == "predicted" else []
    if both := [m.name for m in predicted if m.name in groups]:
        raise ValueError(f"safety holds {both[0]!r}, which is an attribute's name too, so that predictions mix; give it another name")
    check_prompts(pipe, asked, config)
    steps, guidance = sampling_settings(pipe, config.steps, config.guidance)
    names = sampled_attributes({a: list(group) for a, group in groups.items()}, config.target_proportions)
    texts = list(dict.fromkeys(p.text for p in asked)) if config.skip_explicit_prompts else []
    skipped = dict(zip(texts, reasons(texts, common if config.policy == "none" else [*modules, *safety]), strict=True))
    jobs = plan(pipe, asked, names, config, skipped)
    about: dict[str, Any] = {"model": model_name(pipe), "scheduler": type(pipe.scheduler).__name__}
    about["model_digest"] = weights_digest(backbone(pipe))
    batch_dependent = any(m.batch_dependent for m in (*modules, *safety))
    one_text = batch_dependent or spec_of(pipe).one_text
    if out:
        # All that an image depends on, the number of images included, of which exact counts are counts.
        settings = asdict(replace(config, steps=steps, guidance=guidance)) | about | {"suite_digest": suite_digest}
        settings |= {"dtype": precision(backbone(pipe)), "device": pipe._execution_device.type, "pipeline_digest": pipeline_digest(pipe)}
        settings |= {"lora": lora} if (lora := lora_digest(backbone(pipe))) else {}
        settings |= {"safety_checker": True} if getattr(pipe, "safety_checker", None) is not None else {}
        settings = {k: v for k, v in settings.items() if k not in ("height", "width") or v is not None}
        settings |= {"modules": [m.digest for m in modules], "safety": [m.digest for m in safety]}
        if not batch_dependent:
            del settings["batch"]
    with ExitStack() as held:
        folder, records = _run_folder(out, settings, jobs, config, shard, held) if out else (None, [])
        own = {p.id for p in shard.take(asked)}
        done = folder.done(own, records) if folder else set()
        jobs = [job for job in jobs if job.prompt.id in own]
        missing = [job for job in jobs if job.id not in done]
        if batch_dependent:  # an image depends on those beside it: a batch is drawn as a whole
            drawn = batches(jobs, config.batch, one_text)
            missing = [job for batch in drawn if any(other.id not in done for other in batch) for job in batch]
            done = done - {job.id for job in missing}
        todo: Iterable[Job] = missing
        if config.assign_at and (several := {a: group for a, group in groups.items() if len(group) > 1}):
            todo = assign_concepts_to_noises(pipe, jobs, several, config, done)
        if predicted:
            todo = predict_unsafe(pipe, todo, predicted, config)
        pairs = _images(pipe, todo, AdaptersOfImages(groups, common, config), config, one_text, folder, about, held.pop_all())
        return Generation(pairs, len(missing))


def _check_pipeline(pipe: Any, config: GenerateConfig) -> None:
    if getattr(pipe, "safety_checker", None) is not None:
        warnings.warn(
            "this pipeline blacks out images that its safety checker dislikes, and judges count those as unknown; "
            "switch it off with load_pipeline(..., safety_checker=False) to measure",
            stacklevel=3,
        )
    if images := spec_of(pipe).images:
        raise ValueError(
            f"{type(pipe).__name__} draws from images ({', '.join(images)}), not from prompts alone; call it inside of steer()"
        )
    if spec_of(pipe).unread:
        raise ValueError(f"{type(pipe).__name__} is made of blocks, which this does not call; call it inside of steer()")
    check_steps(pipe, sampling_settings(pipe, config.steps, config.guidance)[0])
    read = "assign_at" if config.assign_at else "safety_mode" if config.safety_mode == "predicted" else ""
    if read and is_compiled(getattr(pipe, spec_of(pipe).model)):
        raise ValueError(f"{read} is {getattr(config, read)!r}, and h of a compiled model cannot be read; leave it out, or do not compile")


def _checked_modules(
    pipe: Any, modules: Sequence[Adapter], safety: Sequence[Adapter], config: GenerateConfig
) -> tuple[Groups, list[Adapter]]:
    """The alternatives to sample from, and the adapters of every image."""
    for m in (*modules, *safety):
        check_compatible(pipe, m)  # its warnings are given when the pipeline is steered
    if wrong := [m.name for m in modules if m.header.kind == "safety"]:
        raise ValueError(f"modules holds {wrong[0]!r}, which is a safety module; give it as safety=[...] (--safety FILE)")
    common = [*(m for m in modules if m.header.kind == "attribute"), *safety]
    sampled = [m for m in modules if m.header.kind == "fairness"]
    names = Counter([(attribute_of(m), m.name) for m in sampled] + [("", m.name) for m in common])
    if twice := [name for (_, name), k in names.items() if k > 1]:
        raise ValueError(f"two modules are called {twice[0]!r}; give each concept once")
    groups: dict[str, dict[str, Adapter]] = {}
    for m in sampled:
        groups.setdefault(attribute_of(m), {})[m.name] = m
    for attribute, group in groups.items():
        if len(group) == 1 and attribute != "concept" and config.policy != "none" and attribute not in (config.target_proportions or {}):
            warnings.warn(
                f"{next(iter(group))!r} is the only module of attribute {attribute!r}: every image is steered to it; load its alternatives too",
                stacklevel=3,
            )
    return groups, common


def _run_folder(
    out: str | Path, settings: dict[str, Any], jobs: Sequence[Job], config: GenerateConfig, shard: Shard, held: ExitStack
) -> tuple[RunFolder, list[ImageRecord]]:
    """The run folder, made or checked, and locked until ``held`` is left; and its rows.

    A folder of ours without images takes the new settings: nothing in it depends on the old.
    """
    folder = RunFolder(out, shard)
    held.enter_context(folder.lock())
    written = folder.path / "run.json"
    empty = not folder.manifests() and all(file.suffix in (".partial", ".tmp") for file in folder.images.glob("*"))
    with suppress(ValueError):  # a broken run.json is replaced in any case
        if written.is_file() and empty and {"policy", "model_digest"} <= folder.settings().keys() and folder.settings() != settings:
            written.unlink()
    folder.create(settings)
    texts, records = {job.prompt.id: job.prompt.text for job in jobs}, folder.records()
    if others := [r.prompt for r in records if texts.get(r.prompt_id) != r.prompt]:
        raise ValueError(
            f"out is {str(out)!r}, which holds images of {others[0]!r}, none of these prompts: "
            "give all of its prompts to resume it (more may be added), or choose another folder"
        )
    own = {job.id: (job.own_seed, job.guidance, job.prompt.group, job.prompt.subject, tuple(job.prompt.categories)) for job in jobs}
    if changed := [r.id for r in records if r.id in own and own[r.id] != (r.own_seed, r.guidance, r.group, r.subject, tuple(r.categories))]:
        raise ValueError(
            f"out is {str(out)!r}, whose image {changed[0]!r} was made with another seed, guidance, group, subject or categories of its prompt: "
            "give the prompts that it was begun with, or choose another folder"
        )

    def key(prompt: str, repeat: int, concepts: dict[str, str]) -> tuple[Any, ...]:
        return prompt, 0 if config.assign_at else repeat, *sorted(concepts.items())

    planned = Counter(key(job.prompt.id, job.repeat, job.concepts) for job in jobs)
    if other := Counter(key(r.prompt_id, r.repeat, r.concepts) for r in records) - planned:
        raise ValueError(
            f"out is {str(out)!r}, whose images of {texts[next(iter(other))[0]]!r} got other concepts: counts of other prompts, or of another "
            "version of respodiff; give the prompts that it was begun with, or choose another folder"
        )
    return folder, records


def _images(
    pipe: Any,
    todo: Iterable[Job],
    adapters: AdaptersOfImages,
    config: GenerateConfig,
    one_text: bool,
    folder: RunFolder | None,
    about: dict[str, Any],
    held: ExitStack,
) -> Generator[Pair, None, None]:
    with held:
        for batch in batches(todo, config.batch, one_text):
            rows = [adapters.of(job) for job in batch]
            latents, generators = zip(*(start(pipe, config, job) for job in batch), strict=True)
            with steer(pipe, [[scaled for _, scaled in row] for row in rows]):
                images = run_sampler(pipe, [job.prompt.text for job in batch], torch.cat(latents), generators, batch[0]).images
            records = [
                replace(_record(job, config, [m for m, _ in row]), width=image.width, height=image.height, **about)
                for job, row, image in zip(batch, rows, images, strict=True)
            ]
            yield from zip(folder.add_all(list(zip(records, images, strict=True))) if folder else records, images, strict=True)


def _record(job: Job, config: GenerateConfig, used: Sequence[Adapter]) -> ImageRecord:
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
        steps=job.steps,
    )


@contextmanager
def counted(unet: Any) -> Iterator[list[int]]:
    """While active, counts evaluations of the model per sample, in the one number of the list it gives."""
    total = [0]

    def count(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        total[0] += len(args[0] if args else kwargs["sample"] if "sample" in kwargs else kwargs["hidden_states"])

    handle = unet.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield total
    finally:
        handle.remove()
