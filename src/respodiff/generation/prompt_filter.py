"""Finds prompts that state an attribute themselves ("a male nurse") or name no person ("a red car"), and leaves them unsteered.

The words are in ``explicit_words.json``. An attribute that is not in it brings its own: those by which its prompts differ from the neutral one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from respodiff.concepts.prompt_editing import rewriting
from respodiff.generation.plan import attribute_of
from respodiff.steering.adapter import Adapter, AdaptersPerImage, Row


class Forms(NamedTuple):
    """How prompts state an attribute: ``words`` state it anywhere, ``before`` state it before a word for a person only."""

    words: list[str]
    before: list[str]


def filter_explicit(prompts: Sequence[str], adapters: Adapter | Sequence[Row]) -> list[Row]:
    """Adapters for `steer`, without those of attributes that a prompt states; safety modules stay.

    Args:
        prompts: as the pipeline is called with them.
        adapters: one for all, or one entry per final image (``len(prompts) * num_images_per_prompt``).

    Example::

        prompts = ["a doctor", "a male nurse"]
        with steer(pipe, filter_explicit(prompts, woman)):
            images = pipe(prompts).images
    """
    if isinstance(prompts, str):
        raise ValueError(f"prompts is the text {prompts!r}; give a list of prompts")
    rows: list[Row] = [adapters] * len(prompts) if isinstance(adapters, Adapter) else list(adapters)
    if not prompts or len(rows) % len(prompts):
        raise ValueError(f"{len(rows)} entries for {len(prompts)} prompts; give one entry per image (prompts x num_images_per_prompt)")
    held = AdaptersPerImage.of(rows)
    skipped = [why for why in reasons(prompts, held.adapters) for _ in range(len(rows) // len(prompts))]
    out: list[Row] = []
    for row, before, why in zip(held.rows, rows, skipped, strict=True):
        kept = tuple(m for m in row if m.header.kind == "safety" or attribute_of(m) not in why)
        out.append(before if kept == row else kept or None)
    return out


def reasons(prompts: Sequence[str], adapters: Sequence[Adapter]) -> list[dict[str, str]]:
    """For each prompt the skipped attributes of the adapters, each with the reason. Safety modules are never skipped."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for m in adapters:
        if m.header.kind != "safety":
            groups.setdefault(attribute_of(m), []).append((m.header.target, m.header.neutral))
    forms = {name: forms_of(name, alternatives) for name, alternatives in groups.items()}
    return [
        {a: f"states {a}: {word!r}" for a, f in forms.items() if (word := stated_in(prompt, f))}
        if person_in(prompt)
        else dict.fromkeys(forms, "no person")
        for prompt in prompts
    ]


@cache
def _lists() -> dict[str, Any]:
    """``explicit_words.json`` with sets for lists; ``people`` are all of its words for a person, ``phrases`` those of no person."""
    read: dict[str, Any] = json.loads((files("respodiff.generation") / "explicit_words.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = {key: set(value) if isinstance(value, list) else value for key, value in read.items()}
    found["people"] = found["people"].union(*(table.get("people", ()) for table in found["attributes"].values()))
    found["things"] |= found["animals"]
    found["unless"] = {word: set(others) for word, others in found["unless"].items()}
    phrases = sorted((p for p in found["not_people"] if " " in p), key=len, reverse=True)
    found["phrases"] = re.compile(rf"(?<!\w)({'|'.join(phrases)})(?!\w)")
    return found


def listed(attribute: str) -> Forms:
    """The shipped words of an attribute and of the attributes that say the same; none for an unknown one."""
    tables = _lists()["attributes"]
    found = [tables[name] for name in (attribute, *tables[attribute].get("as", ()))] if attribute in tables else []
    words = [word for table in found for word in (*table.get("people", ()), *table["words"])]
    return Forms(words, [word for table in found for word in table.get("before", ())])


def forms_of(attribute: str, alternatives: Sequence[tuple[str, str]]) -> Forms:
    """How prompts state an attribute with these (target, neutral) prompts.

    The words are its own, and those of every shipped attribute that has its name or a word of one of its targets.

    >>> forms_of("sex", [("a woman", "a person")]).words[:2], forms_of("hat", [("a person with a red hat", "a person")]).words
    (['man', 'woman'], ['red hat'])
    """
    words, before = listed(attribute)
    for name in _lists()["attributes"]:
        if name != attribute and any(first_of(target, listed(name).words) for target, _ in alternatives):
            words, before = words + listed(name).words, before + listed(name).before
    for target, neutral in alternatives:
        adjective, suffix = rewriting(target, neutral)
        if adjective:
            before.append(adjective)
        else:
            words.append(re.sub(r"^(with|without|of|who is|in)\s+(a |an )?", "", suffix.strip(" ,")))
    return Forms(words, before)


def stated_in(text: str, forms: Forms) -> str:
    """The word or phrase by which a text states an attribute, or nothing.

    >>> gender, tone = listed("gender"), listed("tone")
    >>> stated_in("a male nurse", gender), stated_in("a nurse", gender), stated_in("a Black doctor in a white coat", tone)
    ('male', '', 'black')
    """
    words = _words(text)
    for phrase in forms.before if not (found := first_of(text, forms.words)) else ():
        size = len(phrase.split())
        for i in range(len(words) - size):
            if " ".join(words[i : i + size]) == _normal(phrase) and person_in(" ".join(words[i + size : i + size + 2])):
                return phrase
    return found


def person_in(text: str) -> str:
    """The first word of a text for a person, or nothing.

    A word is one that is listed or has the ending of such words ("-ist", "-boarder"). It is none where the noun after it says what it is
    ("a passenger train", "a baby elephant"), or in a listed phrase ("jet fighter").

    >>> person_in("two old beekeepers at dawn"), person_in("a passenger train passes a dresser")
    ('beekeepers', '')
    """
    lists = _lists()
    text = re.sub(r"[’']s?(?!\w)", "", text.lower().replace("-", " "))
    words: list[str] = re.findall(r"\w+|[^\w\s]", lists["phrases"].sub(" | ", text))
    forms = [{word, _singular(word)} for word in words]
    with_animal = any(form & lists["animals"] for form in forms)
    for i, (word, form) in enumerate(zip(words, forms, strict=True)):
        if word in lists["pronouns"] and not with_animal:
            return word
        counted = words[i + 1 : i + 2] == ["of"] and not lists["numbers"].intersection(words[i + 2 : i + 3])
        excluded = any(lists["unless"].get(name, set()).intersection(words) for name in form)
        if _is_person(form) and not (form & lists["groups"] and counted) and not excluded and not _names_a_thing(forms, i):
            return word
    return ""


def _is_person(form: set[str]) -> bool:
    """Whether a word, given as itself and its singular, is one for a person where it stands alone."""
    lists = _lists()
    ends = any(word.endswith(end) and len(word) > len(end) + 1 for word in form for end in lists["person_ends"])
    return bool(form & lists["people"]) or (ends and not form & lists["not_people"])


def _names_a_thing(forms: Sequence[set[str]], i: int) -> bool:
    """Whether the noun after the i-th word, one for a person, says that it is a thing or an animal: "a baby and an adult elephant"."""
    lists = _lists()
    following = list(forms[i + 1 :])
    if forms[i] & lists["plain"]:
        return bool(following and following[0] & lists["rooms"])
    while following and not following[0] & lists["things"]:
        joined = len(following) > 1 and following[0] == {"and"} and _is_person(following[1])
        if not joined and not following[0] & lists["between"]:
            return False
        following = following[2 if joined else 1 :]
    return bool(following)


def first_of(text: str, phrases: Sequence[str]) -> str:
    """The first of the phrases in a text, as whole words (a hyphen counts as a space, a plural as the word), or nothing.

    >>> first_of("A dark-skinned nurse", ["male", "dark skinned"]), first_of("a maleness", ["male"])
    ('dark skinned', '')
    """
    longest_first = sorted({_normal(p) for p in phrases} - {""}, key=lambda p: (-len(p), p))
    pattern = rf"(?<![\w'])({'|'.join(map(re.escape, longest_first)) or '(?!)'})('?s)?(?![\w'])"
    found = re.search(pattern, _normal(text))
    return next(p for p in phrases if _normal(p) == found[1]) if found else ""


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _normal(text: str) -> str:
    """Lower case, without punctuation and hyphens."""
    return " ".join(re.findall(r"[\w']+", text.lower().replace("-", " ").replace("’", "'")))


def _words(text: str) -> list[str]:
    return _normal(text).replace("'s", "").split()
