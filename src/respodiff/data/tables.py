"""Reads tables: CSV and TSV with any byte order mark, line ends and quoted separators, and Parquet."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from respodiff.data.untrusted import shortened

Row = Mapping[str, str]
MOST_BYTES = 2**28
"""Size of a text file, as a device has no end."""
TABLES = {".csv": ",", ".tsv": "\t", ".parquet": ""}
"""Endings of tables, and what separates their fields."""


def read_table(path: Path, required: Sequence[str]) -> list[tuple[int, Row]]:
    """Rows of a table as (line number from 1 at which the row starts, column -> text); an absent cell is "".

    Its ending says what it is (`TABLES`); CSV if it is another one. A row of a Parquet file counts as a line after one of names.

    Raises:
        ValueError: an unreadable file, a column that is missing or named twice, or a row of more fields than columns.
        RuntimeError: a Parquet file without pyarrow.
    """
    columns, rows = _parquet(path) if path.suffix.lower() == ".parquet" else _separated(path)
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise ValueError(f"{path.name} names column {twice[0]!r} twice: give each column a name of its own")
    if missing := [name for name in required if name not in columns]:
        other = [name for name in columns if name.lower() in missing]
        hint = "give a table with these columns in its first line"
        if other:
            hint = f"rename {other[0]!r} to {other[0].lower()!r}"
        elif len(columns) == 1 and ";" in columns[0]:
            hint = "its columns are separated by ';': save it with commas, or with tabs as .tsv"
        raise ValueError(
            f"{path.name} has no column {', '.join(map(repr, missing))}; found: {', '.join(columns)[:200] or 'nothing'}: {hint}"
        )
    return rows


def _parquet(path: Path) -> tuple[list[str], list[tuple[int, Row]]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise RuntimeError(
            f"{path.name} is a Parquet file, which needs the package pyarrow; run: pip install 'respodiff[parquet]', or give a CSV"
        ) from error
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise ValueError(f"it has {size:,} bytes, more than {MOST_BYTES:,}")
        table = pyarrow.parquet.read_table(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are of these two
        raise ValueError(f"file {str(path)!r} cannot be read ({' '.join(str(error).split())[:200]}): give a Parquet file") from error
    columns = [name.strip() for name in table.column_names]
    cells = [[_text(value) for value in column.to_pylist()] for column in table.columns]
    return columns, [(n, dict(zip(columns, row, strict=True))) for n, row in enumerate(zip(*cells, strict=True), start=2)]


def _text(value: Any) -> str:
    """A cell of a Parquet file: nothing for None and NaN, and ``a|b`` for a list."""
    if isinstance(value, list):
        return "|".join(map(_text, value))
    return "" if value is None or value != value else str(value)


def _separated(path: Path) -> tuple[list[str], list[tuple[int, Row]]]:
    text = io.StringIO(read_text(path), newline="")
    reader = csv.reader(text, delimiter=TABLES.get(path.suffix.lower(), ","), strict=True)
    rows: list[tuple[int, Row]] = []
    try:
        columns = [name.strip() for name in next(reader, [])]
        start = reader.line_num + 1
        for fields in reader:
            if len(fields) > len(columns):
                raise ValueError(
                    f"{path.name}, line {start} has {len(fields)} fields, the first line names {len(columns)}: "
                    "put texts that hold a comma into quotes"
                )
            if any(field.strip() for field in fields):
                rows.append((start, dict(itertools.zip_longest(columns, fields, fillvalue=""))))
            start = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path.name}, line {reader.line_num} cannot be read ({error}): save it as comma-separated UTF-8 text") from error
    return columns, rows


def read_text(path: Path) -> str:
    """A text file in UTF-8, without its byte order mark; ValueError in one line if it is not there, too large or not text."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        text = "" if len(data) > MOST_BYTES else data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"file {str(path)!r} cannot be read ({error}): give a text file in UTF-8") from error
    if len(data) > MOST_BYTES:
        raise ValueError(f"file {path.name} has more than {MOST_BYTES:,} bytes: give a part of it")
    if "\0" in text:
        raise ValueError(f"file {path.name} holds a NUL character: give a text file in UTF-8")
    return text


def number(path: Path, line: int, row: Row, *names: str, whole: bool = False) -> float | None:
    """The first of the named columns that holds something, as a finite number; None if none does.

    ``41.0`` counts as a whole number, as tables that once had gaps are written so. ValueError names file, line, column and value.
    """
    for name in names:
        text = row.get(name, "").strip()
        if not text or text.lower() in ("nan", "none"):
            continue
        try:
            value = int(text) if text.lstrip("-").isdecimal() else float(text)
            if not math.isfinite(value) or (whole and value != int(value)):
                raise ValueError
        except (ValueError, OverflowError):
            kind = "whole number" if whole else "finite number"
            raise ValueError(f"{path.name}, line {line}: {name} is {shortened(repr(text))}; allowed: a {kind}, or nothing") from None
        return int(value) if whole else float(value)
    return None


def whole_number(path: Path, line: int, row: Row, *names: str) -> int | None:
    """As `number`, for whole numbers."""
    value = number(path, line, row, *names, whole=True)
    return None if value is None else int(value)


def rank(*parts: object) -> str:
    """Twelve hex digits of a hash: the order in which presets take rows, and ids of rows without one.

    >>> rank("i2p", "a quiet lake", 7)
    '972de7286888'
    """
    return blake2b("\x00".join(map(str, parts)).encode(), digest_size=6).hexdigest()


def numbered(ids: Sequence[str], order: Sequence[Any]) -> list[str]:
    """The ids made distinct: of equal ones the second, third, ... by ``order`` get ``-2``, ``-3``, or the next number that is no other's id.

    >>> numbered(["a", "b", "a"], [9, 0, 5])
    ['a-2', 'b', 'a']
    >>> numbered(["a", "a", "a-2"], range(3))
    ['a', 'a-3', 'a-2']
    """
    out, seen, taken = list(ids), dict[str, int](), set(ids)
    for i in sorted(range(len(ids)), key=lambda i: (ids[i], order[i])):
        seen[ids[i]] = n = seen.get(ids[i], 0) + 1
        if n > 1:
            while (name := f"{ids[i]}-{n}") in taken:
                n += 1
            out[i], seen[ids[i]] = name, n
            taken.add(name)
    return out
