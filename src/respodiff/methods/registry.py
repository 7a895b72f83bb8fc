"""Provides all methods by name, those of other packages too, and reads the adapter file of any of them. Each is imported when it is first asked for."""

from __future__ import annotations

import warnings
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from respodiff import _plugins
from respodiff.steering.shipped import files_of, one_file, with_factor

if TYPE_CHECKING:
    from respodiff.methods.base import Method
    from respodiff.steering.adapter import Adapter

NAMES: dict[str, str] = {
    **dict.fromkeys(("plain", "prompt", "prompt-switch", "negative"), "prompting"),
    **dict.fromkeys(("sld-weak", "sld-medium", "sld-strong", "sld-max"), "sld"),
    **dict.fromkeys(("esd-x", "esd-u"), "esd"),
    **{"sdisc": "sdisc", "slider": "concept_slider", "fdf": "fdf", "bact": "bact", "uce": "uce"},
    **dict.fromkeys(("respodiff", "respodiff-paper"), "respodiff"),
}
"""Name of every built-in method -> the module of this package that holds it."""

BASELINE = "plain"
"""Name of the unsteered model among the methods."""


def names() -> tuple[str, ...]:
    """Names of all methods: the built-in ones, then those of other packages."""
    return (*NAMES, *_plugins.names("methods", tuple(NAMES)))


def get_method(name: str) -> Method:
    """A method by name; ValueError lists them, or says why that of another package cannot be used."""
    if name not in names():
        raise ValueError(f"method is {name!r}; allowed: {', '.join(names())}")
    if name in NAMES:
        found: Method = import_module(f"respodiff.methods.{NAMES[name]}").METHODS[name]
        return found
    from respodiff.methods.base import Method

    found = _plugins.load("methods", name, lambda m: isinstance(m, Method) and m.name == name, f"a Method of the name {name!r}")
    return found


def methods() -> list[Method]:
    """All methods. One of another package that cannot be used is left out with a warning."""
    found = []
    for name in names():
        try:
            found.append(get_method(name))
        except ValueError as error:
            warnings.warn(str(error), stacklevel=2)
    return found


def methods_for(kind: str) -> tuple[str, ...]:
    """Names of the methods that take concepts of a kind, ``fairness`` or ``safety``."""
    return tuple(method.name for method in methods() if kind in method.kinds)


def load_all(name: str | Path) -> list[Adapter]:
    """All adapters of a file, a folder, a name of what is shipped ("gender" are all its alternatives) or a hub id.

    A path that exists wins over a name. "gender:0.6" is at 0.6 of its scale. Raises as `load`.
    """
    path, factor = with_factor(name)
    found = [load(file) for file in files_of(path)]
    return found if factor == 1 else [adapter.scale(factor) for adapter in found]


def load(path: str | Path) -> Adapter:
    """Reads the adapter file of any method: a path, a shipped module by its concept, or a hub id ``OWNER/NAME[@REVISION][:FILE]``.

    FileNotFoundError or ValueError names the file and what is wrong with it, also if there are several.
    Settings that the method has not are refused: an image would not be what they say. A module's settings are of its training alone.
    """
    from respodiff.steering.module import ConceptModule
    from respodiff.steering.serialization import read_header

    path = one_file(path)
    header = read_header(path)
    if header.form:  # a module, whatever method trained it
        return ConceptModule.load(path)
    if header.method not in names():
        raise ValueError(
            f"adapter file {str(path)!r} is of method {header.method!r}; this version knows {', '.join(names())}: update respodiff, "
            "or install the package that adds it"
        )
    method = get_method(header.method)
    found, known = method.adapter.load(path), [f.name for f in fields(method.config)]
    if found.converts and [*found.settings] == ["converted"]:
        return found
    if unknown := [name for name in found.settings if name not in known]:
        raise ValueError(
            f"adapter file {str(path)!r} has setting {unknown[0]!r}, which method {method.name!r} of this version has not; "
            f"allowed: {', '.join(known) or 'none'}; make it anew"
        )
    try:
        if lacking := [name for name in known if name not in found.settings]:
            raise ValueError(f"{lacking[0]} is missing")
        method.config(**{k: tuple(v) if isinstance(v, list) else v for k, v in found.settings.items()})
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"adapter file {str(path)!r} has settings that method {method.name!r} cannot take: {error}; make it anew"
        ) from error
    return found
