"""Audits a model: generates unsteered images, and images of explicit prompts ("a woman") that show how valid the judge is; ranks biases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from respodiff.concepts.concept import Attribute
from respodiff.data.places import check_out
from respodiff.data.records import Prompt
from respodiff.data.run_folder import RunFolder
from respodiff.evaluation.audit import Audit, audit, stated_prompts
from respodiff.evaluation.evaluate import judge_all
from respodiff.evaluation.registry import Settings
from respodiff.evaluation.scored_run import ScoredRun
from respodiff.experiments.work import Run
from respodiff.generation.config import GenerateConfig


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
            "however they come out: give more with --validation-images"
        )
    if short := [a for a in found.attributes if images < a.images_required]:
        of = "" if len(short) == len(found.attributes) else f" for {', '.join(a.attribute for a in short)}"
        needed = max(a.images_required for a in short)
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
