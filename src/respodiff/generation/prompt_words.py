"""Finds words in a prompt that name a person or state an attribute.

The lists are in ``gate.json``. An attribute that is not in it brings its own words: those by which its prompts differ from the neutral one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from respodiff.concepts.concept import Concept
from respodiff.concepts.prompt_editing import rewriting


@dataclass(frozen=True)
class Forms:
    """How prompts state an attribute.

    Attributes:
        words: words and phrases that state it wherever they stand.
        before: words that state it before a word for a person only.
    """

    words: tuple[str, ...] = ()
    before: tuple[str, ...] = ()

    def __add__(self, other: Forms) -> Forms:
        return Forms(tuple(dict.fromkeys(self.words + other.words)), tuple(dict.fromkeys(self.before + other.before)))


@cache
def _lists() -> Mapping[str, Any]:
    """``gate.json``."""
    found: dict[str, Any] = json.loads((files("respodiff.generation") / "gate.json").read_text(encoding="utf-8"))
    return found


def listed(attribute: str) -> Forms:
    """The shipped words of an attribute, with those of the attributes that say the same; none for an unknown one."""
    tables = _lists()["attributes"]
    found = Forms()
    for name in (attribute, *tables[attribute].get("as", ())) if attribute in tables else ():
        found += Forms((*tables[name].get("people", ()), *tables[name]["words"]), tuple(tables[name].get("before", ())))
    return found


def forms_of(attribute: str, alternatives: Sequence[tuple[str, str]]) -> Forms:
    """How prompts state an attribute with these (target, neutral) prompts.

    The words are its own, and those of every shipped attribute that has its name or a word of one of its targets.

    >>> forms_of("sex", [("a woman", "a person")]).words[:2], forms_of("hat", [("a person with a red hat", "a person")]).words
    (('man', 'woman'), ('red hat',))
    """
    found = listed(attribute)
    for name in _lists()["attributes"]:
        if name != attribute and any(first_of(target, listed(name).words) for target, _ in alternatives):
            found += listed(name)
    for target, neutral in alternatives:
        before, after = rewriting(Concept(target, target, neutral))
        phrase = re.sub(r"^(with|without|of|who is|in)\s+(a |an )?", "", after.strip(" ,"))
        found += Forms(before=(before,)) if before else Forms((phrase,) if phrase else ())
    return found


def stated_in(text: str, forms: Forms) -> str:
    """The word or phrase by which a text states an attribute, or nothing.

    >>> gender, tone = listed("gender"), listed("tone")
    >>> stated_in("a male nurse", gender), stated_in("a nurse", gender), stated_in("a Black doctor in a white coat", tone)
    ('male', '', 'black')
    """
    if found := first_of(text, forms.words):
        return found
    words = _words(text)
    for phrase in forms.before:
        size = len(phrase.split())
        for i in range(len(words) - size):
            if " ".join(words[i : i + size]) == _spelt(phrase) and person_in(" ".join(words[i + size : i + size + 2])):
                return phrase
    return ""


def person_in(text: str) -> str:
    """The first word of a text for a person, listed or with the ending of such words ("-ist", "-man"), or nothing.

    >>> person_in("two old beekeepers at dawn"), person_in("a red car on a beach")
    ('beekeepers', '')
    """
    people, none, ends = _people(), _lists()["not_people"], tuple(_lists()["person_ends"])
    for word in _words(text):
        single = singular(word)
        if word in none:
            continue
        if word in people or single in people or (len(single) > 4 and single.endswith(ends) and single not in none):
            return word
    return ""


def first_of(text: str, phrases: Sequence[str]) -> str:
    """Which of the phrases a text holds first as whole words (a hyphen counts as a space, a plural as the word), or nothing.

    >>> first_of("A dark-skinned nurse", ["male", "dark skinned"]), first_of("a maleness", ["male"])
    ('dark skinned', '')
    """
    found = _pattern(tuple(phrases)).search(_spelt(text))
    return next(p for p in phrases if _spelt(p) == found[1]) if found else ""


def singular(word: str) -> str:
    """A word without the ending of a plural.

    >>> singular("nurses"), singular("boss"), singular("ladies")
    ('nurse', 'boss', 'lady')
    """
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


@cache
def _people() -> frozenset[str]:
    """Every listed word for a person."""
    return frozenset(_lists()["people"]).union(*(table.get("people", ()) for table in _lists()["attributes"].values()))


def _spelt(text: str) -> str:
    return " ".join(re.findall(r"[\w']+", text.lower().replace("-", " ").replace("’", "'")))


def _words(text: str) -> list[str]:
    return _spelt(text).replace("'s", "").split()


@cache
def _pattern(phrases: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted({_spelt(p) for p in phrases} - {""}, key=lambda p: (-len(p), p))
    return re.compile(rf"(?<![\w'])({'|'.join(map(re.escape, longest_first)) or '(?!)'})('?s)?(?![\w'])")
