"""Compares methods on one model: the same prompts, the same noise, the same judge; one row for each method and scale.

Adapters are cached by a hash of all that they depend on. An interrupted comparison resumes; a repeated one generates only what is missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

from respodiff._version import __version__
from respodiff.concepts import concept as concepts
from respodiff.concepts.concept import Attribute, Concept
from respodiff.concepts.intersections import JOIN
from respodiff.concepts.prompt_editing import rewriting, rewritten
from respodiff.data.places import check_out
from respodiff.data.prompt_sets import suite
from respodiff.data.records import Prompt
from respodiff.data.run_folder import write_atomic
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import counted, generate
from respodiff.methods.base import Method
from respodiff.methods.registry import BASELINE, NAMES, get_method, load, methods_for
from respodiff.pipelines.loading import sampling_settings, weights_digest
from respodiff.pipelines.registry import backbone
from respodiff.steering.adapter import Adapter

DRAWING = ("scale", "assign_at")
"""Settings of generation that every method may have of its own."""
REMOVED = ("violence", "sexual")
"""Safety concepts that are removed together."""
PUBLISHED = "respodiff-paper"
"""The method whose name stands for a published number of iterations; rows with another number say so."""


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        suite: ``occupations`` (fairness), ``unsafe`` (safety), or another suite whose prompts have groups.
        methods: names of `respodiff.methods.registry.NAMES`, or ``NAME:VARIANT`` with an entry in `settings`. ``plain`` is always generated.
        attribute: attribute that is balanced (fairness).
        images: images per prompt. prompts: number of prompts, evenly spaced in the suite; 0 uses all.
        groups: groups whose prompts are used; empty uses all.
        scales: factors on the adapters; a method without a scale is generated once.
        steps, guidance: of the sampler; None is the model's own.
        library: TOML file of concepts beside the built-in ones.
        settings: method or variant -> settings that differ from the method's defaults, or are in `DRAWING`; ``scale`` is a factor on `scales`.
    """

    suite: str = "occupations"
    methods: tuple[str, ...] = field(default_factory=lambda: methods_for("fairness"))
    attribute: str = "gender"
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
        if unknown := [m for m in self.methods if m.partition(":")[0] not in NAMES or (":" in m and m not in self.settings)]:
            raise ValueError(f"methods has {unknown[0]!r}; allowed: all, {', '.join(NAMES)}; a NAME:VARIANT needs its settings")
        if other := [m for m in self.methods if self.kind not in method_of(m).kinds]:
            kinds, allowed = " and ".join(method_of(other[0]).kinds), ", ".join(methods_for(self.kind))
            raise ValueError(f"methods has {other[0]!r}, which takes {kinds} concepts; allowed for suite {self.suite!r}: {allowed}")
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods is {', '.join(self.methods) or 'empty'}; give each method once, or 'all'")
        if not self.scales or not all(0 < scale <= 10 for scale in self.scales):
            raise ValueError(f"scales is {self.scales}; allowed: numbers above 0, at most 10, 1 is as trained")
        for name in self.settings:
            drawing = self.drawing(name)
            if drawing["scale"] <= 0:
                raise ValueError(f"settings of {name!r} have scale {drawing['scale']:g}; a scale is a number above 0, 1 is as trained")
            GenerateConfig(**drawing)  # refused before anything is trained
        if self.images < 1 or self.prompts < 0:
            raise ValueError(f"images is {self.images} and prompts {self.prompts}; allowed: 1 or more, and 0 (all) or more")

    def drawing(self, name: str) -> dict[str, Any]:
        """Settings of generation of a method or variant; its ``scale`` is the one that counts as 1."""
        return {"scale": 1.0} | {k: float(v) for k, v in self.settings.get(name, {}).items() if k in DRAWING}

    @property
    def kind(self) -> str:
        """``safety`` for suites of unsafe prompts, else ``fairness``."""
        return "safety" if self.suite in ("unsafe", "i2p") else "fairness"

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """What every method is trained for."""
        if self.kind == "safety":
            return tuple(concepts.concept(name, self._known) for name in REMOVED)
        return self.whole.concepts

    @property
    def whole(self) -> Attribute:
        """The attribute that is balanced; ValueError for an unknown one."""
        return concepts.attribute(self.attribute, self._known)

    @property
    def _known(self) -> dict[str, Attribute | Concept]:
        return {**concepts.builtin(), **(concepts.load_concepts(self.library) if self.library else {})}

    def parts(self) -> dict[str, tuple[list[Prompt], int]]:
        """Part of a run -> (prompts, images per prompt): the suite, and prompts that must stay as they are (explicit or harmless ones).

        ValueError for a group that the suite does not have.
        """
        found = suite(self.suite)
        if unknown := sorted(set(self.groups) - {p.group for p in found}):
            raise ValueError(f"groups has {unknown[0]!r}, which suite {self.suite!r} does not have; leave it out")
        prompts = spaced([p for p in found if not self.groups or p.group in self.groups], self.prompts)
        if self.kind == "fairness":
            return {"suite": (prompts, self.images), "stated": (stated_prompts(prompts, self.concepts), max(1, self.images // 4))}
        benign = [*spaced(suite("occupations"), len(prompts)), *spaced(suite("general"), len(prompts))]
        return {"suite": (prompts, self.images), "benign": (benign, max(1, self.images // 2))}


OURS = ("runs/*/*/run.json", "adapters/*.safetensors")
"""What tells the folder of a comparison from another."""


@dataclass(frozen=True)
class Variant:
    """One row of the table: a method at a scale, its name there, and the folder of its runs."""

    method: str
    title: str
    scale: float
    folder: Path

    @property
    def label(self) -> str:
        """The title, with the scale where it is not 1."""
        return self.title if self.scale == 1 else f"{self.title} x{self.scale:g}"


@dataclass(frozen=True)
class Progress:
    """What is being done, and how much of it: iterations of a training, images of a run."""

    what: str
    done: int
    total: int


class MethodComparison:
    """Trains the methods and generates their images under one folder; `run` yields its progress.

    Args:
        out: folder of run folders and adapters. cache: where adapters are kept instead of ``out/adapters``.
        classify: concept -> classifier of images, for methods that learn from images.
        judge: digest of that classifier; an adapter of such a method depends on it.
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

    def settings(self) -> list[Variant]:
        """All rows, the unsteered model first."""
        rows = []
        for name in self.names:
            scales = self.plan.scales if name != BASELINE and method_of(name).adapter.scales else (1.0,)
            folder, title = self.out / "runs" / "-".join(re.findall(r"[\w.]+", name)), self._title(name)
            rows += [Variant(name, title, s, folder if s == 1 else folder.with_name(f"{folder.name}-{s:g}")) for s in scales]
        return rows

    def _title(self, name: str) -> str:
        """The name of a method or variant; with its iterations, "respodiff-paper:300", where they are not the published ones."""
        method, given = method_of(name), self.plan.settings.get(name, {}).get("iterations")
        own = method.name == PUBLISHED and given and given != method.settings(self.plan.kind).iterations
        return f"{name}:{given}" if own else name

    def run(self) -> Iterator[Progress]:
        """Train and generate what is missing; ValueError for a method that cannot take the concepts or the pipeline, or a folder of others."""
        check_out(self.out, lambda folder: any(any(folder.glob(name)) for name in OURS), force=None)
        for name in self.names:
            for concept in self._trained_for(name):
                path = self.path_of(name, concept)
                if not (path.is_file() and path.with_suffix(".json").is_file()):
                    yield from self._train(name, concept, path)
            adapters = [load(self.path_of(name, concept)) for concept in self._trained_for(name)]
            for setting in (s for s in self.settings() if s.method == name):
                yield from self._generate(setting, adapters)

    def _trained_for(self, name: str) -> tuple[Concept, ...]:
        """The concepts that a method makes adapters of; the first one alone if one adapter holds all alternatives."""
        chosen = self.plan.concepts if name != BASELINE else ()
        return chosen[:1] if self.plan.kind in method_of(name).needs_classifier else chosen

    def _config(self, name: str) -> Any:
        method, changes = method_of(name), {k: v for k, v in self.plan.settings.get(name, {}).items() if k not in DRAWING}
        seed = {"seed": self.plan.seed} if "seed" in {f.name for f in dataclasses.fields(method.config)} else {}
        return method.settings(self.plan.kind, **(seed | changes))

    def path_of(self, name: str, concept: Concept) -> Path:
        """File of an adapter, named by a hash of all that it depends on."""
        method = method_of(name)
        about = {
            "method": method.name,
            "settings": dataclasses.asdict(self._config(name)),
            "concept": dataclasses.asdict(concept),
            "model": weights_digest(backbone(self.pipe)),
            "judge": self.judge if concept.kind in method.needs_classifier else "",
            "library": __version__,
        }
        digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]
        return self.cache / f"{method.name}-{concept.name.replace(JOIN, '-')}-{digest}.safetensors"

    def _train(self, name: str, concept: Concept, path: Path) -> Iterator[Progress]:
        method = method_of(name)
        classify = self.classify(concept) if self.classify and concept.kind in method.needs_classifier else None
        for record in method.train(self.pipe, concept, self._config(name), classify=classify):
            yield Progress(f"{'training' if method.trains else 'building'} {name}: {concept.name}", record.iteration, record.iterations)
        path.parent.mkdir(parents=True, exist_ok=True)
        record.module.save(path)
        write_atomic(path.with_suffix(".json"), json.dumps({"unet_forwards": record.unet_forwards}) + "\n")

    def training_cost(self, name: str) -> int:
        """UNet forwards per sample of training all adapters of a method."""
        files = [self.path_of(name, concept).with_suffix(".json") for concept in self._trained_for(name)]
        return sum(json.loads(file.read_text(encoding="utf-8"))["unet_forwards"] for file in files)

    def _generate(self, setting: Variant, adapters: Sequence[Adapter]) -> Iterator[Progress]:
        own = self.plan.drawing(setting.method)
        own["scale"] = own["safety_scale"] = setting.scale * own["scale"]
        modules, safety = ((), adapters) if self.plan.kind == "safety" else (adapters, ())
        for part, (prompts, images) in self.parts.items():
            config = GenerateConfig(images=images, steps=self.steps, guidance=self.guidance, seed=self.plan.seed, **own)
            folder, what = setting.folder / part, f"generating {setting.label}"
            with counted(backbone(self.pipe)) as forwards:
                made = yield from generate_missing(what, self.pipe, prompts, modules, config, folder, safety=safety)
            if made:
                cost = cost_of(folder)
                cost = {"images": cost["images"] + made, "unet_forwards": cost["unet_forwards"] + forwards[0]}
                write_atomic(folder / "cost.json", json.dumps(cost) + "\n")


def generate_missing(
    what: str, pipe: Any, prompts: Sequence[Prompt | str], modules: Sequence[Adapter], config: GenerateConfig, folder: Path, **more: Any
) -> Generator[Progress, None, int]:
    """Generate what a run folder is missing (`respodiff.generation.generate.generate`). Progress counts images; returns their number."""
    images = generate(pipe, prompts, modules, config, out=folder, **more)
    done, total = 0, images.left
    for done, _ in enumerate(images, start=1):
        yield Progress(what, done, total)
    return done


def cost_of(folder: Path) -> dict[str, int]:
    """Images and UNet forwards per sample of generating a run so far; zeros if nothing was generated."""
    path = folder / "cost.json"
    return {"images": 0, "unet_forwards": 0} | (json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {})


def method_of(name: str) -> Method:
    """The method of a variant: slider of "slider:rank 1"."""
    return get_method(name.partition(":")[0])


def read_settings(file: str | Path, kind: str) -> dict[str, dict[str, Any]]:
    """Settings of methods and variants for `Plan.settings`, from the tables [KIND.NAME] of a TOML file; lists as tuples."""
    try:
        tables = tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"settings file {str(file)!r} cannot be read: {error}") from error
    if unknown := sorted(set(tables) - {"fairness", "safety"}):
        raise ValueError(f"settings file {str(file)!r} has the table {unknown[0]!r}; allowed: fairness.NAME, safety.NAME")
    chosen = tables.get(kind, {})
    if not isinstance(chosen, dict) or (wrong := [name for name, changes in chosen.items() if not isinstance(changes, dict)]):
        name = f"{kind}.{wrong[0]}" if isinstance(chosen, dict) else kind
        raise ValueError(f"settings file {str(file)!r}: {name!r} is no table; write [{kind}.NAME] and its settings below it")
    return {name: {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()} for name, changes in chosen.items()}


def spaced(prompts: Sequence[Prompt], n: int) -> list[Prompt]:
    """n prompts, evenly spaced in their order; 0, or more than there are, gives all."""
    n = min(n, len(prompts)) or len(prompts)
    return [prompts[int(i * len(prompts) / n)] for i in range(n)]


def stated_prompts(prompts: Sequence[Prompt], alternatives: Sequence[Concept]) -> list[Prompt]:
    """The prompts with an alternative stated in each, in turns. A method should leave such explicit prompts alone."""
    out = []
    for prompt, concept in zip(prompts, cycle(alternatives), strict=False):
        text = rewritten(prompt.text, *rewriting(concept.target, concept.neutral))
        out.append(dataclasses.replace(prompt, id=f"stated/{prompt.group}", text=text, suite="stated", categories=(concept.name,)))
    return out
