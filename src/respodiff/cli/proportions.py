"""Which shares ``respodiff generate`` draws: from --shares, from a file of concepts, and what --attribute asks to be even."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from respodiff.concepts.concept import Attribute, attribute, builtin, load_concepts
from respodiff.concepts.intersections import alternatives, is_product, parts
from respodiff.generation.cells import absent, named, whole_shares

Shares = dict[str, dict[str, float]]


def loaded(modules: Sequence[Any]) -> dict[str, list[str]]:
    """Attribute -> concepts that modules are loaded of."""
    out: dict[str, list[str]] = {}
    for m in modules:
        if m.header.kind == "fairness":
            out.setdefault(m.header.attribute or "concept", []).append(m.name)
    return out


def drawable(names: dict[str, list[str]]) -> dict[str, list[str]]:
    """The same, with the parts of loaded products."""
    out = dict(names)
    for name, cells in names.items():
        out |= alternatives(name, cells) if is_product(name, cells) else {}
    return out


def default_shares(file: Path | None, modules: Sequence[Any]) -> Shares:
    """Attribute -> concept -> share from a file of concepts, for the attributes that modules are loaded of."""
    out: Shares = {}
    groups = drawable(loaded(modules))
    for name, entry in (load_concepts(file) if file else {}).items():
        if name in groups and isinstance(entry, Attribute) and entry.shares:
            out[name] = dict(zip(entry.names, entry.shares, strict=True))
    return {a: s for a, s in out.items() if not any(a in parts(other) and other != a for other in out)}


def check_default_shares(shares: Shares, modules: Sequence[Any]) -> Shares:
    """The shares without concepts of share 0 that are not loaded; ValueError where modules and shares are not of the same concepts."""
    for name, wanted in shares.items():
        there = drawable(loaded(modules)).get(name, [])
        if lacking := [c for c, s in wanted.items() if s and c not in there]:
            raise ValueError(f"--concepts: [{name}] has a share for {lacking[0]!r}, which no --module has; load it, or give --shares")
        if extra := [c for c in there if c not in wanted]:
            raise ValueError(f"--concepts: [{name}] has no share for {extra[0]!r}, which a --module has; add it, or give --shares")
    return {a: {c: s for c, s in wanted.items() if s} for a, wanted in shares.items()}


def wanted_shares(text: str, file: Path | None, modules: Sequence[Any]) -> Shares | None:
    """Target shares of a run: those of --shares, then those of --concepts; None for equal ones."""
    given = parse_shares(text, modules) or {}
    found = default_shares(file, modules)
    if file and modules and not found:
        warnings.warn(
            f"--concepts {str(file)!r} has no shares for the attributes of the modules; concepts are drawn equally often", stacklevel=2
        )
    defaults = {a: s for a, s in found.items() if a not in given and not any(a in parts(g) or g in parts(a) for g in given)}
    return {**check_default_shares(defaults, modules), **given} or None


def parse_shares(text: str, modules: Sequence[Any]) -> Shares | None:
    """``woman=0.5,man=0.5`` grouped by attribute; ValueError for a name of no loaded module or a number that is none."""
    if not text:
        return None
    out: Shares = {}
    names = loaded(modules)
    for pair in text.split(","):
        name, _, value = (part.strip() for part in pair.partition("="))
        group = named(names, name)
        if group is None:
            known = ", ".join(c for concepts in names.values() for c in concepts)
            raise ValueError(f"--shares names {name!r}, which no --module has; loaded: {known or 'none'}")
        if name in out.get(group, {}):
            raise ValueError(f"--shares names {name!r} twice; give each concept one share")
        try:
            out.setdefault(group, {})[name] = float(value)
        except ValueError as error:
            raise ValueError(f"--shares {pair!r}: {value!r} is not a number; write name=0.5,name=0.5") from error
    if both := [(a, b) for a in out for b in out if a != b and a in parts(b)]:
        raise ValueError(f"--shares names concepts of {both[0][0]!r} and cells of {both[0][1]!r}; give shares of one of them")
    return out


def even(wanted: Sequence[str], file: Path | None, modules: Sequence[Any], shares: Shares | None) -> Shares | None:
    """The shares, checked against --attribute: every concept (of a product every cell) must be there to be drawn.

    Two attributes are drawn in even cells as they are. For more, or where a file has shares of the cells, those of the cells are added.
    """
    library = {**builtin(), **(load_concepts(file) if file else {})}
    out, names = dict(shares or {}), loaded(modules)
    for chosen in (attribute(name, library) for name in wanted):
        if lacking := absent(names, chosen.name, chosen.names):
            raise ValueError(
                f"--attribute is {chosen.name!r}, but no --module has {lacking[0]!r}; "
                f"train it with: respodiff train --concept '{lacking[0]}' --out {lacking[0].replace('*', '-')}.safetensors"
            )
        own = bool(chosen.shares) and chosen.name in library
        if len(parts(chosen.name)) > 1 and (own or len(parts(chosen.name)) > 2) and not any(a in parts(chosen.name) for a in out):
            out.setdefault(chosen.name, whole_shares(chosen.names, chosen.shares))
    return out or None


def shares_by_group(file: Path | None, modules: Sequence[Any], asked: Sequence[Any]) -> Any:
    """Target shares of groups of prompts from --shares-csv; None without one."""
    if file is None:
        return None
    from respodiff.data.target_proportions import read_group_shares

    return read_group_shares(file, loaded(modules), [getattr(p, "group", p) for p in asked])
