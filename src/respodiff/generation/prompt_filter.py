"""Leaves prompts as they are that state an attribute themselves ("a male nurse"), or that draw no person ("a red car").

The shipped words (`respodiff.generation.prompt_words`) decide, or a list of words of the user in their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from respodiff.generation.plan import Job
from respodiff.generation.prompt_words import first_of, forms_of, person_in, stated_in
from respodiff.steering.adapter import Adapter, AdaptersPerImage, Row


def reasons(prompts: Sequence[str], entries: Sequence[Adapter], words: Sequence[str] = ()) -> list[dict[str, str]]:
    """For each prompt the attributes of the entries that are left alone, each with the reason; the others are missing.

    Args:
        entries: modules and adapters. Safety modules are for every prompt.
        words: the user's own, as ``word`` or ``attribute:word``; they decide in place of the shipped words.

    Raises:
        ValueError: a word of an attribute that no entry has.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for m in entries:
        if m.header.kind != "safety":
            groups.setdefault(attribute_of(m), []).append((m.header.target, m.header.neutral))
    if words:
        given = grouped(words, list(groups))
        found = {a: [first_of(p, [*given.get(a, ()), *given.get("", ())]) for p in prompts] for a in groups}
        return [{a: f"holds {held[i]!r} of the given words" for a, held in found.items() if held[i]} for i in range(len(prompts))]
    forms = {name: forms_of(name, alternatives) for name, alternatives in groups.items()}
    out = []
    for prompt in prompts:
        if not person_in(prompt):
            out.append(dict.fromkeys(forms, "no person"))
        else:
            stated = {a: stated_in(prompt, f) for a, f in forms.items()}
            out.append({a: f"states {a}: {word!r}" for a, word in stated.items() if word})
    return out


def attribute_of(entry: Adapter) -> str:
    """The attribute that a module is drawn for, as `respodiff.generation.generate.by_attribute` has it."""
    return entry.header.attribute or "concept"


def grouped(words: Sequence[str], attributes: Sequence[str]) -> dict[str, list[str]]:
    """``word`` or ``attribute:word`` by attribute, "" for words of any.

    >>> grouped(["male", "tone: dark skin"], ["gender", "tone"])
    {'': ['male'], 'tone': ['dark skin']}
    """
    out: dict[str, list[str]] = {}
    for word in words:
        name, colon, rest = word.partition(":")
        if colon and name.strip() not in attributes:
            raise ValueError(f"word {word!r} is of attribute {name.strip()!r}, which no module has; allowed: {', '.join(attributes)}")
        if text := (rest if colon else word).strip():
            out.setdefault(name.strip() if colon else "", []).append(text)
    return out


def read_words(text: str) -> list[str]:
    """Words of a file, one a line (``#`` begins a comment), or of a list with commas.

    Raises:
        ValueError: none is given, or the file is not text.
    """
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


def filter_explicit(prompts: Sequence[str], entries: Adapter | Sequence[Row], words: Sequence[str] = ()) -> list[Row]:
    """Entries for `steer`, with None where a prompt is left as it is; safety modules stay.

    Args:
        prompts: as the pipeline is called with them.
        entries: one module for all, or one entry per final image (``len(prompts) * num_images_per_prompt``).
        words: as `reasons`.

    Raises:
        ValueError: another number of entries, or a word of an attribute that no entry has.

    Example::

        prompts = ["a doctor", "a male nurse"]
        with steer(pipe, filter_explicit(prompts, woman)):
            images = pipe(prompts).images
    """
    if isinstance(prompts, str):
        raise ValueError(f"prompts is the text {prompts!r}; give a list of prompts")
    rows: list[Row] = [entries] * len(prompts) if isinstance(entries, Adapter) else list(entries)
    if not prompts or len(rows) % len(prompts):
        raise ValueError(f"{len(rows)} entries for {len(prompts)} prompts; give one entry per image (prompts x num_images_per_prompt)")
    held = AdaptersPerImage.of(rows).rows
    why = reasons(prompts, [m for row in held for m in row], words)
    out: list[Row] = []
    for i, (row, before) in enumerate(zip(held, rows, strict=True)):
        left = why[i // (len(rows) // len(prompts))]
        kept = tuple(m for m in row if m.header.kind == "safety" or attribute_of(m) not in left)
        out.append(None if not kept else before if kept == row else kept)
    return out


def filter_jobs(jobs: Sequence[Job], entries: Sequence[Adapter], prompt_filter: bool | Sequence[str]) -> list[Job]:
    """The jobs of a run without the concepts of attributes that are left alone, and with the reasons.

    Args:
        prompt_filter: of `respodiff.generation.config.GenerateConfig`.
    """
    if not prompt_filter:
        return list(jobs)
    whole = {attribute_of(m) for m in entries if m.header.kind == "attribute"}
    texts = list(dict.fromkeys(job.prompt.text for job in jobs))
    found = dict(zip(texts, reasons(texts, entries, () if isinstance(prompt_filter, bool) else prompt_filter), strict=True))
    out = []
    for job in jobs:
        why = {a: text for a, text in found[job.prompt.text].items() if a in job.concepts or a in whole}
        out.append(replace(job, concepts={a: c for a, c in job.concepts.items() if a not in why}, skipped_attributes=why))
    return out
