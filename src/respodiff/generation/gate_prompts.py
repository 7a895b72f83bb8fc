"""Prompts composed of the words of `respodiff.generation.prompt_words`, with the answers to both questions of the prompt filter: what its probes learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from respodiff.concepts.prompt_editing import article
from respodiff.generation.prompt_words import Forms, lists, stated_in

FOLDS = 3


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
    prompt_filter = lists()
    out = []
    for i, noun in enumerate(prompt_filter["people"]):
        for j in range(2):
            words = _pick(prompt_filter["other"]["adjective"], i + j) if j else ""
            out.append(
                Example(_until(_pick(prompt_filter["templates"], 5 * i + 7 * j), article(f"{words} {noun}".strip())), noun, i % FOLDS)
            )
    for i, noun in enumerate(prompt_filter["things"]):
        plain, coloured = article(noun), article(f"{_pick(prompt_filter['thing_adjectives'], i)} {noun}")
        for j, phrase in enumerate((plain, coloured)):
            out.append(Example(_pick(prompt_filter["templates"], 5 * i + 7 * j).format(phrase), "", i % FOLDS))
    return out


def stated_examples(forms: Forms) -> list[Example]:
    """Texts that end with a word that states an attribute, and texts of people and things that state none of its words."""
    prompt_filter, out = lists(), []
    nouns = [n for n in prompt_filter["people"] if not stated_in(article(n), forms)]
    count = len(forms.stated("person"))
    for i in range(max(240, 4 * count) if count else 0):
        noun = i // count * 7 + i
        word, phrase = forms.stated(_pick(nouns, noun))[i % count]
        out.append(
            Example(_until(_pick(prompt_filter["templates"], i // 2 + i), phrase), word, noun % len(nouns) % FOLDS, i % count % FOLDS)
        )
    others = prompt_filter["other"]["adjective"], prompt_filter["other"]["after"]
    strangers = [Forms(**{k: tuple(v) for k, v in t.items() if k != "as"}) for t in prompt_filter["attributes"].values()]
    for i, noun in enumerate(nouns):
        phrases = [article(noun), article(f"{_pick(others[0], i)} {noun}"), f"{article(noun)} {_pick(others[1], i)}"]
        phrases += [f"{article(noun)} {_pick(prompt_filter['settings'], i + j * len(nouns))}" for j in range(2)]
        for other in strangers:
            phrases += [article(f"{_pick(other.adjective, i)} {noun}"), f"{article(noun)} {_pick(other.after, i)}"]
        kept = [p for p in phrases if not stated_in(p, forms)]
        out += [Example(_pick(prompt_filter["templates"], 5 * i + 3 * j).format(p), "", i % FOLDS) for j, p in enumerate(kept)]
    things = [e for e in person_examples() if not e.yes and not stated_in(e.text, forms)]
    return out + things[::2]


def _pick(rows: Sequence[str], i: int) -> str:
    return rows[i % len(rows)]


def _until(template: str, phrase: str) -> str:
    """A template with a phrase in it, cut off behind the phrase."""
    return template.partition("{}")[0] + phrase
