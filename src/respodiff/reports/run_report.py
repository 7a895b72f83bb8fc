"""Scored runs in, a report out: one HTML page for people, and the same figures as JSON, CSV, Markdown and a table of images.

Runs are set side by side suite by suite; the first run that holds a suite is the baseline there. Every image strip shows the same
seeds in the same columns. Nothing is drawn or judged here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from respodiff._version import __version__
from respodiff.data.run_folder import write_atomic
from respodiff.evaluation.comparison import Blocks, collect, split_label, statistics
from respodiff.evaluation.evaluate import shipped_confusion
from respodiff.evaluation.judges import NOTICE
from respodiff.evaluation.scored_run import open_parts
from respodiff.evaluation.statistics import Settings
from respodiff.reports import run_page
from respodiff.reports import tables as report_tables


def report(
    runs: Sequence[str | Path],
    out: str | Path = "report.html",
    *,
    judge: str = "",
    confusion: Mapping[str, Any] | None = None,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the report of one run or several.

    Args:
        runs: run folders that have been evaluated; ``timestep_labels=DIR`` names one, ``DIR,DIR`` joins the parts of a run that was split.
        out: the page; ``.json``, ``.csv``, ``.md`` and ``-images.csv`` of the same name are written beside it.
        judge: the judge that labels come from, where a run has several; empty takes the first that reads labels off images.
        confusion: see `respodiff.evaluation.evaluate`.
        n_bootstrap, seed: of the intervals.

    Returns:
        ``page`` (path), ``tables`` (paths) and ``suites`` (the figures).

    Raises:
        ValueError: no run, a run without scores, two runs of one name, or runs that different judges judged.
    """
    known = shipped_confusion() if confusion is None else confusion
    page = Path(out)
    _check_place(page, runs)
    blocks = collect(runs, judge=judge, settings=Settings(n_bootstrap=n_bootstrap, seed=seed, confusion=known))
    run_page.write(page, blocks, n_bootstrap=n_bootstrap, seed=seed)
    tables = _write_tables(page, blocks, n_bootstrap=n_bootstrap, seed=seed)
    return {"page": str(page), "tables": [str(t) for t in tables], "suites": statistics(blocks)}


TABLES = (".json", ".csv", ".md", "-images.csv")


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


def _write_tables(page: Path, blocks: Blocks, *, n_bootstrap: int, seed: int) -> list[Path]:
    import json

    whole = {"notice": NOTICE, "library": __version__, "n_bootstrap": n_bootstrap, "seed": seed, "suites": statistics(blocks)}
    texts = (
        json.dumps(whole, indent=1) + "\n",
        report_tables.headline_csv(blocks),
        report_tables.markdown(blocks, n_bootstrap=n_bootstrap, seed=seed),
        report_tables.images_csv(blocks),
    )
    out = []
    for suffix, text in zip(TABLES, texts, strict=True):
        path = page.with_name(page.stem + suffix)
        write_atomic(path, text)
        out.append(path)
    return out
