"""Finds the modules that were trained for the embedded model, by the names of their concepts and attributes."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from respodiff.concepts.concept import Attribute, builtin

FOLDER = Path(str(files("respodiff"))) / "embedded" / "modules"


def shipped() -> dict[str, Path]:
    """Concept -> file of its module."""
    return {file.stem: file for file in sorted(FOLDER.glob("*.safetensors"))}


def files_of(name: str | Path) -> list[Path]:
    """The files that a path or a name stands for: one of a concept ("woman"), those of all alternatives of an attribute ("gender").

    What exists under ``name`` as a path wins; so does a name of nothing that is shipped.
    """
    known, entry = shipped(), builtin().get(str(name))
    names = entry.names if isinstance(entry, Attribute) else (str(name),)
    return [Path(name)] if Path(name).exists() or not known.keys() >= set(names) else [known[n] for n in names]


def with_factor(name: str | Path) -> tuple[Path, float]:
    """A path or name, and the factor behind its last colon; a path that exists has none. ValueError for a factor beyond -10 to 10.

    >>> with_factor("gender:0.6"), with_factor("gender")
    ((PosixPath('gender'), 0.6), (PosixPath('gender'), 1.0))
    """
    start, _, end = str(name).rpartition(":")
    if start and not Path(name).exists() and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)", end):
        if not abs(float(end)) <= 10:
            raise ValueError(f"module {str(name)!r} has the factor {end}; allowed: -10 to 10, 1 is as trained")
        return Path(start), float(end)
    return Path(name), 1.0


def check_model(names: list[Path], model: str) -> None:
    """ValueError for the name of shipped modules beside another model than the embedded one."""
    for name in (with_factor(n)[0] for n in (names if model != "embedded" else ())):
        if (found := files_of(name)) != [name]:
            lacking, option = ", ".join(file.name for file in found), "attribute" if len(found) > 1 else "concept"
            raise ValueError(
                f"module {str(name)!r} is shipped for the embedded model, and --model is {model!r}, which needs {lacking} of its own: "
                f"respodiff train --model {model} --{option} {name} --out PATH"
            )
