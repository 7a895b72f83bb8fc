"""Finds prompts that state an attribute themselves ("a male nurse") or name no person ("a red car"), and leaves them unsteered.

The words are in ``explicit_words.json``. An attribute that is not in it brings its own: those by which its prompts differ from the neutral one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from respodiff.concepts.prompt_editing import rewriting
from respodiff.generation.plan import Job, attribute_of
from respodiff.steering.adapter import Adapter, AdaptersPerImage, Row


def filter_explicit(prompts: Sequence[str], adapters: Adapter | Sequence[Row], words: Sequence[str] = ()) -> list[Row]:
    """Adapters for `steer`, without those of attributes that a prompt states; safety modules stay.

    Args:
        prompts: as the pipeline is called with them.
        adapters: one for all, or one entry per final image (``len(prompts) * num_images_per_prompt``).
        words: as for `reasons`, with its error.

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
    held = AdaptersPerImage.of(rows).rows
    why = reasons(prompts, [m for row in held for m in row], words)
    out: list[Row] = []
    for i, (row, before) in enumerate(zip(held, rows, strict=True)):
        skipped = why[i // (len(rows) // len(prompts))]
        kept = tuple(m for m in row if m.header.kind == "safety" or attribute_of(m) not in skipped)
        out.append(None if not kept else before if kept == row else kept)
    return out


def filter_jobs(jobs: Sequence[Job], adapters: Sequence[Adapter], prompt_filter: bool | Sequence[str]) -> list[Job]:
    """The jobs of a run without concepts of skipped attributes, and with the reasons; ``prompt_filter`` is ``skip_explicit_prompts``."""
    if not prompt_filter:
        return list(jobs)
    common = {attribute_of(m) for m in adapters if m.header.kind == "attribute"}
    texts = list(dict.fromkeys(job.prompt.text for job in jobs))
    found = dict(zip(texts, reasons(texts, adapters, () if isinstance(prompt_filter, bool) else prompt_filter), strict=True))
    out = []
    for job in jobs:
        why = {a: text for a, text in found[job.prompt.text].items() if a in job.concepts or a in common}
        out.append(replace(job, concepts={a: c for a, c in job.concepts.items() if a not in why}, skipped_attributes=why))
    return out


def reasons(prompts: Sequence[str], adapters: Sequence[Adapter], words: Sequence[str] = ()) -> list[dict[str, str]]:
    """For each prompt the skipped attributes of the adapters, each with the reason.

    Args:
        adapters: of any attributes. Safety modules are never skipped.
        words: ``word`` or ``attribute:word``; they decide in place of the shipped words.

    Raises:
        ValueError: a word of an attribute that no adapter has.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for m in adapters:
        if m.header.kind != "safety":
            groups.setdefault(attribute_of(m), []).append((m.header.target, m.header.neutral))
    if words:
        given = _given_words(words, list(groups))
        stated = [{a: first_of(prompt, given[a] + given[""]) for a in groups} for prompt in prompts]
        return [{a: f"holds {word!r} of the given words" for a, word in found.items() if word} for found in stated]
    forms = {name: forms_of(name, alternatives) for name, alternatives in groups.items()}
    out = []
    for prompt in prompts:
        if person_in(prompt):
            out.append({a: f"states {a}: {word!r}" for a, f in forms.items() if (word := stated_in(prompt, f))})
        else:
            out.append(dict.fromkeys(forms, "no person"))
    return out


def _given_words(words: Sequence[str], attributes: Sequence[str]) -> dict[str, list[str]]:
    """``word`` or ``attribute:word`` by attribute, "" for words of any."""
    out: dict[str, list[str]] = {a: [] for a in ("", *attributes)}
    for word in words:
        name, _, text = (part.strip() for part in (word if ":" in word else f":{word}").partition(":"))
        if name not in out:
            raise ValueError(f"word {word!r} is of attribute {name!r}, which no module has; allowed: {', '.join(attributes)}")
        out[name] += [text] if text else []
    return out


def read_words(text: str) -> list[str]:
    """Words of a file, one a line (``#`` begins a comment), or of a list with commas; ValueError if there is none."""
    path = Path(text)
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else text.split(",")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"--explicit-words: {text!r} cannot be read ({error}); give a text file with one word a line, or word,word"
        ) from error
    words = [word for line in lines if (word := line.partition("#")[0].strip())]
    if not words:
        raise ValueError(f"--explicit-words {text!r} holds no word; give word,word or a text file with one word a line")
    return words


@dataclass(frozen=True)
class Forms:
    """How prompts state an attribute: ``words`` state it anywhere, ``before`` state it before a word for a person only."""

    words: tuple[str, ...] = ()
    before: tuple[str, ...] = ()

    def __add__(self, other: Forms) -> Forms:
        return Forms(tuple(dict.fromkeys(self.words + other.words)), tuple(dict.fromkeys(self.before + other.before)))


@cache
def _lists() -> Mapping[str, Any]:
    """``explicit_words.json``; ``people`` are all of its words for a person."""
    found: dict[str, Any] = json.loads((files("respodiff.generation") / "explicit_words.json").read_text(encoding="utf-8"))
    found["people"] = set(found["people"]).union(*(table.get("people", ()) for table in found["attributes"].values()))
    return found


def listed(attribute: str) -> Forms:
    """The shipped words of an attribute and of the attributes that say the same; none for an unknown one."""
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
        before, after = rewriting(target, neutral)
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
            if " ".join(words[i : i + size]) == _normal(phrase) and person_in(" ".join(words[i + size : i + size + 2])):
                return phrase
    return ""


def person_in(text: str) -> str:
    """The first word of a text for a person, listed or with the ending of such words ("-ist", "-man"), or nothing.

    >>> person_in("two old beekeepers at dawn"), person_in("a red car on a beach")
    ('beekeepers', '')
    """
    none, ends = _lists()["not_people"], tuple(_lists()["person_ends"])
    for word in _words(text):
        single = _singular(word)
        if word in none:
            continue
        if {word, single} & _lists()["people"] or (len(single) > 4 and single.endswith(ends) and single not in none):
            return word
    return ""


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
