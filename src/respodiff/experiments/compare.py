"""Compares methods on one model: the same prompts, the same noise, the same judge; one row for each method and scale.

Adapters are cached by a hash of all that they depend on. An interrupted comparison resumes; a repeated one generates only what is missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import time
import tomllib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import cycle
from pathlib import Path
from typing import Any

from respodiff._version import __version__
from respodiff.concepts import concept as concepts
from respodiff.concepts.concept import Attribute, Concept
from respodiff.concepts.intersections import JOIN
from respodiff.concepts.prompt_editing import rewriting, rewritten
from respodiff.data.places import check_out, lock
from respodiff.data.prompt_sets import SUITES, suite
from respodiff.data.prompt_sets import names as suites
from respodiff.data.records import Prompt
from respodiff.data.run_folder import write_atomic
from respodiff.data.shards import WHOLE, Shard, parts_of
from respodiff.experiments.engine import Engine
from respodiff.experiments.work import Drawn, ModelSource, Progress, Run, draw, draw_on
from respodiff.generation.config import GenerateConfig
from respodiff.methods.base import Method
from respodiff.methods.registry import BASELINE, get_method, methods_for, names
from respodiff.pipelines.identity import lora_digest, pipeline_digest, precision
from respodiff.pipelines.loading import sampling_settings
from respodiff.pipelines.registry import backbone
from respodiff.training.checkpoint import SAVE_EVERY, Checkpoint

DRAWING = ("scale", "assign_at")
"""Settings of generation that every method may have of its own."""
UNSAFE = ("unsafe", "i2p", "i2p-700")
"""Built-in suites of prompts that ask for unsafe images."""
REMOVED = ("violence", "sexual")
"""Safety concepts that are removed together."""
PUBLISHED = "respodiff-paper"
"""The method whose name stands for a published number of iterations; rows with another number say so."""


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        suite: ``occupations`` (fairness), ``unsafe`` (safety), or another suite whose prompts have groups.
        methods: names of `respodiff.methods.registry.names`, or ``NAME:VARIANT`` with an entry in `settings`. ``plain`` is always generated.
        attribute: attribute that is balanced (fairness).
        images: images per prompt. prompts: number of prompts, evenly spaced in the suite; 0 uses all.
        groups: groups whose prompts are used; empty uses all.
        scales: factors on the adapters; a method without a scale is generated once.
        steps, guidance: of the sampler; None is the model's own.
        suite_path, use_dataset_settings, truncate_prompts: of I2P and COCO: their file, and as in `respodiff.generation.config.GenerateConfig`.
        library: TOML file of concepts beside the built-in ones.
        settings: method or variant -> settings that differ from the method's defaults, or are in `DRAWING`; ``scale`` is a factor on `scales`.
        instead: method or variant -> the concept that it is trained for in place of the plan's.
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
    suite_path: str = ""
    use_dataset_settings: bool = False
    truncate_prompts: bool = False
    library: str = ""
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    instead: dict[str, Concept] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := [m for m in self.methods if m.partition(":")[0] not in names() or (":" in m and m not in self.settings)]:
            raise ValueError(f"methods has {unknown[0]!r}; allowed: all, {', '.join(names())}; a NAME:VARIANT needs its settings")
        if other := [m for m in self.methods if self.kind not in method_of(m).kinds]:
            kinds, allowed = " and ".join(method_of(other[0]).kinds), ", ".join(methods_for(self.kind))
            raise ValueError(f"methods has {other[0]!r}, which takes {kinds} concepts; allowed for suite {self.suite!r}: {allowed}")
        if wrong := [name for name, c in self.instead.items() if name not in self.methods or c.kind != self.kind]:
            raise ValueError(f"instead has {wrong[0]!r}; allowed: a {self.kind} concept for one of methods")
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
        return kind_of(self.suite)

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
    def equal(self) -> Attribute:
        """The attribute with equal shares of its concepts: what every method draws, and is measured by."""
        return dataclasses.replace(self.whole, proportions=())

    @property
    def _known(self) -> dict[str, Attribute | Concept]:
        return {**concepts.builtin(), **(concepts.load_concepts(self.library) if self.library else {})}

    def parts(self) -> dict[str, tuple[list[Prompt], int]]:
        """Part of a run -> (prompts, images per prompt): the suite, and prompts that must stay as they are (explicit or harmless ones).

        ValueError for a group that the suite does not have.
        """
        found = suite(self.suite, path=self.suite_path or None)
        if unknown := sorted(set(self.groups) - {p.group for p in found}):
            raise ValueError(f"groups has {unknown[0]!r}, which suite {self.suite!r} does not have; leave it out")
        prompts = spaced([p for p in found if not self.groups or p.group in self.groups], self.prompts)
        if self.kind == "fairness":
            return {"suite": (prompts, self.images), "stated": (stated_prompts(prompts, self.concepts), max(1, self.images // 4))}
        benign = [*spaced(suite("occupations"), len(prompts)), *spaced(suite("general"), len(prompts))]
        return {"suite": (prompts, self.images), "benign": (benign, max(1, self.images // 2))}


def kind_of(name: str) -> str:
    """Kind of methods that are compared on a suite: ``safety`` where prompts are unsafe; of another package's, where they have categories."""
    unsafe = name in UNSAFE or (name not in SUITES and name in suites() and any(p.categories for p in suite(name)))
    return "safety" if unsafe else "fairness"


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
        self.parts, self._model = plan.parts(), pipeline_digest(pipe)
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

    def run(self, shard: Shard = WHOLE) -> Iterator[Progress]:
        """Train and generate what is missing, or a shard's part of it; ValueError for a method that cannot take the concepts or the pipeline,
        or a folder of others.
        """
        self._check_out()
        yield from self.train_missing(shard)
        for run in self.runs():
            self.add_cost(run.out, (yield from draw(self.pipe, run, shard)), shard)

    def run_on(self, engine: Engine, model: ModelSource, judge: str = "") -> Iterator[Progress]:
        """As `run`, on the workers of an engine. judge: source of the classifier, as `respodiff.evaluation.judges.classifier` takes it."""
        self._check_out()
        yield from self.train_on(engine, model, judge)
        runs = self.runs()
        for run, drawn in zip(runs, (yield from draw_on(engine, model, runs)), strict=True):
            self.add_cost(run.out, drawn)

    def train_on(self, engine: Engine, model: ModelSource, judge: str = "") -> Iterator[Progress]:
        """Make the adapters that are missing on the workers of an engine."""
        missing = list({self.path_of(*pair): pair for pair in self.missing()}.values())  # variants may share a file
        training = Training(model, self.plan, self.out, judge, self.judge, self.cache)
        for done, _ in enumerate(engine.map(training, missing), start=1):
            yield Progress("training", done, len(missing))

    def _check_out(self) -> None:
        check_out(self.out, lambda folder: any(any(folder.glob(name)) for name in OURS), force=None)

    def missing(self) -> list[tuple[str, Concept]]:
        """Methods and concepts whose adapters are still to be made."""
        files = {(name, c): self.path_of(name, c) for name in self.names for c in self._trained_for(name)}
        return [pair for pair, file in files.items() if not (file.is_file() and file.with_suffix(".json").is_file())]

    def train_missing(self, shard: Shard = WHOLE) -> Iterator[Progress]:
        """Make adapters that no other process makes, and wait for those that one does."""
        while missing := self.missing():
            first = shard.index * len(missing) // shard.count  # each shard begins elsewhere
            for name, concept in missing[first:] + missing[:first]:
                with suppress(BlockingIOError), lock(self.path_of(name, concept)):
                    if (name, concept) in self.missing():
                        yield from self.train(name, concept)
                        break
            else:
                yield Progress("waiting for adapters that another process trains", 0, len(missing))
                time.sleep(1)

    def _trained_for(self, name: str) -> tuple[Concept, ...]:
        """The concepts that a method makes adapters of; the first one alone if one adapter holds all alternatives."""
        if name in self.plan.instead:
            return (self.plan.instead[name],)
        chosen = self.plan.concepts if name != BASELINE else ()
        return chosen[:1] if self.plan.kind in method_of(name).needs_classifier else chosen

    def _config(self, name: str, concept: Concept) -> Any:
        method, changes = method_of(name), {k: v for k, v in self.plan.settings.get(name, {}).items() if k not in DRAWING}
        seed = {"seed": self.plan.seed} if "seed" in {f.name for f in dataclasses.fields(method.config)} else {}
        return method.settings(concept, **(seed | changes))

    def path_of(self, name: str, concept: Concept) -> Path:
        """File of an adapter, named by a hash of all that it depends on."""
        method = method_of(name)
        dtype = precision(backbone(self.pipe))
        about = {
            "method": method.name,
            "settings": dataclasses.asdict(self._config(name, concept)),
            "concept": dataclasses.asdict(concept),
            "model": self._model,
            "judge": self.judge if concept.kind in method.needs_classifier else "",
            "library": __version__,
            **({"dtype": dtype} if dtype != "float32" else {}),
            **({"lora": lora} if (lora := lora_digest(backbone(self.pipe))) else {}),
        }
        digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]
        return self.cache / f"{method.name}-{concept.name.replace(JOIN, '-')}-{digest}.safetensors"

    def adapters(self, name: str) -> list[Path]:
        """Files of the adapters of a method or variant."""
        return [self.path_of(name, concept) for concept in self._trained_for(name)]

    def train(self, name: str, concept: Concept) -> Iterator[Progress]:
        """Make an adapter, or go on with it from its checkpoint. Progress counts iterations."""
        method, path, config = method_of(name), self.path_of(name, concept), self._config(name, concept)
        classify = self.classify(concept) if self.classify and concept.kind in method.needs_classifier else None
        judge = self.judge if classify else ""
        checkpoint, saved = Checkpoint(path, concept, config, self.pipe, method.name, judge), time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            earlier = checkpoint.read()
        except ValueError:  # of another pipeline, or damaged: it is trained anew
            earlier = {}
        for record in method.train(self.pipe, concept, config, classify=classify, resume=earlier or None):
            if method.resumes and time.monotonic() - saved > SAVE_EVERY:
                checkpoint.write(record.state.tensors())
                saved = time.monotonic()
            yield Progress(f"{'training' if method.trains else 'building'} {name}: {concept.name}", record.iteration, record.iterations)
        record.module.save(path)
        write_atomic(path.with_suffix(".json"), json.dumps({"unet_forwards": record.unet_forwards}) + "\n")
        checkpoint.path.unlink(missing_ok=True)

    def training_cost(self, name: str) -> int:
        """UNet forwards per sample of training all adapters of a method."""
        files = [self.path_of(name, concept).with_suffix(".json") for concept in self._trained_for(name)]
        return sum(json.loads(file.read_text(encoding="utf-8"))["unet_forwards"] for file in files)

    def runs(self) -> list[Run]:
        """The run folders of all rows and parts, with what they are drawn by."""
        out = []
        for setting in self.settings():
            own = self.plan.drawing(setting.method)
            own["scale"] = own["safety_scale"] = setting.scale * own["scale"]
            adapters = self.adapters(setting.method)
            modules, safety = ((), adapters) if self.plan.kind == "safety" else (adapters, ())
            for part, (prompts, images) in self.parts.items():
                own["use_dataset_settings"] = self.plan.use_dataset_settings and part == "suite"
                own["truncate_prompts"] = self.plan.truncate_prompts
                if method_of(setting.method).adapter.batch_dependent:  # a prompt's images are balanced together
                    own["batch"] = max(GenerateConfig.batch, images)
                config = GenerateConfig(images=images, steps=self.steps, guidance=self.guidance, seed=self.plan.seed, **own)
                out.append(Run(setting.folder / part, prompts, config, modules, safety, what=f"generating {setting.label}"))
        return out

    @staticmethod
    def add_cost(folder: Path, drawn: Drawn, shard: Shard = WHOLE) -> None:
        """Add to what drawing a run, or a shard of it, has cost so far."""
        if drawn.images:
            cost = _read_cost(file := shard.part(folder / "cost.json"))
            cost = {"images": cost["images"] + drawn.images, "unet_forwards": cost["unet_forwards"] + drawn.forwards}
            write_atomic(file, json.dumps(cost) + "\n")


@dataclass
class Training:
    """The task of making an adapter of a comparison: (method or variant, concept) -> None."""

    model: ModelSource
    plan: Plan
    out: Path
    source: str
    judge: str
    cache: Path

    @cached_property
    def comparison(self) -> MethodComparison:
        """The comparison with its pipeline, loaded once a worker."""
        from respodiff.evaluation.judges import classifier

        classify = partial(classifier, self.source, device=self.model.device) if self.source else None
        return MethodComparison(self.model.load(), self.plan, self.out, classify=classify, judge=self.judge, cache=self.cache)

    def __call__(self, unit: tuple[str, Concept]) -> None:
        with lock(self.comparison.path_of(*unit)):
            if unit in self.comparison.missing():  # another command may have made it meanwhile
                deque(self.comparison.train(*unit), maxlen=0)


def cost_of(folder: Path) -> dict[str, int]:
    """Images and UNet forwards per sample of generating a run so far, its shards together; zeros if nothing was generated."""
    file = folder / "cost.json"
    costs = [_read_cost(path) for path in (file, *parts_of(file).values())]
    return {key: sum(cost[key] for cost in costs) for key in ("images", "unet_forwards")}


def _read_cost(file: Path) -> dict[str, int]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"images": 0, "unet_forwards": 0}


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
    many, out = Counter(p.group for p in prompts), []
    for prompt, concept in zip(prompts, cycle(alternatives), strict=False):
        text = rewritten(prompt.text, *rewriting(concept.target, concept.neutral))
        name = prompt.group if many[prompt.group] == 1 else prompt.id
        out.append(dataclasses.replace(prompt, id=f"stated/{name}", text=text, suite="stated", categories=(concept.name,)))
    return out
