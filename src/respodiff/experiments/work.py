"""Provides what verbs have to do in pieces: images to draw and runs to judge, here, as a shard, or on the workers of an engine."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from respodiff.concepts.concept import Attribute
from respodiff.data.places import lock
from respodiff.data.records import Prompt
from respodiff.data.run_folder import RunFolder
from respodiff.data.shards import WHOLE, Shard
from respodiff.evaluation import judges
from respodiff.evaluation.evaluate import judge_shard
from respodiff.experiments.engine import Engine
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import counted, generate
from respodiff.methods.registry import load
from respodiff.pipelines.registry import backbone
from respodiff.pipelines.source import ModelSource as ModelSource
from respodiff.steering.adapter import Adapter

T = TypeVar("T")
Adapters = Sequence[Adapter | Path]
"""Adapters, or files of them, which are read where they are needed."""


@dataclass(frozen=True)
class Progress:
    """What is being done, and how much of it: iterations of a training, images of a run, pieces of work."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class Drawn:
    """Images that were drawn now, and evaluations of the model per sample that it took."""

    images: int = 0
    forwards: int = 0


@dataclass(frozen=True)
class Run:
    """The images of a run folder, as `respodiff.generation.generate.generate` takes them. ``what`` names them in progress."""

    out: Path
    prompts: Sequence[Prompt | str]
    config: GenerateConfig
    modules: Adapters = ()
    safety: Adapters = ()
    suite_digest: str = ""
    what: str = "generating"


def draw(pipe: Any, run: Run, shard: Shard = WHOLE) -> Generator[Progress, None, Drawn]:
    """Draw what a run folder is missing, or a shard's part of it. Progress counts images; errors as `respodiff.generation.generate.generate`."""
    modules, safety = ([load(a) if isinstance(a, Path) else a for a in given] for given in (run.modules, run.safety))
    images = generate(pipe, run.prompts, modules, run.config, safety=safety, out=run.out, suite_digest=run.suite_digest, shard=shard)
    done, total = 0, images.left
    with counted(backbone(pipe)) as forwards:
        for done, _ in enumerate(images, start=1):
            yield Progress(run.what, done, total)
    return Drawn(done, forwards[0])


def draw_on(engine: Engine, model: ModelSource, runs: Sequence[Run]) -> Generator[Progress, None, list[Drawn]]:
    """Draw what runs are missing on the workers of an engine, all of which see the folders of the runs.

    Each run is made in shards, which are one manifest again in the end. What a lost worker had drawn is kept, and is in no `Drawn`.
    """
    drawn, units, done = [Drawn()] * len(runs), list[tuple[int, Shard]](), 0
    with ExitStack() as held:
        for n, run in enumerate(runs):
            folder = RunFolder(run.out)
            held.enter_context(lock(run.out / "workers"))  # one command at a time, whose workers share the manifest
            folder.put_together()  # what was left by another number of shards
            held.enter_context(lock(folder.manifest, shared=True))
            whole = folder.manifests() and len(folder.done()) >= len(run.prompts) * run.config.images
            shards = [Shard(i, count) for count in [engine.units(len(run.prompts))] for i in range(count)]
            units += [(n, shard) for shard in (shards[:1] if whole else shards)]  # the first one finds out whether it is this run
        total = sum(len(shard.take(runs[n].prompts)) * runs[n].config.images for n, shard in units)
        for n, images, now in engine.map(Drawing(model, tuple(runs)), units):
            drawn[n] = Drawn(drawn[n].images + now.images, drawn[n].forwards + now.forwards)
            done += images
            yield Progress("generating", done, total)
    for run in runs:
        RunFolder(run.out).put_together()
    return drawn


@dataclass
class Drawing:
    """The task of drawing a shard of a run: (number of the run, shard) -> (number of the run, images of the shard, those drawn now)."""

    model: ModelSource
    runs: tuple[Run, ...]

    @cached_property
    def pipe(self) -> Any:
        """The pipeline, loaded once a worker."""
        return self.model.load()

    def __call__(self, unit: tuple[int, Shard]) -> tuple[int, int, Drawn]:
        number, shard = unit
        run = self.runs[number]
        return number, len(shard.take(run.prompts)) * run.config.images, finished(draw(self.pipe, run, shard))


def judge_on(engine: Engine, task: Judging) -> Iterator[Progress]:
    """Judge the images of runs on the workers of an engine, so that `respodiff.evaluation.evaluate.judge_all` has none left to open."""
    counts = [engine.units(len({r.prompt_id for r in RunFolder(run).records()})) for run in task.runs]
    units = [(run, Shard(i, count)) for run, count in zip(task.runs, counts, strict=True) for i in range(count)]
    for done, _ in enumerate(engine.map(task, units), start=1):
        yield Progress("judging", done, len(units))


@dataclass
class Judging:
    """The task of judging a shard of a run folder: (folder, shard) -> None.

    Attributes:
        sources: of the judges, as `respodiff.evaluation.judges.load_judge` takes them.
        options: further arguments of `respodiff.evaluation.evaluate.judge_shard`.
    """

    runs: tuple[Path, ...]
    sources: tuple[str, ...]
    attributes: tuple[Attribute, ...]
    device: str = "cpu"
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def judges(self) -> list[Any]:
        """The judges, loaded once a worker."""
        return [judges.load_judge(source, self.device) for source in self.sources]

    def __call__(self, unit: tuple[Path, Shard]) -> None:
        run, shard = unit
        judge_shard(run, self.judges, self.attributes, shard, **self.options)


def finished(steps: Generator[Any, None, T]) -> T:
    """What a generator returns, once it is at its end."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
