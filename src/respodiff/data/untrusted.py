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
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

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
        real = os.path.realpath(path)
        if not real.startswith(os.path.join(os.path.realpath(folder), "")):  # noqa: PTH118  (10 times as fast as Path for each of many images)
            raise ValueError(f"file {name!r} is outside of {folder}")
        if stat.S_ISREG(os.stat(real).st_mode):  # noqa: PTH116
            return path
    except OSError:  # not there, a name that is too long, a loop of links
        pass
    raise FileNotFoundError(f"file {name!r} is not in {folder}, or is no regular file")


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
    for key, required, listed, fits, words in _fields(kind):  # type: ignore[arg-type]
        if required or key in row:
            value: Any = row.get(key)
            if not fits(value):
                raise ValueError(f"{key} must be {words}, got {shortened(repr(value))}")
            values[key] = tuple(value) if listed else value
    return kind(**values)


@cache
def _fields(kind: type) -> list[tuple[str, bool, bool, Callable[[Any], bool], str]]:
    """Of every field its name, whether it has no default, whether it is a tuple, and what fits it, also in words."""
    hints = get_type_hints(kind)
    required = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    return [(key, key in required, get_origin(hint) is tuple, *_check(hint)) for key, hint in hints.items()]


def _check(hint: Any) -> tuple[Callable[[Any], bool], str]:
    origin, parts = get_origin(hint), [_check(part) for part in get_args(hint) if part is not ...]
    if origin is UnionType:
        return lambda value: any(fits(value) for fits, _ in parts), " or ".join(words for _, words in parts)
    if origin in (tuple, list):
        (fits, words), *_ = parts
        return lambda value: isinstance(value, list) and all(map(fits, value)), f"a list, each {words}"
    if origin is dict:
        fits, words = parts[1]
        return lambda value: isinstance(value, dict) and all(map(fits, value.values())), f"an object, each value {words}"
    if hint is float:
        return lambda value: isinstance(value, int | float) and not isinstance(value, bool), _IN_WORDS[float]
    return lambda value: type(value) is hint, _IN_WORDS.get(hint, "left out")


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
