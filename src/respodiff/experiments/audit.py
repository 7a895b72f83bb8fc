"""Audits a model: generates unsteered images, and images of explicit prompts ("a woman") that show how valid the judge is; ranks biases."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

from respodiff.concepts.concept import Attribute
from respodiff.data.places import check_out
from respodiff.data.records import Prompt
from respodiff.data.run_folder import RunFolder
from respodiff.evaluation.audit import Audit, audit, stated_prompts, to_train
from respodiff.evaluation.evaluate import judge_all
from respodiff.evaluation.registry import Settings
from respodiff.evaluation.scored_run import ScoredRun
from respodiff.experiments.work import Run
from respodiff.generation.config import GenerateConfig
from respodiff.pipelines.source import ModelSource


def audit_runs(
    prompts: Sequence[Prompt | str],
    attributes: Sequence[Attribute],
    config: GenerateConfig,
    out: str | Path,
    *,
    validation_images: int = 8,
    suite_digest: str = "",
) -> list[Run]:
    """The run folders of an audit, ``out/stated`` and ``out/run``, to be drawn by `respodiff.experiments.work.draw`.

    Args:
        config: settings of the images; its policy is not used. suite_digest: as for `respodiff.generation.generate.generate`.
        validation_images: images of every concept's own prompt; 0 for none.
    """
    check_out(out, lambda folder: any((folder / name / "run.json").is_file() for name in ("run", "stated")), force=None)
    config, folder, runs = replace(config, policy="none"), Path(out) / "stated", []
    if validation_images:
        # Images of an earlier audit of other attributes stay, with their prompts.
        records = RunFolder(folder).records() if (folder / "run.json").is_file() else []
        stated = {r.prompt_id: Prompt(r.prompt_id, r.prompt, r.suite, r.group, r.subject, r.categories) for r in records}
        asked = list((stated | {p.id: p for p in stated_prompts(attributes)}).values())
        runs.append(Run(folder, asked, replace(config, images=validation_images), what="generating stated"))
    return [*runs, Run(Path(out) / "run", prompts, config, suite_digest=suite_digest, what="generating run")]


def judge_audit(
    out: str | Path,
    judges: Sequence[Any],
    attributes: Sequence[Attribute],
    config: GenerateConfig,
    *,
    validation_images: int = 8,
    min_margin: float = 0.0,
    n_bootstrap: int = 2000,
) -> tuple[Audit, ScoredRun]:
    """Judge the images of `audit_runs`; gives the findings of `respodiff.evaluation.audit.audit` and the scored run.

    Args:
        judges: one of them labels attributes. validation_images: as generated.
        min_margin: labels that lead by less (100 x cosine) count as unknown. n_bootstrap: resamples of the intervals.
    """
    stated = judge_all(Path(out) / "stated", judges, attributes, min_margin=min_margin) if validation_images else None
    run = judge_all(Path(out) / "run", judges, attributes, min_margin=min_margin)
    found = audit(run, stated, attributes, Settings(n_bootstrap=n_bootstrap, seed=config.seed))
    return replace(found, problems=(*found.problems, *_too_few(found, config.images, validation_images))), run


def _too_few(found: Audit, images: int, validation_images: int) -> Iterator[str]:
    """Numbers of images that cannot show anything, however they come out."""
    if few := [a.attribute for a in found.attributes if a.judge_validity and not a.judge_validity.enough]:
        yield (
            f"{validation_images} images of every concept's own prompt are too few to show that the judge recognises {', '.join(few)}, "
            "however they come out: that takes more (--validation-images)"
        )
    drawn = {
        a.attribute: max((r.devrat.n + r.unknown for r in found.ranking if r.attribute == a.attribute), default=0) for a in found.attributes
    }
    if short := [a for a in found.attributes if drawn[a.attribute] < a.images_required]:
        of = "" if len(short) == len(found.attributes) else f" for {', '.join(a.attribute for a in short)}"
        needed = max(ceil(images * a.images_required / max(1, drawn[a.attribute])) for a in short)  # a group may have several prompts
        yield (
            f"{images} images a prompt are too few to show any single prompt to be biased{of} ({len(found.ranking)} questions are asked), "
            f"however they come out: that takes {needed} (--images {needed})"
        )


def labels_from_texts(judges: Sequence[Any]) -> bool:
    """Whether labels come from a judge that looks at images, so that its validity can be measured; ValueError if no judge labels."""
    if kinds := [judge.kind for judge in judges if judge.kind in ("texts", "answers", "table")]:
        return bool(kinds[0] != "table")
    names = ", ".join(judge.name for judge in judges)
    raise ValueError(f"--judge is {names}, which tells no attributes; give embedded, clip:DIR-OR-ID, siglip:, hf:, vlm: or table:FILE")


def suggested(
    found: Audit,
    out: Path,
    config: GenerateConfig,
    where: Mapping[str, Any],
    *,
    model: ModelSource,
    concepts: Path | None,
    judge: str | list[str],
) -> list[str]:
    """Commands that train a module for every concept of the biased attributes, generate the same prompts with them, and compare both."""
    names = to_train(found.attributes)
    if not names:
        return []
    modules = {name: out / "modules" / f"{name.replace('*', '-')}.safetensors" for name in names}
    wanted = {"attribute": [a.attribute for a in found.attributes if a.biased and set(a.concepts) <= set(names)], "concepts": concepts}
    trained = {"model": model.source} | {k: v for k, v in model.changed().items() if k != "offload"}
    draw = {"images": config.images, "steps": config.steps, "guidance": f"{config.guidance:g}", "seed": config.seed}
    draw["truncate_prompts"] = config.truncate_prompts
    return [
        *(_command("train", **trained, concept=name, concepts=concepts, out=path) for name, path in modules.items()),
        _command(
            "generate", model=model.source, **model.changed(), **where, **draw, module=list(modules.values()), **wanted, out=out / "steered"
        ),
        _command("report", f"plain={out / 'run'}", f"steered={out / 'steered'}", judge=judge, **wanted, out=out / "steered.html"),
    ]


def _command(*arguments: str, **flags: Any) -> str:
    """A command line; a flag is repeated for each value of a list, stands alone for True, and is left out where there is none."""
    flags = {"model-config" if key == "config" else key: value for key, value in flags.items()}
    given = [(f"--{key.replace('_', '-')}", v) for key, values in flags.items() for v in (values if isinstance(values, list) else [values])]
    shown = [(flag,) if v is True else (flag, str(v)) for flag, v in given if v is not False and v not in (None, "")]
    return shlex.join(["respodiff", *arguments, *(part for parts in shown for part in parts)])
