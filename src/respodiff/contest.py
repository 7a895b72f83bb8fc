"""Methods side by side on one model: the same prompts, the same noise, the same judge; one row a method and strength.

Every method is trained or built with its settings, draws the suite into a run folder, and is judged. Artefacts are kept by content (method,
settings, concept, model, version), run folders by name: a killed contest goes on where it was, and a second one only draws what is new.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from respodiff import concepts
from respodiff._version import __version__
from respodiff.adapters import backbone
from respodiff.concepts import Concept
from respodiff.config import GenerateConfig
from respodiff.generation import counted, generate
from respodiff.methods import NAMES
from respodiff.methods.artefact import Entry, load
from respodiff.methods.base import Method, method
from respodiff.pipelines import weights_digest
from respodiff.records import Prompt, RunFolder, write_atomic
from respodiff.suites import suite

FAIRNESS = ("plain", "prompt", "prompt-switch", "sdisc", "slider", "fdf", "bact", "uce", "respodiff", "respodiff-paper")
SAFETY = ("plain", "negative", "sld-weak", "sld-medium", "sld-strong", "sld-max", "esd-x", "esd-u", "uce", "respodiff", "respodiff-paper")
GUESS = 2200
"""UNet sample-forwards that training a concept is taken to need, until its own records say better."""


@dataclass(frozen=True)
class Plan:
    """What is to be compared.

    Attributes:
        suite: ``occupations`` (fairness) or ``unsafe`` (safety), or another suite of prompts of groups.
        methods: names of `respodiff.methods.NAMES`; ``plain`` is drawn in any case, as the baseline.
        attribute: whose alternatives are drawn in exact counts (fairness). safety: concepts that are taken out together (safety).
        images: pictures a prompt. prompts: use so many prompts of the suite, evenly spaced; 0 uses all.
        strengths: factors on what a method makes; a method without a strength is drawn once.
        settings: method -> settings that differ from its defaults.
    """

    suite: str = "occupations"
    methods: tuple[str, ...] = FAIRNESS
    attribute: str = "gender"
    safety: tuple[str, ...] = ("violence", "sexual")
    images: int = 4
    prompts: int = 0
    strengths: tuple[float, ...] = (1.0,)
    steps: int = 20
    guidance: float = 3.0
    seed: int = 0
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := [m for m in self.methods if m not in NAMES]:
            raise ValueError(f"methods has {unknown[0]!r}; allowed: all, {', '.join(NAMES)}")
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods is {', '.join(self.methods) or 'empty'}; give each method once, or 'all'")
        if not self.strengths or min(self.strengths) <= 0:
            raise ValueError(f"strengths is {self.strengths}; allowed: numbers above 0, 1 is as trained")
        if self.images < 1 or self.prompts < 0:
            raise ValueError(f"images is {self.images} and prompts {self.prompts}; allowed: 1 or more, and 0 (all) or more")

    @property
    def kind(self) -> str:
        """``safety`` for suites of unsafe prompts, else ``fairness``."""
        return "safety" if self.suite in ("unsafe", "i2p") else "fairness"

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """What every method is trained for."""
        if self.kind == "safety":
            return tuple(concepts.concept(name) for name in self.safety)
        return concepts.attribute(self.attribute).concepts

    def parts(self) -> dict[str, tuple[list[Prompt], int]]:
        """Part of a run -> prompts and pictures of each: the suite, and what must stay as it is (stated attributes; harmless prompts)."""
        prompts = spaced(suite(self.suite), self.prompts)
        if self.kind == "fairness":
            return {"suite": (prompts, self.images), "stated": (stated_prompts(prompts, self.concepts), max(1, self.images // 2))}
        benign = [*spaced(suite("occupations"), max(1, len(prompts) // 2)), *spaced(suite("general"), max(1, len(prompts) // 2))]
        return {"suite": (prompts, self.images), "benign": (benign, max(1, self.images // 2))}


def spaced(prompts: Sequence[Prompt], n: int) -> list[Prompt]:
    """So many prompts of a suite, evenly spaced in its order; 0 or more than there are gives all.

    >>> [p.text for p in spaced([Prompt(id=t, text=t) for t in "abcdefg"], 3)]
    ['a', 'c', 'e']
    """
    if not n or n >= len(prompts):
        return list(prompts)
    return [prompts[int(i * len(prompts) / n)] for i in range(n)]


def stated_prompts(prompts: Sequence[Prompt], alternatives: Sequence[Concept]) -> list[Prompt]:
    """The suite's prompts with an alternative stated in them, by turns: a method for prompts that state none should leave these alone."""
    from respodiff.methods.prompts import rewriting, rewritten

    out = []
    for i, prompt in enumerate(prompts):
        concept = alternatives[i % len(alternatives)]
        text = rewritten(prompt.text, *rewriting(concept))
        out.append(dataclasses.replace(prompt, id=f"stated/{prompt.group}", text=text, suite="stated", categories=(concept.name,)))
    return out


@dataclass(frozen=True)
class Setting:
    """One row of the table: a method at a strength, and the folders of its runs."""

    method: str
    strength: float
    folder: Path

    @property
    def label(self) -> str:
        """The method's name, with the strength where it is not 1."""
        return self.method if self.strength == 1 else f"{self.method} x{self.strength:g}"


@dataclass(frozen=True)
class Progress:
    """Where a contest is: what is being done, and how many UNet sample-forwards of the (estimated) whole are done."""

    what: str
    done: float
    total: float


class Contest:
    """Trains, draws and keeps everything under one folder; `run` yields its progress.

    Args:
        pipe: diffusers pipeline. plan: what to compare. out: folder of run folders and artefacts.
        classify: concept -> classifier of pictures, for methods that learn from pictures. judge: its digest, part of what an artefact
            depends on. cache: where artefacts are kept; ``out/artefacts`` if not given.
    """

    def __init__(
        self,
        pipe: Any,
        plan: Plan,
        out: str | Path,
        *,
        classify: Callable[[Concept], Any] | None = None,
        judge: str = "",
        cache: str | Path | None = None,
    ) -> None:
        self.pipe, self.plan, self.out = pipe, plan, Path(out)
        self.classify, self.judge = classify, judge
        self.cache = Path(cache) if cache else self.out / "artefacts"
        self.parts = plan.parts()
        self.names = list(dict.fromkeys(["plain", *plan.methods]))
        self.left = {name: self._training_left(name) for name in self.names}
        self.drawing = {s.label: self._pictures_left(s) for s in self.settings()}
        self.done = 0.0

    def settings(self) -> list[Setting]:
        """All rows, the plain model first."""
        rows = []
        for name in self.names:
            strengths = self.plan.strengths if name != "plain" and method(name).scales else (1.0,)
            rows += [Setting(name, s, self.out / "runs" / (name if s == 1 else f"{name}-{s:g}")) for s in strengths]
        return rows

    def run(self) -> Iterator[Progress]:
        """Train and draw what is missing.

        Raises:
            ValueError: a method cannot take the concepts or the pipeline, before anything is drawn with it.
        """
        for name in self.names:
            entries = yield from self._artefacts(name)
            for setting in (s for s in self.settings() if s.method == name):
                for part, (prompts, images) in self.parts.items():
                    yield from self._draw(setting, entries, part, prompts, images)

    # ------------------------------------------------------------ training

    def _artefacts(self, name: str) -> Generator[Progress, None, list[Entry]]:
        made: list[Entry] = []
        if name != "plain":
            for concept in self._trained_for(name):
                made.append((yield from self._artefact(name, concept)))
        return made

    def _trained_for(self, name: str) -> tuple[Concept, ...]:
        """The concepts that a method makes an artefact of; one for a whole attribute where it makes one of all alternatives."""
        chosen = self.plan.concepts
        return chosen[:1] if self.plan.kind in method(name).classifies else chosen

    def _config(self, kind: Method, concept: Concept) -> Any:
        changes = dict(self.plan.settings.get(kind.name, {}))
        if "seed" in {f.name for f in dataclasses.fields(kind.config)}:
            changes.setdefault("seed", self.plan.seed)
        return kind.settings(concept.kind, **changes)

    def path_of(self, name: str, concept: Concept) -> Path:
        """Where an artefact is kept: by all that it depends on."""
        kind = method(name)
        about = {
            "method": name,
            "settings": dataclasses.asdict(self._config(kind, concept)),
            "concept": dataclasses.asdict(concept),
            "model": weights_digest(backbone(self.pipe)),
            "judge": self.judge if concept.kind in kind.classifies else "",
            "library": __version__,
        }
        digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]
        return self.cache / f"{name}-{concept.name}-{digest}.safetensors"

    def _training_left(self, name: str) -> float:
        if name == "plain":
            return 0.0
        return float(GUESS * sum(not self.path_of(name, c).with_suffix(".json").is_file() for c in self._trained_for(name)))

    def _artefact(self, name: str, concept: Concept) -> Generator[Progress, None, Entry]:
        path, kind = self.path_of(name, concept), method(name)
        cost = path.with_suffix(".json")
        if not (path.is_file() and cost.is_file()):
            before, others = self.done, self.left[name] - GUESS
            classify = self.classify(concept) if self.classify and concept.kind in kind.classifies else None
            record = None
            for record in kind.train(self.pipe, concept, self._config(kind, concept), classify=classify):
                whole = record.unet_forwards * record.iterations / max(1, record.iteration)
                self.done, self.left[name] = before + record.unet_forwards, others + max(0.0, whole - record.unet_forwards)
                yield self._progress(f"training {name}: {concept.name}")
            if record is None:
                raise RuntimeError(f"method {name} ended without a record")
            path.parent.mkdir(parents=True, exist_ok=True)
            record.module.save(path)
            write_atomic(cost, json.dumps({"unet_forwards": record.unet_forwards, "seconds": round(record.seconds, 2)}) + "\n")
            self.left[name] = max(0.0, others)
        return load(path)

    def training_cost(self, name: str) -> dict[str, float]:
        """UNet sample-forwards and seconds of all artefacts of a method."""
        total = {"unet_forwards": 0.0, "seconds": 0.0}
        for concept in self._trained_for(name) if name != "plain" else ():
            found = json.loads(self.path_of(name, concept).with_suffix(".json").read_text(encoding="utf-8"))
            total = {k: total[k] + found[k] for k in total}
        return total

    # ------------------------------------------------------------ drawing

    def _pictures_left(self, setting: Setting) -> float:
        wanted = sum(len(prompts) * images for prompts, images in self.parts.values())
        there = sum(len(RunFolder(setting.folder / part).done()) for part in self.parts if (setting.folder / part / "run.json").is_file())
        return 2.0 * self.plan.steps * max(0, wanted - there)

    def _draw(self, setting: Setting, entries: Sequence[Entry], part: str, prompts: Sequence[Prompt], images: int) -> Iterator[Progress]:
        p = self.plan
        config = GenerateConfig(
            images=images,
            strength=setting.strength,
            safety_strength=setting.strength,
            steps=p.steps,
            guidance=p.guidance,
            seed=p.seed,
        )
        safety = entries if p.kind == "safety" else ()
        modules = () if p.kind == "safety" else entries
        folder, began, drawn = setting.folder / part, time.perf_counter(), 0
        with counted(backbone(self.pipe)) as forwards:
            for _ in generate(self.pipe, prompts, modules, config, safety=safety, out=folder):
                drawn += 1
                self.done += 2 * p.steps
                self.drawing[setting.label] -= 2 * p.steps
                yield self._progress(f"drawing {setting.label}")
        if drawn:
            note_cost(folder, drawn, forwards[0], time.perf_counter() - began)

    def _progress(self, what: str) -> Progress:
        return Progress(what, self.done, self.done + sum(self.left.values()) + sum(max(0.0, v) for v in self.drawing.values()))


def note_cost(folder: Path, pictures: int, forwards: int, seconds: float) -> None:
    """Add to what drawing a run has cost (``cost.json``), over all sittings."""
    found = cost_of(folder)
    added = {"pictures": pictures, "unet_forwards": forwards, "seconds": seconds}
    write_atomic(folder / "cost.json", json.dumps({k: found[k] + v for k, v in added.items()}) + "\n")


def cost_of(folder: Path) -> dict[str, float]:
    """What drawing a run has cost so far; zeros where nothing was drawn."""
    path = folder / "cost.json"
    if not path.is_file():
        return {"pictures": 0.0, "unet_forwards": 0.0, "seconds": 0.0}
    found: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return found
