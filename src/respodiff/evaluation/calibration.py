"""Measures the errors of a judge on labelled images: confusion matrices for judge-error correction."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from respodiff.concepts.concept import Attribute
from respodiff.data.places import check_out
from respodiff.data.records import ImageRecord
from respodiff.data.run_folder import write_atomic
from respodiff.data.tables import read_table
from respodiff.data.untrusted import confined, read_json
from respodiff.evaluation.judges import UNKNOWN, Judge, JudgeInput, LabellingTask
from respodiff.evaluation.metrics.judge_errors import confusion_matrix
from respodiff.evaluation.score_files import open_image


def calibrate(table: str | Path, judge: Judge, attributes: Sequence[Attribute], *, note: str = "") -> dict[str, Any]:
    """Confusion matrices of a judge that labels images.

    Args:
        table: CSV with a column ``file`` (relative to the table's folder) and one column per attribute, holding a concept's name. Rows with
            another label are left out for that attribute.
        judge: A judge of kind ``texts`` or ``answers``. note: Where the labels come from, kept with the matrices.

    Returns:
        Judge digest -> attribute -> ``classes``, ``targets`` and ``class_template`` (the texts that the judge chose between), ``min_margin``,
        ``matrix`` (true class x perceived class, the last column unknown), ``n``, ``note``. An image that cannot be read is in none of them.

    Raises:
        ValueError: The table has no such column, no labelled image for a concept, or names a file outside of its folder; or the judge looks
            at no image, or gives no label.
    """
    if judge.kind not in ("texts", "answers"):
        raise ValueError(f"judge is {judge.name!r}; allowed: judges that label what they see (embedded, clip:, siglip:, hf:, vlm:)")
    path = Path(table)
    lines = read_table(path, ["file", *(a.name for a in attributes)])
    rows = [{name: cell.strip() for name, cell in row.items()} for _, row in lines]
    if not rows:
        raise ValueError(f"label table {path.name} has no rows; give one an image")
    images = [_image(path, line, row["file"]) for (line, _), row in zip(lines, rows, strict=True)]
    if all(image is None for image in images):
        raise ValueError(f"{path.name}: none of its {len(rows)} images can be read; the column 'file' is relative to the table's folder")
    shown = [
        JudgeInput(ImageRecord(id=str(i), file=rows[i]["file"], prompt="", prompt_id=""), image)
        for i, image in enumerate(images)
        if image is not None
    ]
    found = {score.id: score.labels for score in judge.score(shown, LabellingTask(tuple(attributes))) if score.problem is None}
    seen = [(row, found[str(i)]) for i, row in enumerate(rows) if str(i) in found]
    return {judge.digest: {a.name: _matrix(a, seen, path.name) | {"note": note} for a in attributes}}


def _image(table: Path, line: int, name: str) -> Image.Image | None:
    try:
        return open_image(confined(table.parent, name))
    except OSError:
        return None
    except ValueError as error:
        raise ValueError(f"{table.name}, line {line}: {error}; give a path relative to it, of an image inside of it") from error


def _matrix(attribute: Attribute, seen: Sequence[tuple[Mapping[str, str], Mapping[str, str]]], table: str) -> dict[str, Any]:
    name = attribute.name
    pairs = [(row[name], labels.get(name, UNKNOWN)) for row, labels in seen if row[name] in attribute.names]
    true, perceived = [t for t, _ in pairs], [p for _, p in pairs]
    if missing := [c for c in attribute.names if c not in true]:
        raise ValueError(
            f"{table}: no image that can be read is labelled {missing[0]!r} in column {attribute.name!r}; label at least one per concept"
        )
    return {
        "classes": list(attribute.names),
        "targets": {c.name: c.target for c in attribute.concepts},
        "class_template": "{concept}",
        "min_margin": 0.0,
        "matrix": confusion_matrix(true, perceived, attribute.names).tolist(),
        "n": len(true),
    }


def read_confusion(path: str | Path) -> dict[str, Any]:
    """Confusion matrices as `calibrate` made them; ValueError for another file."""
    try:
        found = read_json(Path(path).read_text(encoding="utf-8"))
        for attributes in found.values():
            for name, entry in attributes.items():
                _check_entry(name, entry)
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise ValueError(f"confusion file {str(path)!r} cannot be used ({error}); make one with respodiff calibrate") from error
    return dict(found)


def _check_entry(name: str, entry: Mapping[str, Any]) -> None:
    classes, matrix, margin = entry["classes"], entry["matrix"], entry["min_margin"]
    if list(entry["targets"]) != classes or not isinstance(entry["class_template"], str) or not isinstance(margin, float | int):
        raise ValueError(f"{name}: targets must name the classes, class_template be a text, min_margin a number")
    counts = [n for row in matrix for n in row if isinstance(n, int) and n >= 0]
    if [len(row) for row in matrix] != [len(classes) + 1] * len(classes) or len(counts) < len(classes) * (len(classes) + 1):
        raise ValueError(f"{name}: matrix must have {len(classes)} rows of {len(classes) + 1} counts of 0 or more")


def write_confusion(path: str | Path, found: Mapping[str, Any], *, force: bool = False) -> Path:
    """Write confusion matrices; ValueError for a file that holds something else, unless ``force``."""
    path = Path(path)
    check_out(path, read_confusion, force=force)
    write_atomic(path, json.dumps(found, indent=1) + "\n")
    return path
