"""Which prompts are left as they are: those that state an attribute themselves ("a male nurse"), and those without people ("a red car").

Two questions a prompt: does it draw a person, and does it state the attribute that is to be drawn? Each is answered with yes if the shipped
words say so (`respodiff.generation.prompt_words`), or if a probe of the pipeline's text encoder does (`respodiff.generation.gate_probe`), where that encoder can tell.
A list of words of the user takes the place of both.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from respodiff.generation.gate_encoder import Encoder
from respodiff.generation.gate_probe import Checked, Probe, fitted
from respodiff.generation.gate_prompts import person_examples, stated_examples
from respodiff.generation.plan import Job
from respodiff.generation.prompt_words import Forms, first_of, forms_of, person_in, stated_in
from respodiff.pipelines.loading import model_name
from respodiff.steering.adapter import AnyAdapter, MethodAdapter
from respodiff.steering.module import ConceptModule

PERSON = "person"
Row = AnyAdapter | None | Sequence[AnyAdapter]


@dataclass(frozen=True)
class PromptFilter:
    """The answers for one pipeline.

    Attributes:
        forms: attribute -> how prompts state it. words: the user's own, attribute ("" for any) -> words; empty where the prompt filter is automatic.
        encoder: None where words alone decide. probes: question (an attribute, or `PERSON`) -> probe, those that cannot tell included.
    """

    forms: Mapping[str, Forms]
    words: Mapping[str, Sequence[str]]
    encoder: Encoder | None = None
    probes: Mapping[str, Probe] | None = None

    def checked(self) -> dict[str, Checked]:
        """Question -> how its probe did on prompts left out of the fit."""
        return {name: probe.checked for name, probe in (self.probes or {}).items()}

    def blind(self) -> list[str]:
        """Questions that the text encoder cannot answer: the shipped words alone do."""
        return [name for name in (*self.forms, PERSON) if not self._tells(name)] if not self.words else []

    def why(self, prompts: Sequence[str]) -> list[dict[str, str]]:
        """For each prompt the attributes that are left alone, with the reason; the others are missing."""
        if self.words:
            return [self._by_words(prompt) for prompt in prompts]
        read: Sequence[tuple[list[int], Any]] = self.encoder.read(prompts) if self.encoder else [([], None)] * len(prompts)
        return [self._asked(prompt, ids, states) for prompt, (ids, states) in zip(prompts, read, strict=True)]

    def _by_words(self, prompt: str) -> dict[str, str]:
        out = {}
        for attribute in self.forms:
            if found := first_of(prompt, [*self.words.get(attribute, ()), *self.words.get("", ())]):
                out[attribute] = f"holds {found!r} of the given words"
        return out

    def _asked(self, prompt: str, ids: Sequence[int], states: Any) -> dict[str, str]:
        person = person_in(prompt, guess=not self._tells(PERSON)) or self._seen(PERSON, ids, states)
        out = {}
        for attribute, forms in self.forms.items():
            if not person:
                out[attribute] = f"no person, by {'text encoder' if self._tells(PERSON) else 'words'}"
            elif found := stated_in(prompt, forms):
                out[attribute] = f"states {attribute}: {found!r}, by words"
            elif found := self._seen(attribute, ids, states):
                out[attribute] = f"states {attribute}: {found!r}, by text encoder"
        return out

    def _tells(self, question: str) -> bool:
        return bool(self.probes) and self.probes[question].checked.tells  # type: ignore[index]

    def _seen(self, question: str, ids: Sequence[int], states: Any) -> str:
        """The word at which the probe of a question is surest, if it says yes; nothing otherwise."""
        if not self._tells(question) or self.encoder is None or not len(ids):
            return ""
        scores = answers(self.encoder, self.probes[question], question, ids, states)  # type: ignore[index]
        best = int(scores.argmax())
        return self.encoder.words(ids)[best] if scores[best] > 0 else ""


def answers(encoder: Encoder, probe: Probe, question: str, ids: Sequence[int], states: Any) -> Any:
    """Scores (T,) of the tokens of a prompt, above 0 for yes. A doubt speaks against the prompt filter: pieces of a split word may say that somebody
    is drawn, but not that an attribute is stated."""
    scores = probe.scores(states)
    if question != PERSON:
        scores[~np.array(encoder.alone(ids), dtype=bool)] = -np.inf
    return scores


def make_filter(pipe: Any, entries: Sequence[AnyAdapter], words: Sequence[str] = ()) -> PromptFilter:
    """The prompt filter of a pipeline for the attributes of these modules.

    Probes are fitted on the spot (seconds on a small encoder, a minute or so on a large one without a GPU) and kept in the user's cache folder.

    Args:
        entries: modules and adapters; safety modules are for every prompt and have no prompt filter.
        words: the user's own, as ``word`` or ``attribute:word``; they decide instead of encoder and shipped words.

    Raises:
        ValueError: a word of an attribute that no entry has.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for m in entries:
        if m.header.kind != "safety":
            groups.setdefault(attribute_of(m), []).append((m.header.target, m.header.neutral))
    forms = {name: forms_of(name, alternatives) for name, alternatives in groups.items()}
    if words:
        return PromptFilter(forms, grouped(words, list(forms)))
    if not forms or not hasattr(getattr(getattr(pipe, "text_encoder", None), "config", None), "num_hidden_layers"):
        return PromptFilter(forms, {})
    encoder = Encoder(pipe)
    questions = {PERSON: person_examples(), **{name: stated_examples(f) for name, f in forms.items()}}
    return PromptFilter(forms, {}, encoder, {name: fitted(encoder, e, name != PERSON) for name, e in questions.items()})


def attribute_of(entry: AnyAdapter) -> str:
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


def filter_explicit(pipe: Any, prompts: Sequence[str], entries: AnyAdapter | Sequence[Row], words: Sequence[str] = ()) -> list[Row]:
    """Entries for `steer` or `applied`, with None where the prompt filter leaves a prompt as it is; safety modules stay.

    Args:
        prompts: as the pipeline is called with them. entries: one module for all, or one entry per final image
            (``len(prompts) * num_images_per_prompt``). words: as `make_filter`.

    Example::

        prompts = ["a doctor", "a male nurse"]
        with steer(pipe, gated(pipe, prompts, woman)):
            images = pipe(prompts).images
    """
    if isinstance(prompts, str):
        raise ValueError(f"prompts is the text {prompts!r}; give a list of prompts")
    single = ConceptModule | MethodAdapter
    rows: list[Row] = [entries] * len(prompts) if isinstance(entries, single) else list(entries)
    if not prompts or len(rows) % len(prompts):
        raise ValueError(f"{len(rows)} entries for {len(prompts)} prompts; give one entry per image (prompts x num_images_per_prompt)")
    held = [(row,) if isinstance(row, single) else tuple(row or ()) for row in rows]
    prompt_filter = make_filter(pipe, [m for row in held for m in row], words)
    reasons = prompt_filter.why(prompts)
    out: list[Row] = []
    for i, (row, before) in enumerate(zip(held, rows, strict=True)):
        why = reasons[i // (len(rows) // len(prompts))]
        kept = tuple(m for m in row if m.header.kind == "safety" or attribute_of(m) not in why)
        out.append(None if not kept else before if kept == row else kept)
    return out


def filter_jobs(pipe: Any, jobs: Sequence[Job], entries: Sequence[AnyAdapter], prompt_filter: bool | Sequence[str]) -> list[Job]:
    """The jobs of a run without the concepts that the prompt filter takes out, and with the reasons; warns where the text encoder cannot tell.

    Args:
        prompt_filter: of `respodiff.generation.config.GenerateConfig`.
    """
    if not prompt_filter or all(m.header.kind == "safety" for m in entries):
        return list(jobs)
    made = make_filter(pipe, entries, () if isinstance(prompt_filter, bool) else prompt_filter)
    whole = {attribute_of(m) for m in entries if m.header.kind == "attribute"}
    texts = list(dict.fromkeys(job.prompt.text for job in jobs))
    reasons = dict(zip(texts, made.why(texts), strict=True))
    if blind := made.blind():
        warnings.warn(
            f"the text encoder of {model_name(pipe)!r} cannot tell {', '.join(blind)}: the prompt filter goes by its own word list there, "
            "which misses words that are not in it; give your own with skip_explicit_prompts=[...] (--explicit-words)",
            stacklevel=4,
        )
    out = []
    for job in jobs:
        why = {a: text for a, text in reasons[job.prompt.text].items() if a in job.concepts or a in whole}
        out.append(replace(job, concepts={a: c for a, c in job.concepts.items() if a not in why}, skipped_attributes=why))
    return out
