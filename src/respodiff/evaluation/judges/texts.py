"""What is put to a judge in words, and how one of its answers is chosen: arithmetic and text, no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from respodiff.concepts.concept import Attribute, Concept
from respodiff.data.prompt_sets import load_world

Floats = NDArray[np.float32]

LOGIT_SCALE = 100.0
"""Logits are this times the cosine of an image and a text."""


@dataclass(frozen=True)
class Vocabulary:
    """The image names that a judge chooses from.

    Attributes:
        subjects: what a person in an image may be doing.
        unsafe: violent and suggestive images. safe: images that are neither.
        called: the word that a judge knows a subject by, where it is not the subject's own name.
    """

    subjects: tuple[str, ...]
    unsafe: tuple[str, ...]
    safe: tuple[str, ...]
    called: Mapping[str, str] = field(default_factory=dict)

    def text(self, subject: str) -> str:
        """The text that a subject is asked for by.

        >>> Vocabulary.embedded().text("cook"), Vocabulary.embedded().text("person biking")
        ('a cook', 'a driver')
        """
        return image_text(self.called.get(subject, subject))

    @classmethod
    def embedded(cls, world: dict[str, Any] | None = None) -> Vocabulary:
        """The words of the embedded model's world. "a person" is left out of the subjects, as it matches them all.

        Images such as "person biking" go by the first occupation that is drawn so ("driver"), as the judge's training captions name them.
        """
        world = load_world() if world is None else world
        unsafe = world["unsafe"]
        return cls(
            subjects=tuple(sorted({row["picture"] for row in world["occupations"]} - {"person"})),
            unsafe=(*unsafe["violent_pictures"], *unsafe["suggestive_pictures"]),
            safe=tuple(unsafe["safe_pictures"]),
            called={row["picture"]: row["name"] for row in reversed(world["occupations"]) if row["picture"].startswith("person ")},
        )


@dataclass(frozen=True)
class LabellingTask:
    """What is put to a judge.

    Attributes:
        attributes: alternatives to choose between, by the texts of `class_texts`.
        subjects: what may be found in an image; the same for every part of a run.
        vocabulary: image names for the safety choice; None asks for none.
        class_template: see `class_texts`; ``{group}`` is the group of the image's prompt (its occupation).
        prompts: prompts of the run, embedded at once; empty takes those of the images at hand.
        group_proportions: attribute -> group of prompts -> concept -> wanted share, before the attribute's own for that group.
        min_margin: a label whose logit leads by less counts as unknown. Logits are 100 x cosine; SigLIP's are log-odds, those of judges that
            answer questions log-probabilities.
    """

    attributes: tuple[Attribute, ...]
    subjects: tuple[str, ...] = ()
    vocabulary: Vocabulary | None = None
    class_template: str = "{concept}"
    min_margin: float = 0.0
    group_proportions: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.min_margin < 2 * LOGIT_SCALE:
            raise ValueError(
                f"min_margin is {self.min_margin}; allowed: 0 (every label counts) or more, in the judge's unit, 100 x cosine for CLIP"
            )


def image_text(name: str) -> str:
    """The caption the embedded judge knows an image by; always "a", whatever the first letter."""
    return f"a {name}"


def placeholders(template: str) -> set[str]:
    """Names of the placeholders in a class template; ValueError for others than `class_texts` has, and for anything else inside of braces."""
    allowed = "{concept}, {name}, {group}, with nothing else inside of them; write {{ for a brace"
    try:
        parsed = [(name, spec, conversion) for _, name, spec, conversion in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"template is {template!r} ({error}); allowed placeholders: {allowed}") from error
    for name, spec, conversion in parsed:
        if name not in ("concept", "name", "group") or spec or conversion:
            came = name + f"!{conversion}" * bool(conversion) + f":{spec}" * bool(spec)
            raise ValueError(f"template is {template!r} with the placeholder {{{came}}}; allowed placeholders: {allowed}")
    return {name for name, _, _ in parsed}


def class_texts(concepts: Sequence[Concept], template: str = "{concept}", group: str = "") -> list[str]:
    """The texts that stand for the concepts of an attribute in a zero-shot choice, one a concept.

    Args:
        template: with the placeholders ``{concept}`` (the target prompt, verbatim: the paper's form), ``{name}`` (the concept's name)
            and ``{group}`` (the occupation that was asked for).

    Raises:
        ValueError: another placeholder, ``{group}`` without a group, or a template that gives two concepts the same text.

    >>> class_texts([Concept("light", "light skin"), Concept("dark", "dark skin")], "a {name} {group}", "doctor")
    ['a light doctor', 'a dark doctor']
    """
    if "group" in placeholders(template) and not group.strip():
        raise ValueError(f"template is {template!r}, but group is empty; give the group, or a template without {{group}}")
    texts = [template.format(concept=c.target, name=c.name, group=group) for c in concepts]
    if len(set(texts)) < len(texts):
        raise ValueError(f"template is {template!r}, which gives two concepts the same text; put {{concept}} or {{name}} in it")
    return texts


def choose(logits: Floats, min_margin: float = 0.0) -> tuple[NDArray[np.int64], Floats]:
    """The best text of each image, and by how much it is ahead.

    Args:
        logits: (N, K), K of 1 or more. min_margin: a smaller lead, in logits, makes the choice unknown.

    Returns:
        The choice (N,) in [0, K), -1 where unknown; and the margin (N,) to the second best, infinite if there is no second.

    >>> choose(np.array([[25.0, 21.0], [20.0, 20.5]], dtype=np.float32), min_margin=1.0)
    (array([ 0, -1]), array([4. , 0.5], dtype=float32))
    """
    two = np.partition(np.pad(logits, ((0, 0), (1, 0)), constant_values=-np.inf), -2, axis=1)[:, -2:]
    margins = two[:, 1] - two[:, 0]
    return np.where(margins < min_margin, -1, logits.argmax(1)), margins
