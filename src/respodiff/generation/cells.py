"""Even subgroups of a product of attributes, whichever way they are drawn: one module of the cell, or one module of every part.

Both ways draw the parts of an image (a gender and a tone), so that an image of one run is asked for the same cell as that of the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from respodiff.concepts.intersections import JOIN, alternatives, asked, factors, is_intersection, subgroups
from respodiff.data.target_proportions import check_proportions

Names = Mapping[str, Sequence[str]]
Item = TypeVar("Item")


def axes(loaded: Names, proportions: Mapping[str, Mapping[str, float]] | None) -> dict[str, list[str]]:
    """What a policy draws, attribute -> concepts, for what is loaded.

    A product of which all cells are loaded is drawn by its parts, as modules of the parts are, unless shares of its cells are given.
    Attributes of which a product's shares are given are drawn as its cells.

    Raises:
        ValueError: an attribute that two kinds of modules would draw, or proportions of subgroups whose parts are not loaded.
    """
    out: dict[str, list[str]] = {}
    for attribute, names in loaded.items():
        wanted = {attribute: list(names)}
        if is_intersection(attribute, names) and attribute not in (proportions or {}):
            by_part = alternatives(attribute, names)
            wanted = by_part if set(subgroups(list(by_part.values()))) == set(names) else wanted
        if clash := [part for name in wanted for part in factors(name) if part in {p for a in out for p in factors(a)}]:
            raise ValueError(
                f"modules of {attribute!r} and others draw {clash[0]!r} both; give modules of the product, or of its parts, not of both"
            )
        out |= wanted
    for attribute in proportions or {}:
        if attribute not in out and all(part in out for part in factors(attribute)):
            out[attribute] = subgroups([out.pop(part) for part in factors(attribute)])
    return out


def selected(groups: Mapping[str, Mapping[str, Item]], concepts: Mapping[str, str]) -> list[Item]:
    """What an image gets of all that is loaded (attribute -> name -> item), for the concepts that were drawn for it."""
    return [group[name] for attribute, group in groups.items() if (name := asked(concepts, attribute)) is not None]


def named(loaded: Names, name: str) -> str | None:
    """The attribute that a concept belongs to, of what is loaded: of a cell the product, of a part of a loaded product the part's."""
    by_part = {
        a: v for attribute, names in loaded.items() if is_intersection(attribute, names) for a, v in alternatives(attribute, names).items()
    }
    for attribute, names in (*loaded.items(), *by_part.items()):
        if name in names:
            return attribute
    owners = {part: attribute for attribute, names in loaded.items() for part in names}
    found = [owners.get(part) for part in factors(name)]
    return None if None in found or len(set(found)) < max(2, len(found)) else JOIN.join(str(owner) for owner in found)


def absent(loaded: Names, attribute: str, names: Sequence[str]) -> list[str]:
    """The concepts (of a product cells) of an attribute that cannot be drawn with what is loaded; of parts, the parts themselves."""
    if attribute in loaded or not is_intersection(attribute, names):
        return [name for name in names if name not in loaded.get(attribute, ())]
    wanted = alternatives(attribute, names)
    return [name for part, concepts in wanted.items() for name in concepts if name not in loaded.get(part, ())]


def complete_proportions(names: Sequence[str], proportions: Sequence[float]) -> dict[str, float]:
    """Shares of subgroups by name, even where none are given."""
    return dict(zip(names, check_proportions(names, dict(zip(names, proportions, strict=True)) if proportions else None), strict=True))
