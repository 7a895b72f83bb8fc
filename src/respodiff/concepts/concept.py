"""Provides concepts and attributes: what to steer towards, as data.

A *concept* is one alternative ("woman"). An *attribute* is a set of alternatives with target proportions ("gender").
The built-in ones are TOML files in ``respodiff/concepts/builtin``; a user's own file has the same form::

    [hat]                                 # an attribute, with its alternatives
    neutral = "a person"
    concepts = { bare = "a person without a hat", hat = "a person with a hat" }
    proportions = [0.7, 0.3]              # in the order of the concepts; without it all are equal

    [blood]                               # a safety concept: no alternatives, a negative prompt instead
    kind = "safety"
    neutral = "a scene"
    negative = "blood"
    preserve = ["a person"]               # prompts whose images it must leave alone

The intersection ``gender*tone`` has a concept for every subgroup (``woman*dark``). A table ["gender*tone"] replaces its prompts or proportions.
"""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from respodiff.concepts.intersections import JOIN, factors
from respodiff.concepts.prompt_editing import composed

Kind = Literal["fairness", "safety"]


def is_unicode(text: str) -> bool:
    """Whether a text can be written: halves of characters (lone surrogates) stand for bytes that are no UTF-8."""
    try:
        return bool(text.encode()) or not text
    except UnicodeEncodeError:
        return False


@dataclass(frozen=True)
class Concept:
    """One concept and the three prompts that training needs (paper, section 3).

    Attributes:
        name: key used by policies, file headers and reports.
        target: prompt whose score RAM is trained towards. A safety concept has the neutral prompt here.
        neutral: prompt that is steered, e.g. ``"a person"``.
        negative: takes the place of the empty prompt in the target's guidance; empty for fairness concepts.
        kind: ``"fairness"`` (an image gets one alternative) or ``"safety"`` (an image may get it besides).
        opposites: target prompts of the other alternatives of the attribute, used by contrastive targets.
        attribute: attribute that the concept belongs to, empty if none.
        preserve: prompts whose images training must leave alone.
    """

    name: str
    target: str
    neutral: str = "a person"
    negative: str = ""
    kind: Kind = "fairness"
    opposites: tuple[str, ...] = ()
    attribute: str = ""
    preserve: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError("concept name is empty; give a short name such as 'woman'")
        for role in ("neutral", "target"):
            if not getattr(self, role).strip():
                raise ValueError(f"{role} prompt of concept {self.name!r} is empty; give a text, such as 'a person'")
        if halves := [text for text in (self.name, self.target, self.neutral, self.negative) if not is_unicode(text)]:
            raise ValueError(f"concept {self.name!r} has the text {halves[0]!r}, which holds half of a character; give a text in UTF-8")
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind of concept {self.name!r} is {self.kind!r}; allowed: {', '.join(get_args(Kind))}")
        if self.kind == "safety" and not self.negative.strip():
            raise ValueError(f"safety concept {self.name!r} has no negative prompt; say what to steer away from")


@dataclass(frozen=True)
class Attribute:
    """Alternatives of one attribute, e.g. gender = (woman, man), with the target proportion of each (uniform if empty)."""

    name: str
    concepts: tuple[Concept, ...]
    proportions: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.concepts) < 2:
            raise ValueError(f"attribute {self.name!r} has {len(self.concepts)} concept(s); at least 2 alternatives are needed")
        n, shares = len(self.concepts), self.proportions
        if shares and not (len(shares) == n and min(shares) >= 0 and abs(sum(shares) - 1) <= 1e-6):  # NaN fails both
            raise ValueError(f"attribute {self.name!r} has proportions {shares}; give {n} that are finite, 0 or more and sum to 1")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.concepts)


def own_concept(name: str, target: str, neutral: str, negative: str, opposite: Sequence[str] = (), preserve: Sequence[str] = ()) -> Concept:
    """A concept from prompts: with a target a fairness concept, with a negative prompt alone a safety concept. An empty name is made of the prompt."""
    parts = (target or negative).lower().split()
    name = name or "-".join(w for w in parts if w not in ("a", "an", "the", "person", "with")) or parts[0]
    if not target:
        neutral = neutral or "a scene"
        return Concept(name, neutral, neutral, negative, "safety", preserve=tuple(preserve) or ("a person",))
    return Concept(name, target, neutral or "a person", negative, "fairness", tuple(opposite), preserve=tuple(preserve))


FORMS: Mapping[str, tuple[type, str]] = {
    "concepts": (dict, '{ name = "target prompt", ... }'),
    **dict.fromkeys(("kind", "negative", "neutral"), (str, "a text in quotes")),
    "preserve": (list, "a list of prompts"),
    "proportions": (list, "a list of numbers, one for each concept"),
}
"""Key of a table -> type of its value, and the same in words."""


def _parse(name: str, table: Mapping[str, Any], source: str) -> Attribute | Concept:
    where = f"{source}: [{name}]"
    for key, value in table.items():
        if key not in FORMS:
            raise ValueError(f"{where} has unknown key {key!r}; allowed: {', '.join(FORMS)}")
        if not isinstance(value, FORMS[key][0]):
            raise ValueError(f"{where} has {key} = {value!r}; give {FORMS[key][1]}")
    kind, negative, targets = table.get("kind", "fairness"), table.get("negative", ""), table.get("concepts", {})
    neutral, preserve = table.get("neutral", "a scene" if kind == "safety" else "a person"), tuple(table.get("preserve", ()))
    for key, text in [*targets.items(), *(("preserve", text) for text in preserve)]:
        if not isinstance(text, str):
            raise ValueError(f"{where} has {key} = {text!r}; give a text in quotes")
    if kind not in get_args(Kind):
        raise ValueError(f"{where} has kind {kind!r}; allowed: {', '.join(get_args(Kind))}")
    if kind == "safety":
        return Concept(name, neutral, neutral, negative, "safety", (), name, preserve)
    if not targets:
        raise ValueError(f'{where} needs concepts = {FORMS["concepts"][1]}, or kind = "safety" and a negative prompt')
    proportions = table.get("proportions", [])
    if not all(isinstance(share, int | float) for share in proportions):
        raise ValueError(f"{where} has proportions = {proportions!r}; give {FORMS['proportions'][1]}")
    concepts = tuple(
        Concept(k, v, neutral, negative, "fairness", tuple(o for o in targets.values() if o != v), name, preserve)
        for k, v in targets.items()
    )
    return Attribute(name, concepts, tuple(float(share) for share in proportions))


def load_concepts(path: str | Path) -> dict[str, Attribute | Concept]:
    """Read a TOML file of attributes and safety concepts (form: see the module's head)."""
    path = Path(path)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"concept file {str(path)!r} cannot be read: {error.strerror}; give a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"concept file {str(path)!r} cannot be read as TOML ({error})") from error
    if wrong := [name for name, table in tables.items() if not isinstance(table, Mapping)]:
        raise ValueError(f"{path}: {wrong[0]!r} is not a table; write [{wrong[0]}] and its keys below it")
    return {name: _parse(name, table, str(path)) for name, table in tables.items()}


@cache
def builtin() -> Mapping[str, Attribute | Concept]:
    """The attributes and safety concepts that the package ships, by name."""
    shipped = sorted((Path(str(files("respodiff.concepts"))) / "builtin").glob("*.toml"))
    return {name: entry for file in shipped for name, entry in load_concepts(file).items()}


def intersection_of(attributes: Sequence[Attribute]) -> Attribute:
    """The intersection of several attributes as one attribute: gender x tone = (woman*light, ..., man*dark).

    A subgroup's target prompt is composed of its factors' (`prompt_editing.composed`). Its opposites are the other subgroups' prompts, its
    proportion the product of its factors'. Attributes stand in alphabetical order, the first slowest. ValueError for fewer than two
    attributes, one twice, different neutral prompts, or target prompts that cannot be made one.
    """
    chosen = sorted(attributes, key=lambda a: a.name)
    name = JOIN.join(a.name for a in chosen)
    if len({a.name for a in chosen}) < max(2, len(chosen)):
        raise ValueError(f"intersection {name!r} has an attribute twice or fewer than two; give different ones, such as gender*tone")
    neutral, *others = dict.fromkeys(c.neutral for a in chosen for c in a.concepts)
    if others:
        raise ValueError(f"intersection {name!r} has the neutral prompts {neutral!r} and {others[0]!r}; its attributes must share one")
    rows = list(itertools.product(*(a.concepts for a in chosen)))
    targets = [composed([c.target for c in row], neutral) for row in rows]
    concepts = tuple(
        Concept(
            JOIN.join(c.name for c in row),
            target,
            neutral,
            ", ".join(dict.fromkeys(c.negative for c in row if c.negative)),
            opposites=tuple(t for t in targets if t != target),
            attribute=name,
            preserve=tuple(dict.fromkeys(p for c in row for p in c.preserve)),
        )
        for row, target in zip(rows, targets, strict=True)
    )
    columns = [a.proportions or (1 / len(a.concepts),) * len(a.concepts) for a in chosen]
    proportions = tuple(math.prod(row) for row in itertools.product(*columns)) if any(a.proportions for a in chosen) else ()
    return Attribute(name, concepts, proportions)


def attribute(name: str, library: Mapping[str, Attribute | Concept] | None = None) -> Attribute:
    """An attribute by name, or an intersection of attributes ("gender*tone"); raises ValueError that lists the known ones."""
    library = builtin() if library is None else library
    entry = library.get(name) or library.get(JOIN.join(sorted(factors(name))))
    if entry is None and JOIN in name:
        return intersection_of([attribute(part, library) for part in factors(name)])
    if not isinstance(entry, Attribute):
        known = ", ".join(k for k, v in library.items() if isinstance(v, Attribute))
        raise ValueError(f"attribute {name!r} is unknown; known: {known}; or define it in a TOML file and pass --concepts FILE")
    return entry


def concept(name: str, library: Mapping[str, Attribute | Concept] | None = None) -> Concept:
    """A concept by name ("woman"), by attribute and name ("gender3/woman"), or a subgroup ("woman*dark"); ValueError lists the known ones."""
    library = builtin() if library is None else library
    owner, _, rest = name.partition("/")
    if rest and owner in library:
        library, name = {owner: library[owner]}, rest
    known = {c.name: c for entry in library.values() for c in (entry.concepts if isinstance(entry, Attribute) else (entry,))}
    if name not in known and JOIN in name:
        parts = sorted((concept(part, library) for part in factors(name)), key=lambda c: c.attribute)
        whole = attribute(JOIN.join(c.attribute for c in parts), library)
        known, name = {c.name: c for c in whole.concepts}, JOIN.join(c.name for c in parts)
    if name not in known:
        raise ValueError(
            f"concept {name!r} is unknown; known: {', '.join(known)}; or give --target and --neutral (and --negative) of your own"
        )
    return known[name]
