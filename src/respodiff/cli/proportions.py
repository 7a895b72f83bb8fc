"""Which shares ``respodiff generate`` draws: from --target-proportions, from a file of concepts, and what --attribute asks to be even."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from respodiff.concepts.concept import Attribute, attribute, builtin, load_concepts
from respodiff.concepts.intersections import alternatives, factors, is_intersection
from respodiff.data.target_proportions import check_proportions
from respodiff.generation.policies import attribute_of_concept, missing_concepts

Proportions = dict[str, dict[str, float]]


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
        out |= alternatives(name, cells) if is_intersection(name, cells) else {}
    return out


def default_proportions(file: Path | None, modules: Sequence[Any]) -> Proportions:
    """Attribute -> concept -> share from a file of concepts, for the attributes that modules are loaded of."""
    out: Proportions = {}
    groups = drawable(loaded(modules))
    for name, entry in (load_concepts(file) if file else {}).items():
        if name in groups and isinstance(entry, Attribute) and entry.proportions:
            out[name] = dict(zip(entry.names, entry.proportions, strict=True))
    return {a: s for a, s in out.items() if not any(a in factors(other) and other != a for other in out)}


def check_default_proportions(proportions: Proportions, modules: Sequence[Any]) -> Proportions:
    """The shares without concepts of share 0 that are not loaded; ValueError where modules and shares are not of the same concepts."""
    for name, wanted in proportions.items():
        there = drawable(loaded(modules)).get(name, [])
        if lacking := [c for c, s in wanted.items() if s and c not in there]:
            raise ValueError(
                f"--concepts: [{name}] has a share for {lacking[0]!r}, which no --module has; load it, or give --target-proportions"
            )
        if extra := [c for c in there if c not in wanted]:
            raise ValueError(
                f"--concepts: [{name}] has no share for {extra[0]!r}, which a --module has; add it, or give --target-proportions"
            )
    return {a: {c: s for c, s in wanted.items() if s} for a, wanted in proportions.items()}


def wanted_proportions(text: str, file: Path | None, modules: Sequence[Any]) -> Proportions | None:
    """Target proportions of a run: those of --target-proportions, then those of --concepts; None for equal ones."""
    given = parse_proportions(text, modules) or {}
    found = default_proportions(file, modules)
    if file and modules and not found:
        warnings.warn(
            f"--concepts {str(file)!r} has no shares for the attributes of the modules; concepts are drawn equally often", stacklevel=2
        )
    defaults = {a: s for a, s in found.items() if a not in given and not any(a in factors(g) or g in factors(a) for g in given)}
    return {**check_default_proportions(defaults, modules), **given} or None


def parse_proportions(text: str, modules: Sequence[Any]) -> Proportions | None:
    """``woman=0.5,man=0.5`` grouped by attribute; ValueError for a name of no loaded module or a number that is none."""
    if not text:
        return None
    out: Proportions = {}
    names = loaded(modules)
    for pair in text.split(","):
        name, _, value = (part.strip() for part in pair.partition("="))
        group = attribute_of_concept(names, name)
        if group is None:
            known = ", ".join(c for concepts in names.values() for c in concepts)
            raise ValueError(f"--target-proportions names {name!r}, which no --module has; loaded: {known or 'none'}")
        if name in out.get(group, {}):
            raise ValueError(f"--target-proportions names {name!r} twice; give each concept one share")
        try:
            out.setdefault(group, {})[name] = float(value)
        except ValueError as error:
            raise ValueError(f"--target-proportions {pair!r}: {value!r} is not a number; write name=0.5,name=0.5") from error
    if both := [(a, b) for a in out for b in out if a != b and a in factors(b)]:
        raise ValueError(f"--target-proportions names concepts of {both[0][0]!r} and cells of {both[0][1]!r}; give shares of one of them")
    return out


def even(wanted: Sequence[str], file: Path | None, modules: Sequence[Any], proportions: Proportions | None) -> Proportions | None:
    """The shares, checked against --attribute: every concept (of a product every cell) must be there to be drawn.

    Two attributes are drawn in even cells as they are. For more, or where a file has proportions of the cells, those of the cells are added.
    """
    library = {**builtin(), **(load_concepts(file) if file else {})}
    out, names = dict(proportions or {}), loaded(modules)
    for chosen in (attribute(name, library) for name in wanted):
        if lacking := missing_concepts(names, chosen.name, chosen.names):
            raise ValueError(
                f"--attribute is {chosen.name!r}, but no --module has {lacking[0]!r}; "
                f"train it with: respodiff train --concept '{lacking[0]}' --out {lacking[0].replace('*', '-')}.safetensors"
            )
        own = bool(chosen.proportions) and chosen.name in library
        if len(factors(chosen.name)) > 1 and (own or len(factors(chosen.name)) > 2) and not any(a in factors(chosen.name) for a in out):
            wanted_shares = dict(zip(chosen.names, chosen.proportions, strict=True)) if chosen.proportions else None
            out.setdefault(chosen.name, dict(zip(chosen.names, check_proportions(chosen.names, wanted_shares), strict=True)))
    return out or None


def proportions_by_group(file: Path | None, modules: Sequence[Any], asked: Sequence[Any]) -> Any:
    """Target proportions of groups of prompts from --group-proportions; None without one."""
    if file is None:
        return None
    from respodiff.data.target_proportions import read_group_proportions

    return read_group_proportions(file, loaded(modules), [getattr(p, "group", p) for p in asked])
