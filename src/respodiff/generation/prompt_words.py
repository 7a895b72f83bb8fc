"""Words that say whether a prompt draws a person and states an attribute.

The lists are ``gate.json``; an attribute that is not in it brings its own words, those by which its prompts differ from the neutral one.
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
from respodiff.concepts.prompt_editing import article, rewriting

SMALL = frozenset(["a", "an", "the", "with", "without", "of", "in", "on", "at", "who", "is", "has", "and", "or", "to", "for", "no", "not"])


@cache
def lists() -> Mapping[str, Any]:
    """``gate.json``."""
    found: dict[str, Any] = json.loads((files("respodiff.generation") / "gate.json").read_text(encoding="utf-8"))
    return found


@dataclass(frozen=True)
class Forms:
    """How prompts state an attribute.

    Attributes:
        adjective, noun: words that state it wherever they stand. before: before a word for a person alone. after: behind one.
        also: looked for, but in no composed prompt.
    """

    adjective: tuple[str, ...] = ()
    noun: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    def __add__(self, other: Forms) -> Forms:
        return Forms(*(tuple(dict.fromkeys((*getattr(self, k), *getattr(other, k)))) for k in self.__dataclass_fields__))

    def stated(self, noun: str) -> list[tuple[str, str]]:
        """(word, noun phrase that ends with it) for every word that says so by itself: of "a black" nobody knows yet who or what is meant."""
        out = [(w, article(w)) for w in (*self.adjective, *self.noun)]
        return out + [(w, f"{article(noun)} {w}") for w in self.after]


def listed(attribute: str) -> Forms:
    """The shipped words of an attribute, with those of the attributes that say the same; none for an unknown one."""
    tables = lists()["attributes"]
    if attribute not in tables:
        return Forms()
    names = (attribute, *tables[attribute].get("as", ()))
    parts = [Forms(**{k: tuple(v) for k, v in tables[n].items() if k != "as"}) for n in names]
    return sum(parts[1:], parts[0])


def forms_of(attribute: str, alternatives: Sequence[tuple[str, str]]) -> Forms:
    """How prompts state an attribute of these (target, neutral) prompts: by the shipped words, if any of them is in a target, and its own.

    >>> forms_of("sex", [("a woman", "a person")]).noun[:2], forms_of("hat", [("a person with a red hat", "a person")]).after
    (('man', 'woman'), ('with a red hat',))
    """
    found = listed(attribute)
    for name in lists()["attributes"]:
        known = listed(name)
        words = (*known.adjective, *known.noun, *known.after)
        if name != attribute and any(first_of(target, words) for target, _ in alternatives):
            found += known
    own = Forms()
    for target, neutral in alternatives:
        before, after = rewriting(Concept(target, target, neutral))
        if before:
            own += Forms(before=(before,))
        elif after:
            own += Forms(after=(after.strip(" ,"),))
    return found + own


# ------------------------------------------------------------ looking for words


def _spelt(text: str) -> str:
    return " ".join(re.findall(r"[\w']+", text.lower().replace("-", " ").replace("’", "'")))


@cache
def _pattern(phrases: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted({_spelt(p) for p in phrases} - {""}, key=lambda p: (-len(p), p))
    return re.compile(rf"(?<![\w'])({'|'.join(map(re.escape, longest_first)) or '(?!)'})('?s)?(?![\w'])")


def first_of(text: str, phrases: Sequence[str]) -> str:
    """Which of the phrases a text holds first as whole words (a hyphen counts as a space, a plural as the word), or nothing.

    >>> first_of("A dark-skinned nurse", ["male", "dark skinned"]), first_of("a maleness", ["male"])
    ('dark skinned', '')
    """
    found = _pattern(tuple(phrases)).search(_spelt(text))
    return next(p for p in phrases if _spelt(p) == found[1]) if found else ""


@cache
def people_words() -> frozenset[str]:
    """Every listed word for a person, in the singular."""
    prompt_filter = lists()
    nouns = [w for table in prompt_filter["attributes"].values() for key in ("noun", "also") for w in table.get(key, ())]
    plain = [w for w in nouns if w not in _STATES_NO_NOUN and len(w.split()) == 1]
    return frozenset(w.split()[-1] for w in (*prompt_filter["people"], *prompt_filter["more_people"], *plain))


_STATES_NO_NOUN = frozenset(
    [
        "he",
        "she",
        "his",
        "her",
        "him",
        "hers",
        "himself",
        "herself",
        "mr",
        "mrs",
        "ms",
        "sir",
        "madam",
        "descent",
        "ethnicity",
        "race",
        "complexion",
        "trans",
        "teen",
    ]
)


def person_in(text: str, guess: bool = True) -> str:
    """The first word of a text for a person, or nothing.

    Args:
        guess: take a word that is not listed, but ends as such words do ("-ist", "-man"), for one.

    >>> person_in("two old beekeepers at dawn"), person_in("a red car on a beach")
    ('beekeepers', '')
    """
    prompt_filter = lists()
    for word in _spelt(text).replace("'s", "").split():
        if word in prompt_filter["not_people"]:
            continue
        if word in people_words() or singular(word) in people_words():
            return word
        if (
            guess
            and len(singular(word)) > 4
            and singular(word).endswith(tuple(prompt_filter["person_ends"]))
            and singular(word) not in prompt_filter["not_people"]
        ):
            return word
    return ""


def singular(word: str) -> str:
    """A word without the ending of a plural.

    >>> singular("nurses"), singular("boss"), singular("ladies")
    ('nurse', 'boss', 'lady')
    """
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def stated_in(text: str, forms: Forms) -> str:
    """The word or phrase by which a text states an attribute, or nothing.

    >>> gender, tone = listed("gender"), listed("tone")
    >>> stated_in("a male nurse", gender), stated_in("a nurse", gender), stated_in("a Black doctor in a white coat", tone)
    ('male', '', 'black')
    """
    own = [re.sub(r"^(with|without|of|who is|in)\s+(a |an )?", "", phrase) for phrase in forms.after]
    if found := first_of(text, [*forms.adjective, *forms.noun, *own, *forms.also]):
        return found
    words = _spelt(text).replace("'s", "").split()
    for phrase in forms.before if person_in(text) else ():
        size = len(phrase.split())
        for i in range(len(words) - size):
            after = words[i + size : i + size + 2]
            if " ".join(words[i : i + size]) == _spelt(phrase) and person_in(" ".join(after)):
                return phrase
    return ""
