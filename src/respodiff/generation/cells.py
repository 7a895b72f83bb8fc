"""Even cells of a product of attributes, whichever way they are drawn: one module of the cell, or one module of every part.

Both ways draw the parts of a picture (a gender and a tone), so that a picture of one run is asked for the same cell as that of the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from respodiff.concepts.intersections import JOIN, alternatives, asked, cells, is_product, parts
from respodiff.data.target_proportions import check_shares

Names = Mapping[str, Sequence[str]]
Item = TypeVar("Item")


def axes(loaded: Names, shares: Mapping[str, Mapping[str, float]] | None) -> dict[str, list[str]]:
    """What a policy draws, attribute -> concepts, for what is loaded.

    A product of which all cells are loaded is drawn by its parts, as modules of the parts are, unless shares of its cells are given.
    Attributes of which a product's shares are given are drawn as its cells.

    Raises:
        ValueError: an attribute that two kinds of modules would draw, or shares of cells whose parts are not loaded.
    """
    out: dict[str, list[str]] = {}
    for attribute, names in loaded.items():
        wanted = {attribute: list(names)}
        if is_product(attribute, names) and attribute not in (shares or {}):
            by_part = alternatives(attribute, names)
            wanted = by_part if set(cells(list(by_part.values()))) == set(names) else wanted
        if clash := [part for name in wanted for part in parts(name) if part in {p for a in out for p in parts(a)}]:
            raise ValueError(
                f"modules of {attribute!r} and others draw {clash[0]!r} both; give modules of the product, or of its parts, not of both"
            )
        out |= wanted
    for attribute in shares or {}:
        if attribute not in out and all(part in out for part in parts(attribute)):
            out[attribute] = cells([out.pop(part) for part in parts(attribute)])
    return out


def taken(groups: Mapping[str, Mapping[str, Item]], concepts: Mapping[str, str]) -> list[Item]:
    """What a picture gets of all that is loaded (attribute -> name -> item), for the concepts that were drawn for it."""
    return [group[name] for attribute, group in groups.items() if (name := asked(concepts, attribute)) is not None]


def named(loaded: Names, name: str) -> str | None:
    """The attribute that a concept belongs to, of what is loaded: of a cell the product, of a part of a loaded product the part's."""
    by_part = {
        a: v for attribute, names in loaded.items() if is_product(attribute, names) for a, v in alternatives(attribute, names).items()
    }
    for attribute, names in (*loaded.items(), *by_part.items()):
        if name in names:
            return attribute
    owners = {part: attribute for attribute, names in loaded.items() for part in names}
    found = [owners.get(part) for part in parts(name)]
    return None if None in found or len(set(found)) < max(2, len(found)) else JOIN.join(str(owner) for owner in found)


def absent(loaded: Names, attribute: str, names: Sequence[str]) -> list[str]:
    """The concepts (of a product cells) of an attribute that cannot be drawn with what is loaded; of parts, the parts themselves."""
    if attribute in loaded or not is_product(attribute, names):
        return [name for name in names if name not in loaded.get(attribute, ())]
    wanted = alternatives(attribute, names)
    return [name for part, concepts in wanted.items() for name in concepts if name not in loaded.get(part, ())]


def whole_shares(names: Sequence[str], shares: Sequence[float]) -> dict[str, float]:
    """Shares of cells by name, even where none are given."""
    return dict(zip(names, check_shares(names, dict(zip(names, shares, strict=True)) if shares else None), strict=True))
