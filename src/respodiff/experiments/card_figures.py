"""Figures of a model with a planted bias: planted against measured shares, subjects, stated attributes, unsafe images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import binom

from respodiff.data.run_folder import ImageRecord
from respodiff.evaluation.metrics.fairness import wilson
from respodiff.evaluation.scored_run import ScoredRun
from respodiff.evaluation.statistics import Settings, share

TONES = ("light", "medium", "dark")


def planted(world: Mapping[str, Any], run: ScoredRun, neutral: ScoredRun) -> dict[str, Any]:
    """Planted against measured shares, a row an occupation (and one of the neutral prompt), and the mean absolute errors."""
    plans = {row["name"]: row for row in world["occupations"] if row["winobias"]}
    rows, tones = [], []
    for name, plan, found in [*((k, v, run) for k, v in plans.items()), ("person", world["neutral"], neutral)]:
        labels = [s.labels for r, s in zip(found.records, found.scores, strict=True) if r.group == name and s.problem is None]
        if not labels:
            continue
        man = wilson(sum(seen["gender"] == "man" for seen in labels), len(labels))
        rows.append({"name": name, "planted": plan["p_man"], "measured": man.mean, "low": man.low, "high": man.high, "n": man.n})
        proportions = {t: wilson(sum(seen["tone"] == t for seen in labels), len(labels)) for t in TONES}
        tones.append(
            {"name": name, "planted": plan["tones"], "n": len(labels)}
            | {
                "measured": [proportions[t].mean for t in TONES],
                "low": [proportions[t].low for t in TONES],
                "high": [proportions[t].high for t in TONES],
            }
        )
    men = [r for r in rows if r["name"] in plans]
    coloured = [t for t in tones if t["name"] in plans]
    return {
        "occupations": rows,
        "tones": tones,
        "mean_abs_error": _mean(abs(r["measured"] - r["planted"]) for r in men),
        "mean_abs_error_of_chance": _mean(chance_error(r["n"], r["planted"]) for r in men),
        "tone_mean_abs_error": _mean(abs(m - p) for t in coloured for m, p in zip(t["measured"], t["planted"], strict=True)),
        "tone_mean_abs_error_of_chance": _mean(chance_error(t["n"], p) for t in coloured for p in t["planted"]),
        "tone_proportions": {
            t: [_mean(row["measured"][i] for row in coloured), _mean(row["planted"][i] for row in coloured)] for i, t in enumerate(TONES)
        },
    }


def chance_error(n: int, p: float) -> float:
    """Mean absolute error ``E|k/n - p|`` of a share counted on n images of a generator that is exactly right: k is binomial.

    >>> round(chance_error(1, 0.5), 2), round(chance_error(12, 0.85), 3)
    (0.5, 0.083)
    """
    k = np.arange(n + 1)
    return float((binom.pmf(k, n, p) * np.abs(k / n - p)).sum())


def _mean(values: Iterator[float] | Sequence[float]) -> float:
    return float(np.mean(list(values)))


def kept(runs: Mapping[str, ScoredRun]) -> dict[str, Any]:
    """Share of images in which a judge finds the subject that the prompt names, by both judges."""
    run = runs["occupations"]
    by = {}
    for key, header in run.headers.items():
        hits = [bool(s.subject_correct) for s in run.answers[key] if s.subject_correct is not None]
        by[header["judge"]] = sum(hits) / len(hits) if hits else None
    return {
        "subject_accuracy": share(kept_pairs(run), Settings()),
        "subject_accuracy_by_judge": by,
        "subject_accuracy_by": _subject_accuracy_by_group(run),
    }


def kept_pairs(run: ScoredRun) -> list[tuple[ImageRecord, bool]]:
    """Images whose prompt names a subject, and whether the primary judge finds it."""
    return [(r, bool(s.subject_correct)) for r, s in zip(run.records, run.scores, strict=True) if s.subject_correct is not None]


def _subject_accuracy_by_group(run: ScoredRun) -> dict[str, float]:
    found: dict[str, list[bool]] = {}
    for record, hit in kept_pairs(run):
        found.setdefault(record.group, []).append(hit)
    return {group: sum(found[group]) / len(found[group]) for group in sorted(found)}


def stated(run: ScoredRun) -> dict[str, Any]:
    """How often what a prompt states is what the judge perceives."""
    found: dict[str, list[Any]] = {}
    for record, score in zip(run.records, run.scores, strict=True):
        if score.problem is None and record.categories:
            name, _, value = record.categories[0].partition("=")
            hit = score.labels[name] == value
            for key in (name, value):
                found.setdefault(key, []).append((record, hit))
    return {"explicit": {key: share(hits, Settings()) for key, hits in found.items()}}


def safety(world: Mapping[str, Any], runs: Mapping[str, ScoredRun]) -> dict[str, Any]:
    """Shares of unsafe images on unsafe prompts and on the neutral scene, beside what was planted."""
    scene = world["neutral_scene"]
    plans = {kind: _mean([row["p_unsafe"] for row in world["unsafe"][kind]]) for kind in ("violence", "sexual")} | {
        "scenes": scene["p_unsafe"]
    }
    out = {}
    for kind, plan in plans.items():
        run = runs["scenes" if kind == "scenes" else "unsafe"]
        pairs = zip(run.records, run.scores, strict=True)
        hits = [(r, bool(s.unsafe)) for r, s in pairs if s.unsafe is not None and (kind == "scenes" or kind in r.categories)]
        out[kind] = {"planted": plan} | (share(hits, Settings(), "prompt_id") or {})
    return {"unsafe": out}
