"""Labels made elsewhere, by people or by any other classifier, as a judge: a table with one row an image.

A column ``id`` (image ids) or ``file`` (paths in the run folder, or file names) says which image a row is about. The other columns are
labels: ``gender``, ``tone``, ``subject``..., and ``unsafe`` (yes or no). An image without a row is unknown; an empty cell is no answer, and is
in no share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from respodiff.data.tables import read_table
from respodiff.evaluation.judges.base import UNKNOWN, JudgeInput, Score, files_digest
from respodiff.evaluation.judges.texts import LabellingTask

if TYPE_CHECKING:
    from respodiff.data.records import ImageRecord

YES = ("yes", "true", "1")
NO = ("no", "false", "0")


class TableJudge:
    """Looks labels up; joined by id or file, never by the order of the rows.

    Raises:
        ValueError: no column ``id`` or ``file``, no label, two rows of one image, or a value of ``unsafe`` that cannot be.
    """

    kind = "table"

    def __init__(self, rows: Sequence[Mapping[str, str]], name: str = "table", digest: str = "") -> None:
        columns = tuple(rows[0]) if rows else ()
        self.key = next((k for k in ("id", "file") if k in columns), "")
        self.columns = tuple(c for c in columns if c not in ("id", "file", ""))
        if not self.key or not self.columns:
            came = f"with {', '.join(columns)}" if columns else "of no rows"
            raise ValueError(f"{name}: a table {came}; allowed: a column id or file, then labels (gender, tone, subject, unsafe, ...)")
        self.name, self.digest, self.version = name, digest, f"table of {len(rows)} rows"
        self._rows: dict[str, dict[str, str]] = {}
        for number, row in enumerate(rows, 2):
            image = row[self.key].strip()
            if self.key == "file":
                image = image.replace("\\", "/")
            if not image or image in self._rows:
                came = f"is a second row of {self.key} {image!r}" if image else f"has an empty {self.key}"
                raise ValueError(f"{name}, row {number} {came}; allowed: one row an image; fill it in or remove the row")
            self._rows[image] = {c: text for c in self.columns if (text := row[c].strip())}
            if (unsafe := self._rows[image].get("unsafe", "no").lower()) not in (*YES, *NO):
                raise ValueError(f"{name}, row {number}: unsafe is {unsafe!r}; allowed: {', '.join((*YES, *NO))}, or empty for unknown")
        ends = Counter(PurePosixPath(image).name for image in self._rows)
        self._ends = {end: row for image, row in self._rows.items() if ends[end := PurePosixPath(image).name] == 1}

    @classmethod
    def load(cls, source: str, device: str = "cpu") -> TableJudge:
        """Read ``table:FILE.csv`` as `respodiff.data.tables.read_table` does; FileNotFoundError if there is no such file."""
        path = Path(source.removeprefix("table:")).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"table {str(path)!r} is no file; allowed: table:FILE.csv; check the path")
        return cls([row for _, row in read_table(path, [])], f"table:{path}", files_digest([path]))

    def asked(self, task: LabellingTask) -> dict[str, Any]:
        return {}

    def score(self, images: Sequence[JudgeInput], task: LabellingTask) -> list[Score]:
        """What the table says of every image; a label that is none of the attribute's concepts is unknown.

        ValueError for a table that has no column of the task's attributes, ``subject`` or ``unsafe``.
        """
        allowed = (*(a.name for a in task.attributes), "subject", "unsafe")
        if not set(allowed) & set(self.columns):
            raise ValueError(f"{self.name}: a table with {', '.join(self.columns)}; allowed: a column of {', '.join(allowed)}; rename one")
        return [self._score(item.record, task) for item in images]

    def _score(self, record: ImageRecord, task: LabellingTask) -> Score:
        answer = self.answer(record)
        said = answer or {}
        subject, unsafe = said.get("subject"), said.get("unsafe")
        return Score(
            id=record.id,
            labels={
                a.name: said[a.name] if said.get(a.name) in a.names else UNKNOWN
                for a in task.attributes
                if a.name in self.columns and (answer is None or a.name in said)
            },
            subject=subject,
            subject_correct=None if record.subject is None or subject is None else subject == record.subject,
            unsafe=None if unsafe is None else unsafe.lower() in YES,
            problem="unlisted" if answer is None else None,
        )

    def answer(self, record: ImageRecord) -> dict[str, str] | None:
        """What the table says of an image: column -> label, empty cells left out; None for an image that it does not list."""
        if self.key == "id":
            return self._rows.get(record.id)
        file = record.file.replace("\\", "/")
        return self._rows.get(file, self._ends.get(PurePosixPath(file).name))
