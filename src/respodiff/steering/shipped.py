"""Finds the modules that were trained for the embedded model, by the names of their concepts and attributes."""

from __future__ import annotations

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


def check_model(names: list[Path], model: str) -> None:
    """ValueError for the name of shipped modules beside another model than the embedded one."""
    for name in names if model != "embedded" else ():
        if (found := files_of(name)) != [name]:
            lacking, option = ", ".join(file.name for file in found), "attribute" if len(found) > 1 else "concept"
            raise ValueError(
                f"module {str(name)!r} is shipped for the embedded model, and --model is {model!r}, which needs {lacking} of its own: "
                f"respodiff train --model {model} --{option} {name} --out PATH"
            )
