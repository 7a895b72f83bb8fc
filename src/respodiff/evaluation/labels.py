"""Labels by people: a table an annotator in the run folder, as `respodiff.evaluation.calibration.calibrate` and the judge ``table:`` read it.

Its columns are ``file`` and one an attribute. A cell holds a concept's name or ``unknown``; an empty one is not labelled yet.
"""

from __future__ import annotations

import csv
import io
import re
import threading
from collections.abc import Mapping
from pathlib import Path

from respodiff.data.records import ImageRecord
from respodiff.data.run_folder import RunFolder, write_atomic
from respodiff.data.tables import read_table
from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.evaluation.metrics.judge_errors import agreement

Labels = Mapping[str, Mapping[str, str]]
"""File of an image -> attribute -> label."""
_writing = threading.Lock()


def label_table(run: str | Path, annotator: str) -> Path:
    """The file of an annotator's labels in a run folder; ValueError for a name that is not 1 to 40 letters, digits, hyphens or underscores."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", annotator):
        raise ValueError(f"annotator is {annotator!r}; allowed: 1 to 40 letters, digits, hyphens and underscores")
    return Path(run) / f"labels-{annotator}.csv"


def annotators(run: str | Path) -> list[str]:
    """Names of those who have labelled images of a run."""
    return sorted(file.stem.removeprefix("labels-") for file in Path(run).glob("labels-*.csv"))


def read_labels(run: str | Path, annotator: str) -> Labels:
    """All labels of an annotator; none where there is no table yet. ValueError for a file that is no such table."""
    if not (path := label_table(run, annotator)).is_file():
        return {}
    rows = [row for _, row in read_table(path, ["file"])]
    return {row["file"]: {name: label for name, label in row.items() if name != "file" and label} for row in rows}


def write_label(run: str | Path, annotator: str, file: str, attribute: str, label: str) -> Path:
    """Keep one label at once; an empty one takes it back. Gives the table.

    ValueError for a file that the run has not; OSError if the table cannot be written.
    """
    records = RunFolder(run).records()
    if file not in {r.file for r in records}:
        raise ValueError(f"file is {file!r}, which is no image of run {str(run)!r}; give the file of one of its records")
    with _writing:
        found = {name: dict(labels) for name, labels in read_labels(run, annotator).items()}
        found.setdefault(file, {})[attribute] = label
        names = sorted({name for labels in found.values() for name in labels} - {""})
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["file", *names])
        rows.writerows([r.file, *(found[r.file].get(name, "") for name in names)] for r in records if any(found.get(r.file, {}).values()))
        path = label_table(run, annotator)
        write_atomic(path, text.getvalue())
    return path


def labelled_by_both(run: str | Path, first: str, second: str, attribute: str) -> list[tuple[ImageRecord, str, str]]:
    """(record, label of the first, label of the second) of the images that both have labelled."""
    a, b = (read_labels(run, name) for name in (first, second))
    rows = [(r, a.get(r.file, {}).get(attribute, ""), b.get(r.file, {}).get(attribute, "")) for r in RunFolder(run).records()]
    return [row for row in rows if row[1] and row[2]]


def annotator_agreement(run: str | Path, first: str, second: str, attribute: str) -> tuple[Estimate, Estimate | None] | None:
    """Raw agreement and Cohen's kappa of two annotators, as `respodiff.evaluation.metrics.judge_errors.agreement`; None without a common image."""
    rows = labelled_by_both(run, first, second, attribute)
    return agreement([a for _, a, _ in rows], [b for _, _, b in rows], [r.group for r, *_ in rows]) if rows else None
