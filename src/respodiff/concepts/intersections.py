"""Names of intersections of attributes: ``gender*tone``, its factors ``gender`` and ``tone``, its subgroups ``woman*dark``. Pure text."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

JOIN = "*"


def factors(name: str) -> tuple[str, ...]:
    """The names that an intersection or a subgroup consists of; a plain name is its own only factor.

    >>> factors("woman*dark"), factors("woman")
    (('woman', 'dark'), ('woman',))
    """
    return tuple(part.strip() for part in name.split(JOIN))


def subgroups(names: Sequence[Sequence[str]]) -> list[str]:
    """The names of all subgroups, the first attribute slowest: ``woman*light``, ``woman*dark``, ``man*light``, ..."""
    return [JOIN.join(row) for row in itertools.product(*names)]


def split(concepts: Mapping[str, str]) -> dict[str, str]:
    """Attribute -> concept with every intersection split into its factors. A subgroup of another length stays.

    >>> split({"gender*tone": "woman*dark", "hat": "bare"})
    {'gender': 'woman', 'tone': 'dark', 'hat': 'bare'}
    """
    out: dict[str, str] = {}
    for attribute, name in concepts.items():
        out |= dict(zip(factors(attribute), factors(name), strict=True)) if is_intersection(attribute, [name]) else {attribute: name}
    return out


def asked(concepts: Mapping[str, str], attribute: str) -> str | None:
    """The concept of an attribute among those asked for, of an intersection the subgroup; None where a factor was not asked for."""
    if attribute in concepts:
        return concepts[attribute]
    found = [concepts.get(factor) for factor in factors(attribute)]
    return None if None in found else JOIN.join(str(name) for name in found)


def is_intersection(attribute: str, names: Sequence[str]) -> bool:
    """Whether an attribute is an intersection and all of these are subgroups of it, by their names."""
    width = len(factors(attribute))
    return width > 1 and all(len(factors(name)) == width for name in names)


def alternatives(attribute: str, names: Sequence[str]) -> dict[str, list[str]]:
    """Factor -> its concepts among the subgroups of an intersection, in order of first occurrence."""
    columns = zip(*(factors(name) for name in names), strict=True)
    return {factor: list(dict.fromkeys(column)) for factor, column in zip(factors(attribute), columns, strict=True)}


def by_name(proportions: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Attribute -> concept -> share, with intersections and their subgroups in the alphabetical order of the factors, as they are measured.

    >>> by_name({"tone*gender": {"dark*woman": 0.5, "light*man": 0.5}})
    {'gender*tone': {'woman*dark': 0.5, 'man*light': 0.5}}
    """
    out: dict[str, dict[str, float]] = {}
    for attribute, values in proportions.items():
        names = factors(attribute) if is_intersection(attribute, list(values)) else (attribute,)
        order = sorted(range(len(names)), key=names.__getitem__)
        out[JOIN.join(names[i] for i in order)] = (
            {JOIN.join(factors(name)[i] for i in order): share for name, share in values.items()} if len(names) > 1 else dict(values)
        )
    return out


def marginals(proportions: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Attribute -> concept -> share, with the marginal shares of every intersection for attributes without shares of their own.

    >>> marginals({"a*b": {"x*u": 0.25, "x*v": 0.5, "y*v": 0.25}})["a"]
    {'x': 0.75, 'y': 0.25}
    """
    out = {attribute: dict(values) for attribute, values in proportions.items()}
    for attribute, values in proportions.items():
        for i, factor in enumerate(factors(attribute) if is_intersection(attribute, list(values)) else ()):
            sums = dict[str, float]()
            for name, share in values.items():
                sums[factors(name)[i]] = sums.get(factors(name)[i], 0.0) + share
            out.setdefault(factor, sums)
    return out
