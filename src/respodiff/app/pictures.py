"""Steers a prompt: pairs of images from the same noise, what a judge perceives in both, and the Python that does the same."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any

from respodiff.app.service import ZIPS, Choice, Service
from respodiff.concepts.concept import Attribute, builtin
from respodiff.data.records import ImageRecord
from respodiff.data.run_folder import write_atomic
from respodiff.evaluation.evaluate import judge_all
from respodiff.evaluation.judges import UNKNOWN
from respodiff.evaluation.metrics.shares import wilson
from respodiff.evaluation.registry import Settings
from respodiff.evaluation.scored_run import ScoredRun
from respodiff.evaluation.summary import summarise
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate
from respodiff.methods.registry import load_all
from respodiff.pipelines.source import ModelSource
from respodiff.reports.images import asked_and_seen
from respodiff.reports.tables import Cell

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
    """Files of an unsteered and a steered image from the same noise, and the concepts that were asked for in the second."""

    unsteered: Path
    steered: Path
    asked: str


@dataclass(frozen=True)
class Seen:
    """What a judge perceives so far.

    Attributes:
        captions: side -> file of an image -> what is seen in it, and what was asked for where that differs.
        rows: what is counted, then for each of `SIDES` the count and its share with a 95 % interval.
        devrat: a line for each side; n: images of a side. Both sides are measured against the wanted shares.
    """

    captions: dict[str, dict[Path, str]] = field(default_factory=dict)
    rows: list[dict[str, Cell]] = field(default_factory=list)
    devrat: str = ""
    n: int = 0


def chosen(service: Service, wish: Wish) -> Choice | None:
    """The modules that are chosen between; ValueError for a name of none."""
    known = service.choices()
    if wish.choice and wish.choice not in known:
        raise ValueError(f"attribute is {wish.choice!r}; allowed: {', '.join(known) or 'none yet: train one'}")
    return known.get(wish.choice)


def shares(service: Service, wish: Wish) -> dict[str, float]:
    """Concept -> wanted share; that of a concept alone is 1. None without concepts. ValueError for shares that are no shares."""
    if not (choice := chosen(service, wish)) or not choice.concepts:
        return {}
    given = (len(choice.concepts) > 1 and wish.shares) or (1.0,) * len(choice.concepts)
    if len(given) != len(choice.concepts) or min(given) < 0 or not (total := math.fsum(given)) > 0:
        raise ValueError(f"shares are {given}; give {', '.join(choice.concepts)} a number from 0 each, one of them above 0")
    return {name: share / total for name, share in zip(choice.concepts, given, strict=True)}


def asked(service: Service, wish: Wish) -> str:
    """The wanted shares in words; empty without any."""
    return ", ".join(f"{share:.0%} {name}".replace("%", " %") for name, share in shares(service, wish).items())


def settings(service: Service, wish: Wish) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of both runs, and those that the steered one has besides."""
    choice, wanted, more = chosen(service, wish), shares(service, wish), dict[str, Any]()
    if not wish.prompt.strip():
        raise ValueError("the prompt is empty; enter one")
    if wish.scale != GenerateConfig.scale:
        more["scale"] = wish.scale
    if choice and len(set(wanted.values())) > 1:
        more["target_proportions"] = {choice.attribute.name: wanted}
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
    """Both runs, ``out/unsteered`` and ``out/steered``, pair by pair; errors as `respodiff.generation.generate.generate`.

    A stop counts between two batches, so that both sides hold the same images. Without a pair, ``out`` is removed.
    """
    both, more = settings(service, wish)
    pairs, prompt = 0, wish.prompt.strip()
    with ExitStack() as held:
        held.callback(lambda: None if pairs else shutil.rmtree(out))
        modules, safety = ([a for source in named for a in load_all(source)] for named in sources(service, wish))
        with service.turns.turn():
            steered = generate(service.pipe, [prompt], modules, GenerateConfig(**both, **more), safety=safety, out=out / SIDES[1])
            held.callback(steered.close)
            plain = generate(service.pipe, [prompt], (), GenerateConfig(**both), out=out / SIDES[0])
            held.callback(plain.close)
        a = held.enter_context(closing(service.by_turns(_batches(plain, both["batch"]), stop)))
        b = held.enter_context(
            closing(service.by_turns(_batches(steered, both["batch"]), Event()))
        )  # ends after the side it is compared with
        for left, right in zip(a, b, strict=False):
            for x, y in zip(left, right, strict=True):
                pairs += 1
                yield Pair(out / SIDES[0] / x.file, out / SIDES[1] / y.file, ", ".join(y.concepts.values()))


def _batches(images: Any, most: int) -> Generator[list[ImageRecord], None, None]:
    """The records of each batch that is drawn."""
    try:
        while batch := [record for record, _ in islice(images, most)]:
            yield batch
    finally:
        images.close()  # another process may then write the run folder


def perceived(service: Service, wish: Wish, out: Path) -> Seen:
    """What the judge perceives in the images so far: the attribute of the modules, and whether images are unsafe if that is kept out."""
    choice = chosen(service, wish)
    if not service.judge or not (choice or wish.safety):
        return Seen()
    wanted, attributes, runs = shares(service, wish), list[Attribute](), list[ScoredRun]()
    if choice:
        proportions = tuple(wanted.get(name, 0.0) for name in choice.attribute.names) if wanted else ()
        attributes.append(replace(choice.attribute, proportions=proportions))  # of the unsteered run too, so that one target is for both
    for side in SIDES:
        with service.turns.turn():
            runs.append(judge_all(out / side, service.labeller, attributes).only([a.name for a in attributes]))
    found = [summarise(run, Settings(n_bootstrap=200)) for run in runs]
    counted: dict[str, list[tuple[int, int]]] = {}
    for run, summary in zip(runs, found, strict=True):
        for name in run.attributes:
            labels = run.labels(name)
            known = len(labels) - labels.count(UNKNOWN)
            for concept in (*run.attributes[name], UNKNOWN):
                counted.setdefault(concept, []).append((labels.count(concept), len(labels) if concept == UNKNOWN else known))
        if wish.safety and summary.unsafe:
            counted.setdefault("unsafe", []).append((round(summary.unsafe.mean * summary.unsafe.n), summary.unsafe.n))
    rows: list[dict[str, Cell]] = [
        {"seen": name, **dict(zip(SIDES, (_counted(*count) for count in counts), strict=True))}
        for name, counts in counted.items()
        if name != UNKNOWN or any(k for k, _ in counts)
    ]
    values = [value for summary in found for value in summary.devrat.values() if value]
    devrat = ", ".join(f"{side} {value.mean:.2f}" for side, value in zip(SIDES, values, strict=False)) if len(values) == len(SIDES) else ""
    return Seen({side: _captions(run) for side, run in zip(SIDES, runs, strict=True)}, rows, devrat, len(runs[0].records))


def _counted(k: int, n: int) -> str:
    """A count as a share: "5 of 8: 63 % [31, 86]"."""
    if not n:
        return "-"
    share = wilson(k, n)
    return f"{k} of {n}: {100 * share.mean:.0f} % [{100 * share.low:.0f}, {100 * share.high:.0f}]"


def _captions(run: ScoredRun) -> dict[Path, str]:
    found = {}
    for record, score in zip(run.records, run.scores, strict=True):
        asked, seen = ", ".join(record.concepts.values()), ", ".join(score.labels[name] for name in run.attributes if name in score.labels)
        found[run.folder / record.file] = score.problem or asked_and_seen(asked, seen)
    return found


SCRIPT = """\
import respodiff
{imports}
pipe = respodiff.load_pipeline({model})
modules = [module for name in {modules} for module in respodiff.load_all(name)]
safety = [module for name in {safety} for module in respodiff.load_all(name)]
plain = respodiff.GenerateConfig({plain})
steered = respodiff.GenerateConfig({steered})
for folder, alternatives, added, config in [("unsteered", [], [], plain), ("steered", modules, safety, steered)]:
    images = respodiff.generate(pipe, [{prompt}], alternatives, config, safety=added, out=folder)
    for record, image in {images}:
        print(folder, record.file, record.concepts)
{judging}"""


def script(service: Service, wish: Wish, made: int = 0) -> str:
    """Python that makes the same two runs in the current folder, and judges them; of runs that were stopped the first ``made`` images."""
    (both, more), (modules, safety), choice = settings(service, wish), sources(service, wish), chosen(service, wish)
    imports, judging, images = "", "", "images"
    if choice:
        name = _literal(choice.attribute.name)
        if builtin().get(choice.attribute.name) != choice.attribute:
            imports = "from respodiff.concepts.concept import Attribute, Concept\n"
            concepts = ", ".join(f"Concept({', '.join(map(_literal, (c.name, c.target, c.neutral)))})" for c in choice.attribute.concepts)
            name = f"Attribute({name}, ({concepts}))"
        judging = f"    print(respodiff.evaluate(folder, {_literal(service.judge)}, {name}).counts)\n"
    elif wish.safety:
        judging = f"    print(respodiff.evaluate(folder, {_literal(service.judge)}).unsafe)\n"
    if made and made < wish.images:  # the number of images decides who gets which concept, so it stays
        imports, images = f"from itertools import islice\n{imports}", f"islice(images, {made})"
    return SCRIPT.format(
        imports=imports,
        model=", ".join([_literal(service.source.source), *_arguments(_loading(service.source))]),
        modules=_literal(modules),
        safety=_literal(safety),
        plain=", ".join(_arguments(both)),
        steered=", ".join(_arguments(both | more)),
        prompt=_literal(wish.prompt.strip()),
        images=images,
        judging=judging if service.judge else "",
    )


def download(service: Service, wish: Wish, out: Path, made: int) -> tuple[Path, Path]:
    """(zip of the folder, Python that makes it), both named after the folder; the zip holds the Python too."""
    code = out / f"{out.name}.py"
    write_atomic(code, script(service, wish, made))
    zips = service.out / ZIPS
    zips.mkdir(parents=True, exist_ok=True)
    return Path(shutil.make_archive(str(zips / out.name), "zip", out.parent, out.name)), code


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
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | list | dict) else repr(value)
