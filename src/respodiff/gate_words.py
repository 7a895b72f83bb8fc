"""Words that say whether a prompt draws a person and states an attribute: lists to look for, and prompts composed of them to learn from.

The lists are ``data/gate.json``; an attribute that is not in it brings its own words, those by which its prompts differ from the neutral one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from respodiff.concepts import Concept
from respodiff.methods.prompts import rewriting

SMALL = frozenset(["a", "an", "the", "with", "without", "of", "in", "on", "at", "who", "is", "has", "and", "or", "to", "for", "no", "not"])
FOLDS = 3


@cache
def lists() -> Mapping[str, Any]:
    """``data/gate.json``."""
    found: dict[str, Any] = json.loads((files("respodiff.data") / "gate.json").read_text(encoding="utf-8"))
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
        """(word, noun phrase that ends with it) for every word that a composed prompt may have."""
        out = [(w, article(w)) for w in (*self.adjective, *self.before, *self.noun)]
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
        if name != attribute and any(_holds(target, w) for target, _ in alternatives for w in words):
            found += known
    own = Forms()
    for target, neutral in alternatives:
        before, after = rewriting(Concept(target, target, neutral))
        if before:
            own += Forms(before=(before,))
        elif after:
            own += Forms(after=(after.strip(" ,"),))
    return found + own


def article(noun: str) -> str:
    """A noun phrase with its article, none before plurals and pronouns that the lists have."""
    return noun if noun in ("men", "women", "people") else f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"


# ------------------------------------------------------------ looking for words


def _spelt(text: str) -> str:
    return " ".join(re.findall(r"[\w']+", text.lower().replace("-", " ").replace("’", "'")))


def _holds(text: str, phrase: str) -> bool:
    return f" {_spelt(phrase)} " in f" {_spelt(text).replace(chr(39) + 's', '')} "


def first_of(text: str, phrases: Sequence[str]) -> str:
    """The first of the phrases that a text holds as whole words (a hyphen counts as a space), or nothing.

    >>> first_of("A dark-skinned nurse", ["male", "dark skinned"]), first_of("a maleness", ["male"])
    ('dark skinned', '')
    """
    return next((p for p in phrases if p.strip() and _holds(text, p)), "")


@cache
def people_words() -> frozenset[str]:
    """Every listed word for a person, in the singular."""
    gate = lists()
    nouns = [w for table in gate["attributes"].values() for key in ("noun", "also") for w in table.get(key, ())]
    plain = [w for w in nouns if w not in _STATES_NO_NOUN and len(w.split()) == 1]
    return frozenset(w.split()[-1] for w in (*gate["people"], *gate["more_people"], *plain))


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
    gate = lists()
    for word in _spelt(text).replace("'s", "").split():
        if word in people_words() or singular(word) in people_words():
            return word
        if guess and singular(word).endswith(tuple(gate["person_ends"])) and singular(word) not in gate["not_people"]:
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
    for phrase in forms.before:
        size = len(phrase.split())
        for i in range(len(words) - size):
            after = words[i + size : i + size + 2]
            if " ".join(words[i : i + size]) == _spelt(phrase) and person_in(" ".join(after)):
                return phrase
    return ""


# ------------------------------------------------------------ prompts to learn from


@dataclass(frozen=True)
class Example:
    """One text to learn a question from.

    Attributes:
        text: where the answer is yes it ends at the word that says so; where it is no, no word of it says so.
        ends: that word, empty where the answer is no.
        fold: of its noun, 0 to FOLDS - 1. word: fold of the word that says yes; -1 where it is the noun.
    """

    text: str
    ends: str
    fold: int
    word: int = -1

    @property
    def yes(self) -> bool:
        """The answer."""
        return bool(self.ends)


def person_examples() -> list[Example]:
    """Texts that end with a word for a person, and texts without people."""
    gate = lists()
    out = []
    for i, noun in enumerate(gate["people"]):
        for j in range(2):
            words = _pick(gate["other"]["adjective"], i + j) if j else ""
            out.append(Example(_until(_pick(gate["templates"], 5 * i + 7 * j), article(f"{words} {noun}".strip())), noun, i % FOLDS))
    for i, noun in enumerate(gate["things"]):
        plain, coloured = article(noun), article(f"{_pick(gate['thing_adjectives'], i)} {noun}")
        for j, phrase in enumerate((plain, coloured)):
            out.append(Example(_pick(gate["templates"], 5 * i + 7 * j).format(phrase), "", i % FOLDS))
    return out


def stated_examples(forms: Forms) -> list[Example]:
    """Texts that end with a word that states an attribute, and texts of people and things that state none of its words."""
    gate, out = lists(), []
    nouns = [n for n in gate["people"] if not stated_in(article(n), forms)]
    count = len(forms.stated("person"))
    for i in range(max(240, 4 * count)):
        noun = i // count * 7 + i
        word, phrase = forms.stated(_pick(nouns, noun))[i % count]
        out.append(Example(_until(_pick(gate["templates"], i // 2 + i), phrase), word, noun % len(nouns) % FOLDS, i % count % FOLDS))
    others = gate["other"]["adjective"], gate["other"]["after"]
    strangers = [Forms(**{k: tuple(v) for k, v in t.items() if k != "as"}) for t in gate["attributes"].values()]
    for i, noun in enumerate(nouns):
        phrases = [article(noun), article(f"{_pick(others[0], i)} {noun}"), f"{article(noun)} {_pick(others[1], i)}"]
        for other in strangers:
            phrases += [article(f"{_pick(other.adjective, i)} {noun}"), f"{article(noun)} {_pick(other.after, i)}"]
        kept = [p for p in phrases if not stated_in(p, forms)]
        out += [Example(_pick(gate["templates"], 5 * i + 3 * j).format(p), "", i % FOLDS) for j, p in enumerate(kept)]
    things = [e for e in person_examples() if not e.yes and not stated_in(e.text, forms)]
    return out + things[::2]


def _pick(rows: Sequence[str], i: int) -> str:
    return rows[i % len(rows)]


def _until(template: str, phrase: str) -> str:
    """A template with a phrase in it, cut off behind the phrase."""
    return template.partition("{}")[0] + phrase
