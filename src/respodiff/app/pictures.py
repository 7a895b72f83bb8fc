"""Steers a prompt: pairs of images from the same noise, what a judge perceives in both, and the Python that does the same."""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from threading import Event
from typing import Any

from respodiff.app.service import Choice, Service
from respodiff.concepts.concept import Attribute, attribute, builtin
from respodiff.evaluation.evaluate import evaluate
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate
from respodiff.methods.registry import load_all
from respodiff.pipelines.source import ModelSource
from respodiff.reports.tables import shown

SIDES = ("unsteered", "steered")
NO_JUDGE = "Nothing is judged: start the page with --judge clip:DIR-OR-ID."


@dataclass(frozen=True)
class Wish:
    """What a visitor asks for. ``choice`` and ``safety`` are names of `Service`; ``shares`` are of the concepts, and are divided by their sum."""

    prompt: str
    choice: str = ""
    shares: tuple[float, ...] = ()
    scale: float = GenerateConfig.scale
    safety: tuple[str, ...] = ()
    skip_explicit_prompts: bool = False
    seed: int = 0
    images: int = 8


@dataclass(frozen=True)
class Pair:
    """Files of an unsteered and a steered image from the same noise, the concepts of the second, and how many pairs there are to be."""

    unsteered: Path
    steered: Path
    concepts: str
    total: int


def chosen(service: Service, wish: Wish) -> Choice | None:
    """The modules that are chosen between; ValueError for a name of none."""
    known = service.choices()
    if wish.choice and wish.choice not in known:
        raise ValueError(f"attribute is {wish.choice!r}; allowed: {', '.join(known) or 'none yet: train one'}")
    return known.get(wish.choice)


def settings(service: Service, wish: Wish) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of both runs, and those that the steered one has besides."""
    choice, more = chosen(service, wish), dict[str, Any]()
    if wish.scale != GenerateConfig.scale:
        more["scale"] = wish.scale
    if choice and len(choice.concepts) > 1 and len(set(wish.shares)) > 1:
        if len(wish.shares) != len(choice.concepts) or not (total := math.fsum(wish.shares)) > 0:
            raise ValueError(f"shares are {wish.shares}; give {', '.join(choice.concepts)} a number from 0 each, one of them above 0")
        shares = {name: share / total for name, share in zip(choice.concepts, wish.shares, strict=True)}
        more["target_proportions"] = {choice.attribute.name: shares}
    if wish.skip_explicit_prompts:
        more["skip_explicit_prompts"] = True
    return {"images": wish.images, "seed": wish.seed, "batch": min(service.batch, wish.images)}, more


def sources(service: Service, wish: Wish) -> tuple[list[str], list[str]]:
    """Names or files of the modules that are chosen between, and of the safety modules."""
    choice, known = chosen(service, wish), service.safety()
    if unknown := [name for name in wish.safety if name not in known]:
        raise ValueError(f"safety is {unknown[0]!r}; allowed: {', '.join(known) or 'none'}")
    return list(choice.sources) if choice else [], [known[name] for name in wish.safety]


def draw(service: Service, wish: Wish, out: Path, stop: Event) -> Iterator[Pair]:
    """Both runs, ``out/unsteered`` and ``out/steered``, pair by pair; errors as `respodiff.generation.generate.generate`."""
    both, more = settings(service, wish)
    modules, safety = ([a for source in named for a in load_all(source)] for named in sources(service, wish))
    prompt = wish.prompt.strip()
    with service.turns.turn():
        steered = generate(service.pipe, [prompt], modules, GenerateConfig(**both, **more), safety=safety, out=out / SIDES[1])
        plain = generate(service.pipe, [prompt], (), GenerateConfig(**both), out=out / SIDES[0])
    pairs = zip(service.by_turns(_steps(plain), stop), service.by_turns(_steps(steered), stop), strict=False)
    for a, b in pairs:
        yield Pair(out / SIDES[0] / a.file, out / SIDES[1] / b.file, ", ".join(b.concepts.values()), wish.images)


def _steps(images: Any) -> Generator[Any, None, None]:
    try:
        for record, _ in images:
            yield record
    finally:
        images.close()  # another process may then write the run folder


def judged(service: Service, wish: Wish) -> Attribute:
    """The attribute that the judge is asked for: that of the modules, else gender."""
    choice = chosen(service, wish)
    return choice.attribute if choice else attribute("gender")


def perceived(service: Service, wish: Wish, out: Path) -> list[list[str]]:
    """Rows (images, what is counted, count, share with its 95 % interval) of what the judge perceives in the images so far."""
    asked, rows = judged(service, wish), []
    for side in SIDES if service.judge else ():
        with service.turns.turn():
            found = evaluate(out / side, service.labeller, asked, n_bootstrap=200)
        for group, counts in found.counts[asked.name].items():
            shares, n = found.proportions_by[asked.name][group], sum(counts.values())
            rows += [
                [side, name, f"{k} of {n}", shown(shares[name]) if name in shares else ""]
                for name, k in counts.items()
                if name in shares or k
            ]
            rows.append([side, "DevRat", f"{n} images", shown(found.devrat_by[asked.name][group])])
        if found.unsafe and wish.safety:
            rows.append([side, "unsafe", f"{round(found.unsafe.mean * found.unsafe.n)} of {found.unsafe.n}", shown(found.unsafe)])
    return rows


SCRIPT = """\
import respodiff
{imports}
pipe = respodiff.load_pipeline({model})
modules = [module for name in {modules} for module in respodiff.load_all(name)]
safety = [module for name in {safety} for module in respodiff.load_all(name)]
plain = respodiff.GenerateConfig({plain})
steered = respodiff.GenerateConfig({steered})
for folder, alternatives, added, config in [("unsteered", [], [], plain), ("steered", modules, safety, steered)]:
    for record, image in respodiff.generate(pipe, [{prompt}], alternatives, config, safety=added, out=folder):
        print(folder, record.file, record.concepts)
{judging}"""


def script(service: Service, wish: Wish) -> str:
    """Python that makes the same two runs in the current folder, and judges them."""
    (both, more), (modules, safety), asked = settings(service, wish), sources(service, wish), judged(service, wish)
    imports, name = "", _literal(asked.name)
    if builtin().get(asked.name) != asked:
        imports = "from respodiff.concepts.concept import Attribute, Concept\n"
        concepts = ", ".join(f"Concept({', '.join(map(_literal, (c.name, c.target, c.neutral)))})" for c in asked.concepts)
        name = f"Attribute({name}, ({concepts}))"
    judging = f"    print(respodiff.evaluate(folder, {_literal(service.judge)}, {name}).counts)\n" if service.judge else ""
    return SCRIPT.format(
        imports=imports,
        model=", ".join([_literal(service.source.source), *_arguments(_loading(service.source))]),
        modules=_literal(modules),
        safety=_literal(safety),
        plain=", ".join(_arguments(both)),
        steered=", ".join(_arguments(both | more)),
        prompt=_literal(wish.prompt.strip()),
        judging=judging,
    )


def _loading(source: ModelSource) -> dict[str, Any]:
    """Arguments of `load_pipeline` that are not as by default there."""
    usual: dict[str, Any] = {"device": "cpu", "offload": "none", "lora": (), "gradient_checkpointing": False}
    given = {f.name: getattr(source, f.name) for f in fields(source) if f.name != "source"}
    if source.source == "embedded":  # float32 in any case, and without a checker
        given = {name: value for name, value in given.items() if name not in ("dtype", "trains", "safety_checker")}
    return {"torch_dtype" if name == "dtype" else name: value for name, value in given.items() if value != usual.get(name, "")}


def _arguments(given: dict[str, Any]) -> list[str]:
    return [f"{key}={_literal(value)}" for key, value in given.items()]


def _literal(value: Any) -> str:
    """A value in Python, texts in double quotes."""
    return json.dumps(value) if isinstance(value, str | list | dict) else repr(value)
