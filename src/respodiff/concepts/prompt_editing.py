"""Training one concept in several contexts: prompts such as "a doctor", each with targets of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from respodiff.concepts.concept import Concept


def in_context(concept: Concept, context: str) -> Concept:
    """The concept with ``context`` as neutral prompt, and its other prompts rewritten into it (`respodiff.methods.prompting`).

    >>> woman = Concept("woman", "a woman", opposites=("a man",))
    >>> found = in_context(woman, "a doctor")
    >>> found.neutral, found.target, found.opposites
    ('a doctor', 'a female doctor', ('a male doctor',))
    >>> found = in_context(Concept("blood", "a scene", "a scene", "blood", "safety"), "a street")
    >>> found.target, found.negative
    ('a street', 'a street, blood')
    """

    def moved(prompt: str) -> str:
        if prompt in ("", concept.neutral):
            return prompt and context
        return rewritten(context, *rewriting(Concept(concept.name, prompt, concept.neutral)))

    found = replace(
        concept,
        neutral=context,
        target=moved(concept.target),
        negative=moved(concept.negative),
        opposites=tuple(moved(p) for p in concept.opposites),
    )
    said = found.negative if concept.kind == "safety" else found.target
    if context == concept.neutral or said == context:
        raise ValueError(f"contexts holds {context!r}, in which concept {concept.name!r} says nothing new; give another prompt")
    return found


def in_contexts(concept: Concept, contexts: Sequence[str]) -> tuple[Concept, ...]:
    """The concept itself, then in every context."""
    return (concept, *(in_context(concept, text.strip()) for text in contexts))


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
