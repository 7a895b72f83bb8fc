"""Finds methods, judges, suites and pipeline classes that other packages add, by the entry points of their installation.

Names are read once a process, when they are first listed or asked for. A package is imported when one of its names is used, not before.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

KINDS = {"methods": "method", "judges": "judge", "suites": "suite", "pipelines": "pipeline class"}
"""Kind of entry points, of the group ``respodiff.KIND`` -> what one is called."""


@cache
def names(kind: str, builtin: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Names that other packages add to those that are built in. A built-in name wins, with a warning."""
    for name in sorted(_entries(kind).keys() & set(builtin)):
        warnings.warn(f"{KINDS[kind]} {name!r} of {_packages(kind, name)} is ignored: respodiff has one of this name", stacklevel=3)
    return tuple(sorted(_entries(kind).keys() - set(builtin)))


def load(kind: str, name: str, fits: Callable[[Any], bool], needed: str) -> Any:
    """What another package adds under a name. ValueError names the package if it cannot be imported, or adds anything but what is needed."""
    what = f"{KINDS[kind]} {name!r} of {_packages(kind, name)}"
    first, *others = _entries(kind)[name]
    if others:
        raise ValueError(f"{what} is added by each of them; uninstall all but one")
    try:
        found = first.load()
    except Exception as error:  # whatever the package does
        raise ValueError(f"{what} cannot be imported ({type(error).__name__}: {error}); update or uninstall it") from error
    if not fits(found):
        raise ValueError(f"{what} is {found!r}; needed: {needed}; update or uninstall it")
    return found


@cache
def _entries(kind: str) -> dict[str, list[EntryPoint]]:
    """Name -> its entry points: one, or more if several packages add the name."""
    from importlib.metadata import entry_points  # ``respodiff --help`` does not need it

    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=f"respodiff.{kind}"):
        found.setdefault(entry.name, []).append(entry)
    return found


def _packages(kind: str, name: str) -> str:
    """The packages that add a name, with their versions."""
    found = [f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value for entry in _entries(kind)[name]]
    return f"package{'s' * (len(found) > 1)} {' and '.join(found)}"
