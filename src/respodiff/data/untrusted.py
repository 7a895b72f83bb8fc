"""Guards against files that came from anywhere: paths that stay in their folder, JSON of any depth, texts that are safe to print."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")
_IN_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}

_ESCAPES = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b[ -~]?")
_CONTROLS = {
    **dict.fromkeys(
        {*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)} - {9, 10}
    ),  # the last two turn words round
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),  # halves of characters, as in file names of another encoding
}


def confined(folder: Path, name: str) -> Path:
    """The regular file inside of ``folder`` that a row or this library names. A pipe or a device would block, or never end.

    Raises:
        FileNotFoundError: there is no such file, or it is no regular one.
        ValueError: the name, or a link, leads out of the folder.
    """
    path = folder / name
    try:
        if _may_lead_out(os.fspath(folder), name):
            real = os.path.realpath(path)
            if not real.startswith(os.path.join(os.path.realpath(folder), "")):  # noqa: PTH118
                raise ValueError(f"file {name!r} is outside of {folder}")
        if stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
            return path
    except OSError:  # not there, a name that is too long, a loop of links
        pass
    raise FileNotFoundError(f"file {name!r} is not in {folder}, or is no regular file")


def _may_lead_out(folder: str, name: str) -> bool:
    """Whether a name has to be resolved, for how it is written or for a link on its way; that takes 10 times as long as this."""
    parts, at = name.split("/"), folder
    if os.name != "posix" or not {"", ".", ".."}.isdisjoint(parts):  # an absolute name has an empty part
        return True
    return any(os.path.islink(at := f"{at}/{part}") for part in parts)  # noqa: PTH114


def read_json(text: str | bytes) -> Any:
    """What a JSON text holds; ValueError for a text that is none, or is nested too deeply to be one of ours."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def from_json(kind: type[T], row: object) -> T:
    """A dataclass made of a JSON object; keys of newer versions are ignored. ValueError for a value that has not the type of its field."""
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got {type(row).__name__}")
    values: dict[str, Any] = {}
    for key, required, listed, types, fits, words in _fields(kind):  # type: ignore[arg-type]
        if required or key in row:
            value: Any = row.get(key)
            if type(value) not in types or (fits and value and not fits(value)):
                raise ValueError(f"{key} must be {words}, got {shortened(repr(value))}")
            values[key] = tuple(value) if listed else value
    return kind(**values)


class _Check(NamedTuple):
    """Types that a JSON value may have, what it must fit besides, and both in words."""

    types: frozenset[type]
    fits: Callable[[Any], bool] | None
    words: str

    def __call__(self, value: Any) -> bool:
        return type(value) in self.types and (self.fits is None or self.fits(value))


@cache
def _fields(kind: type) -> list[tuple[str, bool, bool, frozenset[type], Callable[[Any], bool] | None, str]]:
    """Of every field its name, whether it has no default, whether it is a tuple, and what fits it."""
    hints = get_type_hints(kind)
    required = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    return [(key, key in required, get_origin(hint) is tuple, *_check(hint)) for key, hint in hints.items()]


def _check(hint: Any) -> _Check:
    origin, parts = get_origin(hint), [_check(part) for part in get_args(hint) if part is not ...]
    if origin is UnionType:
        fits = (lambda value: any(part(value) for part in parts)) if any(part.fits for part in parts) else None
        return _Check(frozenset().union(*(part.types for part in parts)), fits, " or ".join(part.words for part in parts))
    if origin in (tuple, list):
        return _Check(frozenset({list}), lambda value: all(parts[0](v) for v in value), f"a list, each {parts[0].words}")
    if origin is dict:
        return _Check(frozenset({dict}), lambda value: all(parts[1](v) for v in value.values()), f"an object, each value {parts[1].words}")
    return _Check(frozenset({float, int} if hint is float else {hint}), None, _IN_WORDS.get(hint, "left out"))


def printable(text: str) -> str:
    """The text without escape sequences and control characters other than line ends and tabs, for a terminal or a table.

    >>> printable("a \\x1b[31mred\\x1b[0m\\a [bold]hat[/bold]")
    'a red [bold]hat[/bold]'
    """
    return _ESCAPES.sub("", text).translate(_CONTROLS)


def shortened(text: str) -> str:
    """A message without the middles of quoted values of 200 characters and more, and without its own if it is still longer than 1,000."""
    text = re.sub(r"(?<!\w)(?:'[^']{200,}'|\"[^\"]{200,}\")", lambda found: f"{found[0][:100]}...{found[0][-20:]}", text)
    return text if len(text) <= 1000 else f"{text[:600]} ... {text[-200:]}"
