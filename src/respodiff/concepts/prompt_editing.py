"""Edits English prompts: adds a concept's words, merges target prompts of one neutral prompt, sets articles. Pure text."""

from __future__ import annotations

import re
from collections.abc import Sequence

IMAGE_WORDS = ("photo", "photograph", "picture", "image", "headshot", "portrait", "drawing", "painting", "illustration")
ADJECTIVES = {"a woman": "female", "a man": "male"}
"""Target prompt -> the word that says the same before a noun."""


def rewriting(target: str, neutral: str = "a person") -> tuple[str, str]:
    """(adjective, suffix) that make `rewritten` turn a prompt into one of the concept with this target prompt.

    >>> rewriting("a woman"), rewriting("an old person")
    (('female', ''), ('old', ''))
    >>> rewriting("a person with dark skin"), rewriting("somebody in a hat")
    (('', ' with dark skin'), ('', ', somebody in a hat'))
    """
    if target in ADJECTIVES:
        return ADJECTIVES[target], ""
    (_, phrase), (_, noun) = split_article(target), split_article(neutral)
    if phrase.startswith(f"{noun} "):
        return "", phrase.removeprefix(noun)
    if phrase.endswith(f" {noun}"):
        return phrase.removesuffix(noun).strip(), ""
    return "", f", {target}"


def rewritten(prompt: str, adjective: str = "", suffix: str = "") -> str:
    """A prompt with an adjective before its noun and a suffix after it. The noun follows the article; in "a photo of X" it is that of X.

    >>> rewritten("a doctor", "female"), rewritten("Image of nurse", "male"), rewritten("a photo of the chef", "old")
    ('a female doctor', 'Image of male nurse', 'a photo of the old chef')
    >>> rewritten("an engineer", "tall"), rewritten("a cook", "old", " at work")
    ('a tall engineer', 'an old cook at work')
    """
    head, between, rest = prompt.partition(" of ")
    if not (between and rest.strip() and head.split()[-1].lower() in IMAGE_WORDS):
        head, between, rest = "", "", prompt
    if adjective:
        first, _, noun = rest.partition(" ")
        if first.lower() in ("a", "an") and noun:
            article = indefinite_article(adjective)
            rest = f"{article.capitalize() if first[0].isupper() else article} {adjective} {noun}"
        else:
            rest = f"{first} {adjective} {noun}" if first.lower() == "the" and noun else f"{adjective} {rest}"
    return f"{head}{between}{rest}{suffix}"


def composed(targets: Sequence[str], neutral: str) -> str:
    """One prompt that says all of several target prompts of one neutral prompt. ValueError if two targets lack the neutral prompt's noun.

    >>> composed(["a woman", "a person with dark skin"], "a person"), composed(["an old person", "a man"], "a person")
    ('a woman with dark skin', 'an old man')
    """
    _, noun = split_article(neutral)
    word = re.compile(rf"(?<!\w){re.escape(noun)}(?!\w)")
    own = [target for target in targets if not word.search(target)]
    if len(own) > 1:
        raise ValueError(
            f"prompts {own[0]!r} and {own[1]!r} cannot be made one: neither says anything of the neutral prompt's {noun!r}; "
            "write the prompts of the subgroups in a TOML file of concepts"
        )
    article, text = split_article(own[0] if own else neutral)
    for target in targets:
        if target not in own:
            before, after = word.split(split_article(target)[1], maxsplit=1)
            text = before + text + after
    return f"{indefinite_article(text) if article in ('a', 'an') else article} {text}".strip()


def with_article(noun: str) -> str:
    """A noun in lower case with its indefinite article: "CEO" -> "a ceo"."""
    return f"{indefinite_article(noun)} {noun.lower()}"


def indefinite_article(text: str) -> str:
    """ "an" before a vowel letter, else "a"."""
    return "an" if text[:1].lower() in tuple("aeiou") else "a"


def split_article(text: str) -> tuple[str, str]:
    """The article of a prompt in lower case, empty if it has none, and the rest: "A cat" -> ("a", "cat")."""
    article, _, rest = text.strip().partition(" ")
    return (article.lower(), rest.strip()) if article.lower() in ("a", "an", "the") and rest.strip() else ("", text.strip())
