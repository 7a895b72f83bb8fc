"""The prompt filter, measured: on phrases that no fit has seen, and on images of prompts that state an attribute. Fills docs/using.md.

python -m benchmarks.gate                                   (a minute; text alone, the embedded model's encoder)
python -m benchmarks.gate --model DIR-OR-ID                 (the same for another pipeline, such as Stable Diffusion)
python -m benchmarks.gate --images --out runs/gate        (about 15 minutes; needs the modules of benchmarks.beyond)
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import respodiff
from benchmarks.gate_phrases import NOBODY, OTHER_WORDS, STATING, TEMPLATES, UNLISTED_PEOPLE
from benchmarks.main_job import DOCS, say
from benchmarks.tables import fill, interval, table
from respodiff.concepts.concept import attribute
from respodiff.concepts.prompt_editing import article
from respodiff.data.prompt_sets import suite
from respodiff.data.run_folder import RunFolder
from respodiff.evaluation.evaluate import judge_all
from respodiff.evaluation.metrics.fairness import wilson
from respodiff.evaluation.statistics import Settings, share, show
from respodiff.experiments.plan import stated_prompts
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate
from respodiff.generation.prompt_filter import PERSON, PromptFilter, answers, make_filter
from respodiff.generation.prompt_words import lists
from respodiff.pipelines.loading import load_pipeline, model_name, weights_digest
from respodiff.steering.adapter import MethodAdapter
from respodiff.steering.module import Header, load

RESULTS = DOCS / "results" / "gate.json"
PER_PAIR = 2  # templates for each pair of occupation and wording
IMAGES: dict[str, tuple[str, tuple[str, ...], int]] = {
    "gender stated": ("gender", ("woman", "man"), 4),
    "tone stated": ("tone", ("light", "medium", "dark"), 2),
}
"""Kind of prompts -> attribute, its modules, and images a prompt. Things are drawn by `benchmarks.beyond`."""


@dataclass(frozen=True)
class Phrases:
    """Prompts of one kind, and whether an attribute should be left alone in them."""

    what: str
    attribute: str
    gated: bool
    texts: tuple[str, ...]


def phrases() -> Iterator[Phrases]:
    """All kinds, each for every attribute that it says something about."""
    people = [p.group for p in suite("occupations")]
    fit = {*lists()["things"], *(f"{a} {t}" for t in lists()["things"] for a in lists()["thing_adjectives"])}
    things = tuple(
        dressed(p.text, 3 * i + j) for i, p in enumerate(suite("general")) if p.text.partition(" ")[2] not in fit for j in range(2)
    )
    for name, kinds in STATING.items():
        for kind, forms in kinds.items():
            yield Phrases(f"states {name}, {kind}", name, True, worded(people, forms))
        yield Phrases("people, nothing else said", name, False, tuple(t.format(article(p)) for p in people for t in TEMPLATES))
        yield Phrases("people not listed", name, False, tuple(t.format(article(p)) for p in UNLISTED_PEOPLE for t in TEMPLATES))
        yield Phrases("people, other things said", name, False, worded(people, OTHER_WORDS))
        other = next(n for n in STATING if n != name)
        yield Phrases(f"people, {other} stated", name, False, worded(people, STATING[other]["words of the fit"]))
        yield Phrases("no people, mixed", name, True, tuple(dressed(t, i + 4 * j) for i, t in enumerate(NOBODY) for j in range(4)))
        yield Phrases("no people, things of the embedded model", name, True, things)


def worded(people: Sequence[str], forms: Sequence[str]) -> tuple[str, ...]:
    """Every form of words with every occupation (a form without one as often), in templates by turns."""
    pairs = [(person, form) for person in people for form in forms]
    return tuple(
        TEMPLATES[(7 * i + j) % len(TEMPLATES)].format(said(form, person))
        for i, (person, form) in enumerate(pairs)
        for j in range(PER_PAIR)
    )


def said(form: str, person: str) -> str:
    """A noun phrase with its article.

    >>> said("male {}", "analyst"), said("gentlemen", "analyst"), said("{} with dark skin", "analyst")
    ('a male analyst', 'gentlemen', 'an analyst with dark skin')
    """
    text = form.format(person)
    return text if text in ("gentlemen", "ladies") else article(text)


def dressed(text: str, i: int) -> str:
    """A prompt as it is, or in a template, by turns."""
    return (text, *(t.format(text) for t in TEMPLATES))[i % (len(TEMPLATES) + 1)]


def by_encoder(prompt_filter: PromptFilter) -> Callable[[Sequence[str], str], list[bool]]:
    """The prompt filter's answers if its probes alone were asked, whether or not the encoder can tell."""

    def ask(texts: Sequence[str], name: str) -> list[bool]:
        if prompt_filter.encoder is None or prompt_filter.probes is None:
            return []
        asked = (PERSON, name)
        if any(len(prompt_filter.probes[q].weights) == 0 for q in asked):
            return []
        found = [
            [bool((answers(prompt_filter.encoder, prompt_filter.probes[q], q, *read) > 0).any()) for q in asked]
            for read in prompt_filter.encoder.read(texts)
        ]
        return [stated or not person for person, stated in found]

    return ask


def text_rows(pipe: Any) -> dict[str, Any]:
    """Every kind of phrases by the prompt filter, by words alone and by the encoder alone: share that is left unsteered, with Wilson's interval."""
    entries = [MethodAdapter(Header.of(c, method="prompt", site="")) for name in STATING for c in attribute(name).concepts]
    prompt_filter = make_filter(pipe, entries)
    words, probes = PromptFilter(prompt_filter.forms, {}), by_encoder(prompt_filter)
    rows = []
    for p in phrases():
        asked: dict[str, list[bool]] = {
            "gate": [p.attribute in why for why in prompt_filter.why(p.texts)],
            "words": [p.attribute in why for why in words.why(p.texts)],
            "encoder": probes(p.texts, p.attribute),
        }
        row: dict[str, Any] = {"what": p.what, "attribute": p.attribute, "should_be_gated": p.gated, "n": len(p.texts)}
        row |= {how: show(wilson(sum(hits), len(hits))) if hits else None for how, hits in asked.items()}
        row["wrong"] = [t for t, hit in zip(p.texts, asked["gate"], strict=True) if hit != p.gated][:8]
        rows.append(row)
        say(f"{p.attribute}: {p.what}: left unsteered {interval(row['gate'])} of {row['n']}, should be {p.gated}")
    checked = {name: vars(c) | {"tells": c.tells} for name, c in prompt_filter.checked().items()}
    return {"model": model_name(pipe), "text_encoder": weights_digest(pipe.text_encoder), "checked": checked, "rows": rows}


def image_rows(modules: Path, out: Path) -> dict[str, Any]:
    """Stated prompts, with the prompt filter off and on, on the same noise; the embedded judge's labels."""
    pipe, people, found = load_pipeline("embedded"), suite("occupations"), dict[str, Any]()
    for part, (name, concepts, images) in IMAGES.items():
        used = [load(modules / f"{concept}.safetensors") for concept in concepts]
        prompts = stated_prompts(people, attribute(name).concepts)
        for setting, steered, prompt_filter in (("plain", [], False), ("off", used, False), ("on", used, True)):
            folder = out / f"{part}-{setting}"
            for _ in generate(pipe, prompts, steered, GenerateConfig(images=images, skip_explicit_prompts=prompt_filter), out=folder):
                pass
            run = judge_all(folder, "embedded", [name])
            pairs = [(r, s) for r, s in zip(run.records, run.scores, strict=True) if s.problem is None]
            row: dict[str, Any] = {
                "n": len(pairs),
                "skipped_attributes": sum(bool(r.skipped_attributes) for r, _ in pairs),
                "modules": [m.digest for m in steered],
            }
            row["kept"] = share([(r, s.labels[name] == r.categories[0]) for r, s in pairs], Settings())
            row["as_plain"] = show(wilson(same(folder, out / f"{part}-plain"), len(pairs)))
            found[f"{part}-{setting}"] = row
            say(f"{part}, prompt filter {setting}: {row}")
    return found


def same(a: Path, b: Path) -> int:
    """How many images of two runs are the same file."""
    other = {r.id: r.digest for r in RunFolder(b).records()}
    return sum(r.digest == other.get(r.id) for r in RunFolder(a).records())


def publish(found: dict[str, Any]) -> None:
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    parts = []
    for m in found["models"].values():
        lines = [
            [
                r["attribute"],
                r["what"],
                "yes" if r["should_be_gated"] else "no",
                str(r["n"]),
                *(interval(r[k]) for k in ("gate", "words", "encoder")),
            ]
            for r in m["rows"]
        ]
        told = "; ".join(
            f"{q}: yes {c['known']:.2f}, yes by words left out {format(c['new'], '.2f') if c['n'][1] else '-'}, no {c['no']:.2f} "
            f"(n = {', '.join(map(str, c['n']))}), {'can' if c['tells'] else 'cannot'} tell"
            for q, c in m["checked"].items()
        )
        head = ["prompt filter of", "prompts", "to be left unsteered", "n", "skipped_attributes", "by words alone", "by the encoder alone"]
        parts.append(f"Text encoder of `{m['model']}`, share of left-out prompts answered rightly: {told}.\n\n{table(head, lines)}")
    fill(DOCS / "using.md", "gate", "\n".join(parts))
    if images := found.get("images"):
        rows = [
            [
                k.replace("-", ", prompt filter ").replace("prompt filter plain", "plain model"),
                str(r["n"]),
                str(r["skipped_attributes"]),
                interval(r.get("kept")),
                interval(r["as_plain"]),
            ]
            for k, r in images.items()
            if isinstance(r, dict)
        ]
        head = ["prompts", "n", "skipped_attributes", "judge sees what is stated", "image is the plain model's"]
        fill(DOCS / "using.md", "prompt filter-images", table(head, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--images", action="store_true")
    parser.add_argument("--modules", type=Path, default=Path("runs/beyond/modules"))
    parser.add_argument("--out", type=Path, default=Path("runs/gate"))
    arguments = parser.parse_args()
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"models": {}}
    found |= {"command": "python -m benchmarks.gate", "library": respodiff.__version__, "torch": torch.__version__}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if arguments.images:
            found["images"] = image_rows(arguments.modules, arguments.out)
        else:
            found["models"][Path(arguments.model).name] = text_rows(load_pipeline(arguments.model))
    publish(found)


if __name__ == "__main__":
    main()
