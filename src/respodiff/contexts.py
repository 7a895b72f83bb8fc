"""Training one concept in several contexts: prompts such as "a doctor", each with targets of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from respodiff.concepts import Concept
from respodiff.methods.prompts import rewriting, rewritten


def in_context(concept: Concept, context: str) -> Concept:
    """The concept with ``context`` as neutral prompt, and its other prompts rewritten into it (`respodiff.methods.prompts`).

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
