"""Finds module files by name: paths, the modules that were trained for the embedded model by their concepts, and ids of the hub."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from respodiff.concepts.concept import Attribute, builtin
from respodiff.steering.hub import SUFFIX, HubId, fetch, tell_if_cached

FOLDER = Path(str(files("respodiff"))) / "embedded" / "modules"


def shipped() -> dict[str, Path]:
    """Concept -> file of its module."""
    return {file.stem: file for file in sorted(FOLDER.glob("*.safetensors"))}


def shipped_attributes() -> dict[str, Attribute]:
    """The attributes, by name, all of whose alternatives have a shipped module."""
    return {name: entry for name, entry in builtin().items() if isinstance(entry, Attribute) and shipped().keys() >= set(entry.names)}


def files_of(name: str | Path) -> list[Path]:
    """The files that a name stands for: a file, those of a folder, of a concept ("woman"), of an attribute ("gender"), or of a hub id.

    What exists under ``name`` as a path wins. A name of nothing that is known stands for itself.

    Raises:
        ValueError: a folder holds no module file, or the hub does not give a repository (`respodiff.steering.hub.fetch`).
    """
    path = Path(name)
    if path.exists():
        found = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"{str(name)!r} is a folder without a module file (*{SUFFIX}); give a file, or the folder of some")
        tell_if_cached(name)
        return found
    return _shipped_as(name) or (fetch(name) if HubId.of(name) else [path])


def one_file(name: str | Path) -> Path:
    """The one file that a name stands for, as `files_of`; ValueError if there are several."""
    first, *others = files_of(name)
    if others:
        found = ", ".join(file.stem for file in (first, *others))
        raise ValueError(
            f"path is {str(name)!r}, which stands for {1 + len(others)} modules ({found}); name one (of a hub id: OWNER/NAME:FILE), "
            "or read them with load_all"
        )
    return first


def _shipped_as(name: str | Path) -> list[Path]:
    """The files that are shipped under a name; none for any other."""
    known, entry = shipped(), builtin().get(str(name))
    names = entry.names if isinstance(entry, Attribute) else (str(name),)
    return [known[n] for n in names] if known.keys() >= set(names) else []


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
        if not name.exists() and (found := _shipped_as(name)):
            lacking, option = ", ".join(file.name for file in found), "attribute" if len(found) > 1 else "concept"
            raise ValueError(
                f"module {str(name)!r} is shipped for the embedded model, and --model is {model!r}, which needs {lacking} of its own: "
                f"respodiff train --model {model} --{option} {name} --out PATH"
            )
