"""Products of attributes as names and texts: ``gender*tone``, its cells ``woman*dark``, a cell's prompt ("a woman with dark skin").

The parts of a product stand in alphabetical order of their attributes, so that a product has one name. Everything here is pure text.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

JOIN = "*"


def factors(name: str) -> tuple[str, ...]:
    """The names that a product or a cell is made of; a plain name is its own only part.

    >>> factors("woman*dark"), factors("woman")
    (('woman', 'dark'), ('woman',))
    """
    return tuple(part.strip() for part in name.split(JOIN))


def subgroups(names: Sequence[Sequence[str]]) -> list[str]:
    """The names of all cells, the first attribute slowest.

    >>> subgroups([["woman", "man"], ["light", "dark"]])
    ['woman*light', 'woman*dark', 'man*light', 'man*dark']
    """
    return [JOIN.join(cell) for cell in itertools.product(*names)]


def split(concepts: Mapping[str, str]) -> dict[str, str]:
    """Attribute -> concept with every product taken apart; what only looks like one (a subgroup of other length) stays.

    >>> split({"gender*tone": "woman*dark", "hat": "bare"})
    {'gender': 'woman', 'tone': 'dark', 'hat': 'bare'}
    """
    out: dict[str, str] = {}
    for attribute, name in concepts.items():
        out |= dict(zip(factors(attribute), factors(name), strict=True)) if is_intersection(attribute, [name]) else {attribute: name}
    return out


def asked(concepts: Mapping[str, str], attribute: str) -> str | None:
    """The concept of an attribute among those asked for, of a product the cell; None where a part of it was not asked for.

    >>> asked({"gender": "woman", "tone": "dark"}, "gender*tone"), asked({"gender": "woman"}, "gender*tone")
    ('woman*dark', None)
    """
    if attribute in concepts:
        return concepts[attribute]
    found = [concepts.get(part) for part in factors(attribute)]
    return None if None in found else JOIN.join(str(part) for part in found)


def is_intersection(attribute: str, names: Sequence[str]) -> bool:
    """Whether an attribute is a product and all of these are subgroups of it, by their names."""
    width = len(factors(attribute))
    return width > 1 and all(len(factors(name)) == width for name in names)


def alternatives(attribute: str, names: Sequence[str]) -> dict[str, list[str]]:
    """Attribute -> concepts that the subgroups of a product are made of, in order of first sight.

    >>> alternatives("gender*tone", ["woman*light", "man*light"])
    {'gender': ['woman', 'man'], 'tone': ['light']}
    """
    columns = zip(*(factors(name) for name in names), strict=True)
    return {part: list(dict.fromkeys(column)) for part, column in zip(factors(attribute), columns, strict=True)}


def marginals(proportions: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Attribute -> concept -> share, with the margins of every product's shares added where an attribute has none of its own.

    >>> marginals({"a*b": {"x*u": 0.25, "x*v": 0.5, "y*v": 0.25}})["a"]
    {'x': 0.75, 'y': 0.25}
    """
    out = {attribute: dict(values) for attribute, values in proportions.items()}
    for attribute, values in proportions.items():
        if not is_intersection(attribute, list(values)):
            continue
        for i, part in enumerate(factors(attribute)):
            sums: dict[str, float] = {}
            for name, share in values.items():
                sums[factors(name)[i]] = sums.get(factors(name)[i], 0.0) + share
            out.setdefault(part, sums)
    return out


def composed(targets: Sequence[str], neutral: str) -> str:
    """One prompt that says all of several target prompts of one neutral prompt.

    A target that holds the neutral prompt's noun says something of it ("a person with dark skin", "an old person"); one target may
    have another noun in its place ("a woman").

    Raises:
        ValueError: two targets have nouns of their own.

    >>> composed(["a woman", "a person with dark skin"], "a person"), composed(["an old person", "a man"], "a person")
    ('a woman with dark skin', 'an old man')
    """
    _, noun = _bare(neutral)
    word = re.compile(rf"(?<!\w){re.escape(noun)}(?!\w)")
    own = [target for target in targets if not word.search(target)]
    if len(own) > 1:
        raise ValueError(
            f"prompts {own[0]!r} and {own[1]!r} cannot be made one: neither says anything of the neutral prompt's {noun!r}; "
            "write the prompts of the cells in a TOML file of concepts"
        )
    article, text = _bare(own[0] if own else neutral)
    for target in targets:
        if target not in own:
            before, after = word.split(_bare(target)[1], maxsplit=1)
            text = before + text + after
    if article in ("a", "an"):
        article = "an" if text[0].lower() in "aeiou" else "a"
    return f"{article} {text}".strip()


def _bare(text: str) -> tuple[str, str]:
    """The article of a prompt in lower case (empty if it has none), and the rest."""
    article, _, rest = text.strip().partition(" ")
    return (article.lower(), rest.strip()) if article.lower() in ("a", "an", "the") and rest.strip() else ("", text.strip())
