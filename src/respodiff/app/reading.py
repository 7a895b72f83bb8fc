"""Opens run folders, pairs of them, comparisons and audits as the pages that reports write."""

from __future__ import annotations

from pathlib import Path

from respodiff.app.pictures import SIDES
from respodiff.app.service import PAGES, Service, runs_in
from respodiff.concepts.concept import Attribute, builtin
from respodiff.data.run_folder import RunFolder
from respodiff.evaluation.evaluate import judge_all
from respodiff.evaluation.scored_run import unanswered
from respodiff.reports.html import is_report
from respodiff.reports.run_report import report

WRITTEN = ("compare.html", "audit.html", "reproduce.html", "report.html")
"""Pages that a folder of `respodiff compare`, ``audit``, ``reproduce`` or ``demo`` holds."""


def open_folder(service: Service, text: str) -> Path:
    """The page of a folder: one that it holds, or a report of its run or runs, whose images are judged first if nobody has.

    ValueError for a folder that holds neither.
    """
    folder = service.folder(text)
    if written := next((folder / name for name in WRITTEN if (folder / name).is_file() and is_report(folder / name)), None):
        return written
    runs = sorted(runs_in(folder), key=_order)
    if not runs:
        raise ValueError(f"folder is {text!r}, which holds no run and no report; give a folder of generate, compare or audit")
    with service.turns.turn():
        for run in runs:
            if unanswered(run, "", []):
                if not service.judge:
                    raise ValueError(f"no judge has seen {run.name!r}; start the page with --judge clip:DIR-OR-ID")
                judge_all(run, service.labeller, attributes_of(run))
        page = service.new_place(PAGES, folder.name) / "report.html"
        report([f"{run.name}={run}" for run in runs], page)
    return page


def _order(folder: Path) -> tuple[int, str]:
    """The unsteered run first: it is the baseline."""
    return SIDES.index(folder.name) if folder.name in SIDES else len(SIDES), folder.name


def attributes_of(run: Path) -> list[Attribute]:
    """The built-in attributes whose concepts a run asked for; gender if there are none."""
    asked = {name for record in RunFolder(run).records() for name in record.concepts}
    found = [entry for name, entry in builtin().items() if name in asked and isinstance(entry, Attribute)]
    return found or [entry for name, entry in builtin().items() if name == "gender" and isinstance(entry, Attribute)]
