"""Judged runs in, a report out: one HTML page for people, and the same figures as JSON, CSV, Markdown and a table of pictures.

Runs are set side by side suite by suite; the first run that holds a suite is the baseline there. Every picture strip shows the same
seeds in the same columns. Nothing is drawn or judged here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from respodiff import report_page, report_tables
from respodiff._version import __version__
from respodiff.comparison import compare
from respodiff.evaluation import shipped_confusion
from respodiff.figures import Settings
from respodiff.judged import JudgedRun, load_judged, open_parts
from respodiff.judges import NOTICE
from respodiff.metrics import paired
from respodiff.records import write_atomic
from respodiff.summary import summarise


@dataclass(frozen=True)
class Entry:
    """One run in one suite: its pictures, its figures, and how it differs from the baseline (None for that itself)."""

    run: JudgedRun
    summary: dict[str, Any]
    comparison: dict[str, Any] | None


Blocks = dict[str, list[Entry]]
"""Suite -> its runs, the baseline first."""


def report(
    runs: Sequence[str | Path],
    out: str | Path = "report.html",
    *,
    judge: str = "",
    confusion: Mapping[str, Any] | None = None,
    n_boot: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the report of one run or several.

    Args:
        runs: run folders that have been evaluated; ``label=DIR`` names one, ``DIR,DIR`` joins the parts of a run that was split.
        out: the page; ``.json``, ``.csv``, ``.md`` and ``-pictures.csv`` of the same name are written beside it.
        judge: the judge that labels come from, where a run has several; empty takes the first that reads labels off pictures.
        confusion: see `respodiff.evaluation.evaluate`.
        n_boot, seed: of the intervals.

    Returns:
        ``page`` (path), ``tables`` (paths) and ``suites`` (the figures).

    Raises:
        ValueError: no run, a run without scores, two runs of one name, or runs that different judges judged.
    """
    known = shipped_confusion() if confusion is None else confusion
    page = Path(out)
    _check_place(page, runs)
    blocks = collect(runs, judge=judge, settings=Settings(n_boot=n_boot, seed=seed, confusion=known))
    report_page.write(page, blocks, n_boot=n_boot, seed=seed)
    tables = _write_tables(page, blocks, n_boot=n_boot, seed=seed)
    return {"page": str(page), "tables": [str(t) for t in tables], "suites": figures(blocks)}


TABLES = (".json", ".csv", ".md", "-pictures.csv")


def _check_place(page: Path, runs: Sequence[str | Path]) -> None:
    """ValueError for a page whose tables would replace what is no report's: a run's own files, or a file that was there before."""
    if page.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"out is {str(page)!r}; give the name of the page, such as report.html: the tables get their names from it")
    for part in (part for run in runs for part in open_parts(split_label(str(run))[1])):
        if page.resolve().is_relative_to(part.path.resolve()):
            raise ValueError(f"out is {str(page)!r}, inside of run folder {part.path.name!r}; choose a place outside of the runs")
    there = [page.with_name(page.stem + suffix) for suffix in TABLES]
    if not page.exists() and (taken := [path.name for path in there if path.exists()]):
        raise ValueError(f"out is {str(page)!r}, whose table {taken[0]!r} would replace a file that is there; choose another name")


def collect(runs: Sequence[str | Path], *, judge: str = "", settings: Settings | None = None) -> Blocks:
    """Read, sum up and compare runs, suite by suite; p-values of all comparisons are adjusted together (Holm)."""
    settings = settings or Settings()
    if not runs:
        raise ValueError("runs is empty; give at least one run folder")
    loaded = [_load(str(run), judge) for run in runs]
    labels = [run.label for run in loaded]
    if twice := [name for name in labels if labels.count(name) > 1]:
        raise ValueError(f"two runs are called {twice[0]!r}; name them: before={twice[0]} after=...")
    blocks: Blocks = {}
    for suite in dict.fromkeys(suite for run in loaded for suite in run.suites()):
        entries: list[Entry] = []
        for run in loaded:
            part = run.subset([r.suite == suite for r in run.records])
            if part.records:
                entries.append(Entry(part, summarise(part, settings), compare(entries[0].run, part, settings) if entries else None))
        blocks[suite] = entries
    _adjust(blocks)
    return blocks


def _load(text: str, judge: str) -> JudgedRun:
    label, where = split_label(text)
    return load_judged(where, judge=judge, label=label)


def split_label(text: str) -> tuple[str, str]:
    """``NAME=DIR`` as (NAME, DIR); a folder whose own name holds a ``=`` is a folder."""
    label, _, where = text.rpartition("=") if not Path(text).is_dir() else ("", "", text)
    return label, where


def _adjust(blocks: Blocks) -> None:
    """Add ``p_holm`` to every test of the report."""
    tests = [t for entries in blocks.values() for e in entries if e.comparison for t in e.comparison["tests"]]
    for test, p in zip(tests, paired.holm([t["p"] for t in tests]) if tests else [], strict=True):
        test["p_holm"] = float(p)


def figures(blocks: Blocks) -> dict[str, Any]:
    """All figures as JSON: suite -> list of runs with label, settings, figures and comparison."""
    return {
        suite: [{"run": e.run.label, "settings": e.run.settings, "figures": e.summary, "comparison": e.comparison} for e in entries]
        for suite, entries in blocks.items()
    }


def _write_tables(page: Path, blocks: Blocks, *, n_boot: int, seed: int) -> list[Path]:
    import json

    whole = {"notice": NOTICE, "library": __version__, "n_boot": n_boot, "seed": seed, "suites": figures(blocks)}
    texts = (
        json.dumps(whole, indent=1) + "\n",
        report_tables.headline_csv(blocks),
        report_tables.markdown(blocks, n_boot=n_boot, seed=seed),
        report_tables.pictures_csv(blocks),
    )
    out = []
    for suffix, text in zip(TABLES, texts, strict=True):
        path = page.with_name(page.stem + suffix)
        write_atomic(path, text)
        out.append(path)
    return out
