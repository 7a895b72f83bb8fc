"""Compares methods on one model: the same prompts, the same noise, the same judge; one row for each method and scale.

Adapters are cached by a hash of all that they depend on, and run folders by name. An interrupted comparison resumes, and a repeated one generates
only what is missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from respodiff._version import __version__
from respodiff.concepts import concept as concepts
from respodiff.concepts.concept import Attribute, Concept
from respodiff.concepts.intersections import JOIN
from respodiff.concepts.prompt_editing import rewriting, rewritten
from respodiff.data.prompt_sets import suite
from respodiff.data.records import Prompt
from respodiff.data.run_folder import RunFolder, write_atomic
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import counted, generate
from respodiff.methods.base import Method
from respodiff.methods.registry import BASELINE, NAMES, get_method, load, methods_for
from respodiff.pipelines.loading import sampling_settings, weights_digest
from respodiff.pipelines.registry import backbone
from respodiff.steering.adapter import Adapter

DRAWING = ("scale", "assign_at")
"""Settings of generation that every method may have of its own."""
GUESS = 2200
"""UNet forwards per sample that training a concept is assumed to need, before it starts."""


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        suite: ``occupations`` (fairness), ``unsafe`` (safety), or another suite whose prompts have groups.
        methods: names of `respodiff.methods.registry.NAMES`, or ``NAME:VARIANT`` with an entry in `settings`. ``plain`` is always generated, as the
            baseline.
        attribute: attribute that is balanced, in exact counts (fairness).
        safety: concepts that are removed together (safety).
        images: images per prompt.
        prompts: number of prompts, evenly spaced in the suite; 0 uses all.
        groups: groups whose prompts are used; empty uses all.
        scales: factors on the adapters; a method without a scale is generated once.
        steps, guidance: of the sampler; None is the model's own.
        library: TOML file of concepts beside the built-in ones.
        settings: method or variant -> settings that differ from the method's defaults. Those in `DRAWING` are settings of generation; ``scale`` is a
            factor on `scales`.
    """

    suite: str = "occupations"
    methods: tuple[str, ...] = field(default_factory=lambda: methods_for("fairness"))
    attribute: str = "gender"
    safety: tuple[str, ...] = ("violence", "sexual")
    images: int = 4
    prompts: int = 0
    groups: tuple[str, ...] = ()
    scales: tuple[float, ...] = (1.0,)
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    library: str = ""
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := [m for m in self.methods if base_of(m) not in NAMES or (":" in m and m not in self.settings)]:
            raise ValueError(f"methods has {unknown[0]!r}; allowed: all, {', '.join(NAMES)}; a NAME:VARIANT needs its settings")
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods is {', '.join(self.methods) or 'empty'}; give each method once, or 'all'")
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales is {self.scales}; allowed: numbers above 0, 1 is as trained")
        for name in self.settings:
            if self.factor(name) <= 0:
                raise ValueError(f"settings of {name!r} have scale {self.factor(name):g}; a scale is a number above 0, 1 is as trained")
            GenerateConfig(**self.drawing(name))  # refused before anything is trained
        if self.images < 1 or self.prompts < 0:
            raise ValueError(f"images is {self.images} and prompts {self.prompts}; allowed: 1 or more, and 0 (all) or more")

    def drawing(self, name: str) -> dict[str, Any]:
        """Settings of generation of a method or variant, beside the scale."""
        return {k: float(v) for k, v in self.settings.get(name, {}).items() if k in DRAWING and k != "scale"}

    def factor(self, name: str) -> float:
        """The scale of a method or variant that counts as 1."""
        return float(self.settings.get(name, {}).get("scale", 1.0))

    @property
    def kind(self) -> str:
        """``safety`` for suites of unsafe prompts, else ``fairness``."""
        return "safety" if self.suite in ("unsafe", "i2p") else "fairness"

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """What every method is trained for."""
        if self.kind == "safety":
            return tuple(concepts.concept(name, self._known) for name in self.safety)
        return self.whole.concepts

    @property
    def whole(self) -> Attribute:
        """The attribute that is balanced; ValueError for an unknown one."""
        return concepts.attribute(self.attribute, self._known)

    @property
    def _known(self) -> dict[str, Attribute | Concept]:
        return {**concepts.builtin(), **(concepts.load_concepts(self.library) if self.library else {})}

    def asked(self) -> list[Prompt]:
        """The prompts of the suite that are used; ValueError for a group that the suite does not have."""
        found = suite(self.suite)
        if unknown := sorted(set(self.groups) - {p.group for p in found}):
            raise ValueError(f"groups has {unknown[0]!r}, which suite {self.suite!r} does not have; leave it out")
        return spaced([p for p in found if not self.groups or p.group in self.groups], self.prompts)

    def parts(self) -> dict[str, tuple[list[Prompt], int]]:
        """Part of a run -> (prompts, images per prompt): the suite, and prompts that must stay as they are (explicit or harmless ones)."""
        prompts = self.asked()
        if self.kind == "fairness":
            return {"suite": (prompts, self.images), "stated": (stated_prompts(prompts, self.concepts), max(1, self.images // 4))}
        benign = [*spaced(suite("occupations"), len(prompts)), *spaced(suite("general"), len(prompts))]
        return {"suite": (prompts, self.images), "benign": (benign, max(1, self.images // 2))}


@dataclass(frozen=True)
class Variant:
    """One row of the table: a method at a scale, and the folder of its runs."""

    method: str
    scale: float
    folder: Path

    @property
    def label(self) -> str:
        """The method's name, with the scale where it is not 1."""
        return self.method if self.scale == 1 else f"{self.method} x{self.scale:g}"


@dataclass(frozen=True)
class Progress:
    """What is being done, and how much is done of an estimated total, as UNet forwards per sample."""

    what: str
    done: float
    total: float


class MethodComparison:
    """Trains the methods and generates their images under one folder; `run` yields its progress.

    Args:
        pipe: diffusers pipeline. plan: what to compare. out: folder of run folders and adapters.
        classify: concept -> classifier of images, for methods that learn from images.
        judge: digest of that classifier; an adapter of such a method depends on it.
        cache: where adapters are kept; ``out/adapters`` if not given.
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
        self.steps, self.guidance = sampling_settings(pipe, plan.steps, plan.guidance)
        plan = dataclasses.replace(plan, steps=self.steps, guidance=self.guidance)
        self.pipe, self.plan, self.out = pipe, plan, Path(out)
        self.classify, self.judge = classify, judge
        self.cache = Path(cache) if cache else self.out / "adapters"
        self.parts = plan.parts()
        self.names = list(dict.fromkeys([BASELINE, *plan.methods]))
        self.left: dict[str, float] = {
            str(self.path_of(name, c)): GUESS for name in self.names for c in self._trained_for(name) if self._missing(name, c)
        }
        self.left |= {s.label: self._images_left(s) for s in self.settings()}
        self.done = 0.0

    def settings(self) -> list[Variant]:
        """All rows, the unsteered model first."""
        rows = []
        for name in self.names:
            scales = self.plan.scales if name != BASELINE and get_method(base_of(name)).adapter.scales else (1.0,)
            folder = self.out / "runs" / "-".join(re.findall(r"[\w.]+", name))
            rows += [Variant(name, s, folder if s == 1 else folder.with_name(f"{folder.name}-{s:g}")) for s in scales]
        return rows

    def run(self) -> Iterator[Progress]:
        """Train and generate what is missing; ValueError for a method that cannot take the concepts or the pipeline."""
        for name in self.names:
            for concept in self._trained_for(name):
                if self._missing(name, concept):
                    yield from self._train(name, concept)
            adapters = [load(self.path_of(name, concept)) for concept in self._trained_for(name)]
            for setting in (s for s in self.settings() if s.method == name):
                for part, (prompts, images) in self.parts.items():
                    yield from self._generate(setting, adapters, part, prompts, images)

    def _trained_for(self, name: str) -> tuple[Concept, ...]:
        """The concepts that a method makes adapters of; the first one alone if one adapter holds all alternatives."""
        if name == BASELINE:
            return ()
        chosen = self.plan.concepts
        return chosen[:1] if self.plan.kind in get_method(base_of(name)).needs_classifier else chosen

    def _config(self, name: str, kind: Method, concept: Concept) -> Any:
        changes = {k: v for k, v in self.plan.settings.get(name, {}).items() if k not in DRAWING}
        if "seed" in {f.name for f in dataclasses.fields(kind.config)}:
            changes.setdefault("seed", self.plan.seed)
        return kind.settings(concept.kind, **changes)

    def path_of(self, name: str, concept: Concept) -> Path:
        """File of an adapter, named by a hash of all that it depends on."""
        kind = get_method(base_of(name))
        about = {
            "method": kind.name,
            "settings": dataclasses.asdict(self._config(name, kind, concept)),
            "concept": dataclasses.asdict(concept),
            "model": weights_digest(backbone(self.pipe)),
            "judge": self.judge if concept.kind in kind.needs_classifier else "",
            "library": __version__,
        }
        digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]
        return self.cache / f"{kind.name}-{concept.name.replace(JOIN, '-')}-{digest}.safetensors"

    def _missing(self, name: str, concept: Concept) -> bool:
        path = self.path_of(name, concept)
        return not (path.is_file() and path.with_suffix(".json").is_file())

    def _train(self, name: str, concept: Concept) -> Iterator[Progress]:
        path, kind, before = self.path_of(name, concept), get_method(base_of(name)), self.done
        classify = self.classify(concept) if self.classify and concept.kind in kind.needs_classifier else None
        record = None
        for record in kind.train(self.pipe, concept, self._config(name, kind, concept), classify=classify):
            total = record.unet_forwards * record.iterations / max(1, record.iteration)
            self.done, self.left[str(path)] = before + record.unet_forwards, max(0.0, total - record.unet_forwards)
            yield self._progress(f"{'training' if kind.trains else 'building'} {name}: {concept.name}")
        if record is None:
            raise RuntimeError(f"method {name} ended without a record")
        path.parent.mkdir(parents=True, exist_ok=True)
        record.module.save(path)
        cost = {"unet_forwards": record.unet_forwards, "seconds": round(record.seconds, 2)}
        write_atomic(path.with_suffix(".json"), json.dumps(cost) + "\n")
        self.left[str(path)] = 0.0

    def training_cost(self, name: str) -> dict[str, float]:
        """UNet forwards per sample, and seconds, of training all adapters of a method."""
        total = {"unet_forwards": 0.0, "seconds": 0.0}
        for concept in self._trained_for(name):
            found = json.loads(self.path_of(name, concept).with_suffix(".json").read_text(encoding="utf-8"))
            total = {k: total[k] + found[k] for k in total}
        return total

    def _images_left(self, setting: Variant) -> float:
        wanted = sum(len(prompts) * images for prompts, images in self.parts.values())
        there = sum(len(RunFolder(setting.folder / part).done()) for part in self.parts if (setting.folder / part / "run.json").is_file())
        return 2.0 * self.steps * max(0, wanted - there)

    def _generate(
        self, setting: Variant, adapters: Sequence[Adapter], part: str, prompts: Sequence[Prompt], images: int
    ) -> Iterator[Progress]:
        scale = setting.scale * self.plan.factor(setting.method)
        own: dict[str, Any] = {"scale": scale, "safety_scale": scale, **self.plan.drawing(setting.method)}
        config = GenerateConfig(images=images, steps=self.steps, guidance=self.guidance, seed=self.plan.seed, **own)
        modules, safety = ((), adapters) if self.plan.kind == "safety" else (adapters, ())
        folder, began, made = setting.folder / part, time.perf_counter(), 0
        with counted(backbone(self.pipe)) as forwards:
            for _ in generate(self.pipe, prompts, modules, config, safety=safety, out=folder):
                made += 1
                self.done += 2 * self.steps
                self.left[setting.label] -= 2 * self.steps
                yield self._progress(f"generating {setting.label}")
        if made:
            cost = cost_of(folder)
            added = {"images": made, "unet_forwards": forwards[0], "seconds": time.perf_counter() - began}
            write_atomic(folder / "cost.json", json.dumps({k: cost[k] + v for k, v in added.items()}) + "\n")

    def _progress(self, what: str) -> Progress:
        return Progress(what, self.done, self.done + sum(max(0.0, left) for left in self.left.values()))


def cost_of(folder: Path) -> dict[str, float]:
    """Images, UNet forwards per sample and seconds of generating a run so far; zeros if nothing was generated."""
    path = folder / "cost.json"
    zeros = dict.fromkeys(("images", "unet_forwards", "seconds"), 0.0)
    return zeros | (json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {})


def base_of(name: str) -> str:
    """The method of a variant: "slider" of "slider:rank 1"."""
    return name.partition(":")[0]


def read_settings(file: str | Path, kind: str) -> dict[str, dict[str, Any]]:
    """Settings of methods and variants for `Plan.settings`, from the tables [KIND.NAME] of a TOML file; lists as tuples.

    Raises:
        ValueError: the file cannot be read, or has a table of another name.
    """
    try:
        tables = tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"settings file {str(file)!r} cannot be read: {error}") from error
    if unknown := sorted(set(tables) - {"fairness", "safety"}):
        raise ValueError(f"settings file {str(file)!r} has the table {unknown[0]!r}; allowed: fairness.NAME, safety.NAME")
    chosen = tables.get(kind, {})
    return {name: {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()} for name, changes in chosen.items()}


def spaced(prompts: Sequence[Prompt], n: int) -> list[Prompt]:
    """n prompts, evenly spaced in their order; 0, or more than there are, gives all."""
    n = min(n, len(prompts)) or len(prompts)
    return [prompts[int(i * len(prompts) / n)] for i in range(n)]


def stated_prompts(prompts: Sequence[Prompt], alternatives: Sequence[Concept]) -> list[Prompt]:
    """The prompts with an alternative stated in each, in turns. A method should leave such explicit prompts alone."""
    out = []
    for i, prompt in enumerate(prompts):
        concept = alternatives[i % len(alternatives)]
        text = rewritten(prompt.text, *rewriting(concept.target, concept.neutral))
        out.append(dataclasses.replace(prompt, id=f"stated/{prompt.group}", text=text, suite="stated", categories=(concept.name,)))
    return out
