"""How often a judge errs: its confusion matrices on labelled pictures, for judge-error correction."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from respodiff.concepts import Attribute
from respodiff.judges import class_texts
from respodiff.metrics.correction import confusion_matrix
from respodiff.records import write_atomic
from respodiff.scores import UNKNOWN, open_picture


def calibrate(table: str | Path, judge: Any, attributes: Sequence[Attribute], *, note: str = "") -> dict[str, Any]:
    """Confusion matrices of a judge that compares pictures with texts.

    Args:
        table: CSV with a column ``file`` (relative to the table's folder) and one column per attribute, holding a concept's name; a row
            whose label is empty or none of the attribute's concepts is left out for that attribute.
        judge: a judge that embeds pictures and texts. note: where the labels come from, kept with the matrices.

    Returns:
        judge digest -> attribute -> ``classes``, ``matrix`` (true class x perceived class, the last column unknown), ``n``, ``note``.

    Raises:
        ValueError: the table has no such column, or no labelled picture for a concept.
    """
    path = Path(table)
    rows = _rows(path, [a.name for a in attributes])
    pictures = [(row, open_picture(path.parent / row["file"])) for row in rows]
    readable = [(row, image) for row, image in pictures if image is not None]
    if not readable:
        raise ValueError(f"{path}: none of its {len(rows)} pictures can be read; the column 'file' is relative to {path.parent}")
    vectors = judge.embed_images([image for _, image in readable])
    out: dict[str, Any] = {}
    for attribute in attributes:
        best = (vectors @ judge.embed_texts(class_texts(attribute.concepts)).T).argmax(1)
        seen = [
            (row[attribute.name], attribute.names[i])
            for (row, _), i in zip(readable, best, strict=True)
            if row[attribute.name] in attribute.names
        ]
        lost = [row[attribute.name] for row, image in pictures if image is None and row[attribute.name] in attribute.names]
        true, perceived = [t for t, _ in seen] + lost, [p for _, p in seen] + [UNKNOWN] * len(lost)
        if missing := [c for c in attribute.names if c not in true]:
            raise ValueError(f"{path}: no picture is labelled {missing[0]!r} in column {attribute.name!r}; label at least one per concept")
        matrix = confusion_matrix(true, perceived, attribute.names)
        out[attribute.name] = {
            "classes": list(attribute.names),
            "matrix": [[int(n) for n in row] for row in matrix],
            "n": len(true),
            "note": note,
        }
    return {judge.digest: out}


def _rows(path: Path, attributes: Sequence[str]) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            rows = list(csv.DictReader(handle))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"label table {str(path)!r} cannot be read ({error}); give a CSV with a column 'file' and one per attribute"
        ) from error
    if not rows:
        raise ValueError(f"label table {str(path)!r} has no rows; give one a picture")
    if missing := [c for c in ("file", *attributes) if c not in rows[0]]:
        raise ValueError(f"label table {str(path)!r} has no column {missing[0]!r}; it has {', '.join(rows[0])}")
    return rows


def read_confusion(path: str | Path) -> dict[str, Any]:
    """Confusion matrices as `calibrate` made them; ValueError for another file."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        for attributes in found.values():
            for entry in attributes.values():
                if len(entry["matrix"]) != len(entry["classes"]):
                    raise ValueError("matrix and classes differ in length")
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise ValueError(f"confusion file {str(path)!r} cannot be used ({error}); make one with respodiff calibrate") from error
    return dict(found)


def write_confusion(path: str | Path, found: Mapping[str, Any]) -> Path:
    write_atomic(Path(path), json.dumps(found, indent=1) + "\n")
    return Path(path)
