"""What people see of a comparison: one page with table, trade-off plot and images, and the same as Markdown and JSON."""

from __future__ import annotations

import json
from typing import Any

from respodiff._version import __version__
from respodiff.data.run_folder import write_atomic
from respodiff.evaluation.judges import NOTICE
from respodiff.evaluation.statistics import Settings
from respodiff.experiments.compare import MethodComparison
from respodiff.experiments.comparison_report import ABOUT, blocks_of, cell, columns_of, judged, markdown, rows_of, trade_off, unchanged
from respodiff.reports.gallery import gallery
from respodiff.reports.html import Section, html_report


def publish(comparison: MethodComparison, judge: Any, *, n_bootstrap: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Judge what was drawn and write ``compare.html``, ``compare.md`` and ``compare.json`` into the comparison's folder.

    Returns:
        JSON-ready: ``methods`` (label -> figures), ``rows``, ``plan``, ``judge``, ``page``, ``tables``.
    """
    settings = Settings(n_bootstrap=n_bootstrap, seed=seed)
    judged(comparison, judge)
    rows, kind, out = rows_of(comparison, settings), comparison.plan.kind, comparison.out
    plan = dict(vars(comparison.plan))
    result: dict[str, Any] = {"notice": NOTICE, "library": __version__, "plan": plan, "judge": {"name": judge.name, "digest": judge.digest}}
    result |= {"rows": rows, "methods": {row["label"]: row for row in rows}}
    result |= {"page": str(out / "compare.html"), "tables": [str(out / "compare.md"), str(out / "compare.json")]}
    write_atomic(
        out / "compare.json", json.dumps({k: v for k, v in result.items() if k not in ("page", "tables", "methods")}, indent=1) + "\n"
    )
    notes = "\n".join(f"- {note}" for note in _about_rows(comparison, rows))
    write_atomic(out / "compare.md", _words(comparison, judge) + "\n\n" + markdown(rows, kind) + "\n" + notes + "\n")
    html_report(
        out / "compare.html",
        title="Methods side by side: " + ("fairness" if kind == "fairness" else "safety"),
        lead=_words(comparison, judge),
        sections=_sections(comparison, rows),
    )
    return result


def _words(comparison: MethodComparison, judge: Any) -> str:
    p = comparison.plan
    prompts, images = comparison.parts["suite"]
    what = f"{len(prompts)} prompts of suite {p.suite}, {images} images each, {p.steps} steps, guidance {p.guidance:g}, seed {p.seed}"
    return f"{what}; the same noise for every method, judged by {judge.name} ({judge.digest}). Brackets hold 95 % intervals over prompts."


def _about_rows(comparison: MethodComparison, rows: list[dict[str, Any]]) -> list[str]:
    """Which rows did not move what they claim to move, and settings that are not a method's own defaults."""
    still = unchanged(rows)
    notes = [f"Not moved beyond the interval: {', '.join(still)}." if still else "Every method moves its figure beyond the interval."]
    for name in comparison.names:
        if changes := comparison.plan.settings.get(name):
            notes.append(f"{name}: " + ", ".join(f"{k} {_short(v)}" for k, v in changes.items()) + "; the rest as the method has it.")
    return notes


def _short(value: Any) -> str:
    return f"{len(value)} texts" if isinstance(value, tuple | list) and len(value) > 4 else str(value)


def _sections(comparison: MethodComparison, rows: list[dict[str, Any]]) -> list[Section]:
    kind = comparison.plan.kind
    columns = columns_of(kind)
    table = [{"method": row["label"], "n": row["n"], **{title: cell(row[key]) for key, title in columns.items()}} for row in rows]
    half = next(
        (
            row["split_half" if kind == "fairness" else "benign_split_half"]
            for row in rows[1:]
            if row.get("drift") or row.get("benign_drift")
        ),
        None,
    )
    notes = [f"{name}: {text}" for name, text in ABOUT.items()]
    if half:
        notes.append(f"Frechet distance of the plain model's own split halves: {half['mean']:.3f} [{half['low']:.3f}, {half['high']:.3f}].")
    notes += _about_rows(comparison, rows)
    parts = {"suite": "ImageExamples", "stated": "Prompts that state an attribute themselves", "benign": "Harmless prompts"}
    sections = [Section("Table", table=table, notes=notes), Section("Trade-off", parts=[trade_off(rows, kind, comparison.plan.axis)])]
    for part, heading in parts.items():
        if part in comparison.parts:
            for suite, entries in blocks_of(comparison, part).items():
                text = "One row a method; images in a column start from the same noise. First images of some prompts, none chosen by hand."
                sections.append(Section(heading if part != "benign" else f"{heading}: {suite}", text=text, parts=[gallery(entries)]))
    return sections
