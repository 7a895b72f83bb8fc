"""Edits of English prompts: another concept's words in them, and articles of noun phrases."""

from __future__ import annotations

from respodiff.concepts.concept import Concept

IMAGE_WORDS = ("photo", "photograph", "picture", "image", "headshot", "portrait", "drawing", "painting", "illustration")


ADJECTIVES = {"a woman": "female", "a man": "male"}
"""Target prompt -> the word that says the same before a noun."""


def rewriting(concept: Concept) -> tuple[str, str]:
    """(adjective, suffix) that turn a prompt into one of the concept.

    >>> rewriting(Concept("woman", "a woman")), rewriting(Concept("old", "an old person"))
    (('female', ''), ('old', ''))
    >>> rewriting(Concept("dark", "a person with dark skin")), rewriting(Concept("hat", "somebody in a hat"))
    (('', ' with dark skin'), ('', ', somebody in a hat'))
    """
    if concept.target in ADJECTIVES:
        return ADJECTIVES[concept.target], ""
    target, neutral = (without_article(text) for text in (concept.target, concept.neutral))
    if target.startswith(f"{neutral} "):
        return "", target.removeprefix(neutral)
    if target.endswith(f" {neutral}"):
        return target.removesuffix(neutral).strip(), ""
    return "", f", {concept.target}"


def without_article(text: str) -> str:
    article, _, rest = text.strip().partition(" ")
    return rest if article.lower() in ("a", "an", "the") and rest else text.strip()


def rewritten(prompt: str, adjective: str = "", suffix: str = "") -> str:
    """A prompt with an adjective before its noun and a suffix after it.

    The noun is what follows the article; in "a photo of X" it is that of X.

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
            article = "an" if adjective[0].lower() in "aeiou" else "a"
            rest = f"{article.capitalize() if first[0].isupper() else article} {adjective} {noun}"
        else:
            rest = f"{first} {adjective} {noun}" if first.lower() == "the" and noun else f"{adjective} {rest}"
    return f"{head}{between}{rest}{suffix}"


def article(noun: str) -> str:
    """A noun phrase with its article, none before plurals and pronouns that the lists have."""
    return noun if noun in ("men", "women", "people") else f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"


def with_article(name: str) -> str:
    """Lower case with the article that its first letter asks for.

    >>> with_article("analyst"), with_article("CEO")
    ('an analyst', 'a ceo')
    """
    name = name.lower()
    return f"{'an' if name.startswith(tuple('aeiou')) else 'a'} {name}"
