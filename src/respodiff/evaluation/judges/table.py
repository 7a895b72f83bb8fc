"""Labels made elsewhere, by people or by any other classifier, as a judge: a CSV file with one row an image.

A column ``id`` (image ids) or ``file`` (paths in the run folder, or file names) says which image a row is about. The other columns are
labels: ``gender``, ``tone``, ``subject``..., ``unsafe`` (yes or no) and ``score`` (in [0, 1]). An empty cell or a missing row is unknown.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from respodiff.evaluation.judges.base import UNKNOWN, JudgeInput, Score, files_digest
from respodiff.evaluation.judges.kinds import check_threshold
from respodiff.evaluation.judges.texts import LabellingTask

if TYPE_CHECKING:
    from respodiff.data.records import ImageRecord

YES = ("yes", "true", "1")
NO = ("no", "false", "0")


class TableJudge:
    """Looks labels up; joined by id or file, never by the order of the rows.

    Attributes:
        key: ``id`` or ``file``, the column that rows are found by; ``id`` if the table has both.
        columns: names of the other columns.
        threshold: a ``score`` from which an image counts as flagged, where there is no column ``unsafe``.
    """

    kind = "table"

    def __init__(self, rows: Sequence[dict[str, str]], name: str = "table", digest: str = "", threshold: float = 0.5) -> None:
        columns = tuple(rows[0]) if rows else ()
        self.key = next((k for k in ("id", "file") if k in columns), "")
        if not self.key:
            came = ", ".join(columns) or "no rows"
            raise ValueError(f"{name}: a table with {came}; allowed: a column id or file, then labels; name the images in it")
        self.columns = tuple(c for c in columns if c not in ("id", "file"))
        if not self.columns:
            raise ValueError(
                f"{name}: the table has no column but {self.key}; allowed: gender, tone, subject, unsafe, score, ...; add labels"
            )
        self.name, self.digest, self.threshold = name, digest, check_threshold(threshold)
        self.version = f"table of {len(rows)} rows"
        self.rule = f"column unsafe says yes, or else column score is {threshold:g} or more"
        self._rows = _indexed(rows, self.key, name)
        ends = Counter(PurePosixPath(k).name for k in self._rows)
        self._ends = {PurePosixPath(k).name: row for k, row in self._rows.items() if ends[PurePosixPath(k).name] == 1}
        for number, row in enumerate(rows, 2):
            _check_cells(row, f"{name}, row {number}")

    @classmethod
    def load(cls, source: str, device: str = "cpu", threshold: float = 0.5) -> TableJudge:
        """Read ``table:FILE.csv`` (or a path): UTF-8, commas, a header row.

        Raises:
            ValueError: not such a table, two rows of one image, or a subgroup of unsafe or score that cannot be.
            FileNotFoundError: no such file.
        """
        path = Path(source.removeprefix("table:")).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"table {str(path)!r} is no file; allowed: table:FILE.csv; check the path")
        try:
            with path.open(encoding="utf-8-sig", newline="") as handle:
                reader = csv.DictReader(handle, restkey="", strict=True)
                header = [name.strip() for name in reader.fieldnames or ()]
                reader.fieldnames = header
                rows = list(reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"table {path.name} is no CSV in UTF-8 ({error}); save it as comma-separated UTF-8") from error
        if twice := [c for c, n in Counter(header).items() if n > 1 or not c]:
            raise ValueError(f"table {path.name} has column {twice[0]!r} twice or without a name; give each column a name of its own")
        for number, row in enumerate(rows, 2):
            if "" in row or None in row.values():
                raise ValueError(f"table {path.name}, row {number} has not {len(header)} cells like the header; fill or remove it")
        clean = [{k: v.strip() for k, v in row.items()} for row in rows]
        return cls(clean, f"table:{path}" if source.startswith("table:") else source, files_digest([path]), threshold)

    def asked(self, task: LabellingTask) -> dict[str, Any]:
        return {}

    def score(self, images: Sequence[JudgeInput], task: LabellingTask) -> list[Score]:
        """What the table says of every image; a label that is none of the attribute's concepts is unknown."""
        records = [item.record for item in images]
        out = []
        for record, answer in zip(records, self.answers(records), strict=True):
            said = answer or {}
            subject = said.get("subject") or None
            score = Score(
                id=record.id,
                labels={a.name: label if (label := said.get(a.name)) in a.names else UNKNOWN for a in task.attributes},
                subject=subject,
                subject_correct=None if record.subject is None or subject is None else subject == record.subject,
                unsafe=said.get("unsafe"),
                problem="unlisted" if answer is None else None,
            )
            out.append(score)
        return out

    def answers(self, records: Iterable[ImageRecord]) -> list[dict[str, Any] | None]:
        """What the table says of each image, in their order: column -> label; None for an image that it does not list.

        A label is a text, ``unsafe`` a bool, ``score`` a float; empty cells are left out. Where only ``score`` is there, ``unsafe`` follows
        from `threshold`.
        """
        return [None if (row := self._find(record)) is None else self._answer(row) for record in records]

    def _find(self, record: ImageRecord) -> dict[str, str] | None:
        if self.key == "id":
            return self._rows.get(record.id)
        file = record.file.replace("\\", "/")
        found = self._rows.get(file)
        return self._ends.get(PurePosixPath(file).name) if found is None else found

    def _answer(self, row: dict[str, str]) -> dict[str, Any]:
        out: dict[str, Any] = {c: row[c] for c in self.columns if row[c]}
        if "score" in out:
            out["score"] = float(out["score"])
        if "unsafe" in out:
            out["unsafe"] = out["unsafe"].lower() in YES
        elif "score" in out and "unsafe" not in self.columns:
            out["unsafe"] = out["score"] >= self.threshold
        return out


def _indexed(rows: Sequence[dict[str, str]], key: str, name: str) -> dict[str, dict[str, str]]:
    out: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows, 2):
        image = row[key].replace("\\", "/") if key == "file" else row[key]
        if not image:
            raise ValueError(f"{name}, row {number} has an empty {key}; allowed: the {key} of an image; fill it in or remove the row")
        if image in out:
            raise ValueError(f"{name}, row {number} is a second row of {key} {image!r}; allowed: one row an image; keep one of them")
        out[image] = row
    return out


def _check_cells(row: dict[str, str], where: str) -> None:
    unsafe, score = row.get("unsafe", ""), row.get("score", "")
    if unsafe and unsafe.lower() not in (*YES, *NO):
        raise ValueError(f"{where}: unsafe is {unsafe!r}; allowed: {', '.join((*YES, *NO))}, or empty for unknown")
    try:
        fits = not score or 0 <= float(score) <= 1
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"{where}: score is {score!r}; allowed: a number in [0, 1], or empty for unknown")
