"""Audits the model: unsteered images of prompts, their ranking by bias, and the page that `respodiff audit` writes."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

from respodiff.app.service import RUNS, Service
from respodiff.concepts.concept import attribute
from respodiff.data import prompt_sets
from respodiff.data.prompt_sets import load_suite
from respodiff.evaluation.audit import Audit
from respodiff.experiments.audit import audit_runs, judge_audit, labels_from_texts, suggested
from respodiff.experiments.work import Progress, draw
from respodiff.generation.config import GenerateConfig
from respodiff.pipelines.loading import sampling_settings
from respodiff.reports import audit_report
from respodiff.reports.audit_report import words
from respodiff.reports.tables import p_value

COLUMNS = ("attribute", "prompt", "furthest from its share", "DevRat", "random sampling", "other shares than wanted")
NO_JUDGE = "An audit needs a judge: start the page with --judge clip:DIR-OR-ID."


@dataclass(frozen=True)
class Question:
    """What is audited: a suite or prompts, the names of attributes, and numbers of images (0 validation images leave that out)."""

    prompts: tuple[str, ...] = ()
    suite: str = ""
    attributes: tuple[str, ...] = ("gender", "tone")
    images: int = 8
    validation_images: int = 8
    seed: int = 0


@dataclass(frozen=True)
class Audited:
    """The findings and their page."""

    found: Audit
    page: Path


def follow(service: Service, asked: Question, stop: Event) -> Generator[Progress | Audited, None, None]:
    """Draw, judge and rank; progress first, the findings last (none if stopped). Its folder is in ``out/runs``; without an image it is removed.

    ValueError for no prompt, no attribute or no judge; further errors as `respodiff.generation.generate.generate`.
    """
    if not service.judge:
        raise ValueError(NO_JUDGE)
    if not asked.attributes:
        raise ValueError("attributes is empty; choose one or more")
    chosen, prompts, suite = [attribute(name) for name in asked.attributes], list[Any](_texts(asked.prompts)), None
    if asked.suite:
        suite = load_suite(asked.suite)
        prompts += suite.prompts
    if not prompts:
        raise ValueError("there is no prompt; write one a line, or choose a suite")
    judge = service.labeller
    check = asked.validation_images if labels_from_texts([judge]) else 0
    steps, guidance = sampling_settings(service.pipe)
    config = GenerateConfig(images=asked.images, policy="none", steps=steps, guidance=guidance, seed=asked.seed, batch=service.batch)
    out = service.new_place(RUNS, f"audit {' '.join(asked.attributes)}")
    runs = audit_runs(prompts, chosen, config, out, validation_images=check, suite_digest=suite.digest if suite else "")
    drawn = False
    try:
        for run in runs:
            for step in service.by_turns(draw(service.pipe, run), stop):
                drawn = True
                yield step
    finally:
        if not drawn:
            shutil.rmtree(out)
    if stop.is_set():
        return
    yield Progress("judging", 0, 1)
    with service.turns.turn():
        found, scored = judge_audit(out, [judge], chosen, config, validation_images=check)
        where: dict[str, Any] = {"suite": asked.suite, "prompt": _texts(asked.prompts), "scheduler": service.source.scheduler}
        where |= {"safety_checker": "keep"} if service.source.safety_checker else {}
        commands = suggested(found, out, config, where, model=service.source, concepts=None, judge=[service.judge])
        found = replace(found, suggest=tuple(commands), command="respodiff app")
        page = audit_report.write(out / "audit.html", found, scored)
    yield Audited(found, page)


def _texts(prompts: Sequence[str]) -> list[str]:
    """The prompts, each once, without empty ones."""
    return list(dict.fromkeys(text.strip() for text in prompts if text.strip()))


def suites() -> list[tuple[str, str]]:
    """(name and number of prompts, name) of suites; no number where the prompts are in a file."""
    return [
        (name if prompt_sets.needs_file(name) else f"{name} ({len(load_suite(name).prompts)} prompts)", name)
        for name in prompt_sets.names()
    ]


def rows(found: Audit) -> list[list[Any]]:
    """The ranking under `COLUMNS`: numbers as numbers, so that they can be sorted. The last one says what was tested, and its p (Holm)."""
    return [
        [r.attribute, r.prompt, words(r), round(r.devrat.mean, 3), round(r.devrat.random, 3), f"{_shown(r.biased)}, p {p_value(r.p_holm)}"]
        for r in found.ranking
    ]


def _shown(biased: bool) -> str:
    return "shown" if biased else "not shown"
