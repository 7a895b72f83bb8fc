"""Methods side by side on one model: the same prompts, the same noise, the same judge; one row a method and scale.

Every method is trained or built with its settings, draws the suite into a run folder, and is judged. Adapters are kept by content (method,
settings, concept, model, version), run folders by name: a killed comparison goes on where it was, and a second one only draws what is new.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from respodiff._version import __version__
from respodiff.concepts.concept import Concept
from respodiff.concepts.intersections import JOIN
from respodiff.data.run_folder import Prompt, RunFolder, write_atomic
from respodiff.experiments.plan import Plan, base_of
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import counted, generate
from respodiff.methods.base import Method
from respodiff.methods.registry import BASELINE, get_method, load
from respodiff.pipelines.loading import weights_digest
from respodiff.pipelines.registry import backbone
from respodiff.steering.adapter import Adapter

GUESS = 2200
"""UNet sample-forwards that training a concept is taken to need, until its own records say better."""


@dataclass(frozen=True)
class Variant:
    """One row of the table: a method at a scale, and the folders of its runs."""

    method: str
    scale: float
    folder: Path

    @property
    def label(self) -> str:
        """The method's name, with the scale where it is not 1."""
        return self.method if self.scale == 1 else f"{self.method} x{self.scale:g}"


@dataclass(frozen=True)
class Progress:
    """Where a comparison is: what is being done, and how many UNet sample-forwards of the (estimated) whole are done."""

    what: str
    done: float
    total: float


class MethodComparison:
    """Trains, draws and keeps everything under one folder; `run` yields its progress.

    Args:
        pipe: diffusers pipeline. plan: what to compare. out: folder of run folders and adapters.
        classify: concept -> classifier of images, for methods that learn from images. judge: its digest, part of what an adapter
            depends on. cache: where adapters are kept; ``out/adapters`` if not given.
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
        self.names = list(dict.fromkeys([BASELINE, *plan.methods]))
        self.left = {name: self._training_left(name) for name in self.names}
        self.drawing = {s.label: self._images_left(s) for s in self.settings()}
        self.done = 0.0

    def settings(self) -> list[Variant]:
        """All rows, the plain model first."""
        rows = []
        for name in self.names:
            scales = self.plan.scales if name != BASELINE and get_method(base_of(name)).scales else (1.0,)
            rows += [Variant(name, s, self.out / "runs" / folder_name(name, s)) for s in scales]
        return rows

    def run(self, names: Sequence[str] | None = None) -> Iterator[Progress]:
        """Train and draw what is missing, of these methods alone if given.

        Raises:
            ValueError: a method cannot take the concepts or the pipeline, before anything is drawn with it.
        """
        for name in self.names if names is None else names:
            entries = yield from self._adapters(name)
            for setting in (s for s in self.settings() if s.method == name):
                for part, (prompts, images) in self.parts.items():
                    yield from self._draw(setting, entries, part, prompts, images)

    def remaining(self, name: str) -> float:
        """UNet sample-forwards (estimated) that a method still needs."""
        return self.left[name] + sum(max(0.0, self.drawing[s.label]) for s in self.settings() if s.method == name)

    # ------------------------------------------------------------ training

    def _adapters(self, name: str) -> Generator[Progress, None, list[Adapter]]:
        made: list[Adapter] = []
        if name != BASELINE:
            for concept in self._trained_for(name):
                made.append((yield from self._adapter(name, concept)))
        return made

    def _trained_for(self, name: str) -> tuple[Concept, ...]:
        """The concepts that a method makes an adapter of; one for a whole attribute where it makes one of all alternatives."""
        chosen = self.plan.concepts
        return chosen[:1] if self.plan.kind in get_method(base_of(name)).needs_classifier else chosen

    def _config(self, name: str, kind: Method, concept: Concept) -> Any:
        changes = self.plan.training_settings(name)
        if "seed" in {f.name for f in dataclasses.fields(kind.config)}:
            changes.setdefault("seed", self.plan.seed)
        return kind.settings(concept.kind, **changes)

    def path_of(self, name: str, concept: Concept) -> Path:
        """Where an adapter is kept: by all that it depends on."""
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

    def _training_left(self, name: str) -> float:
        if name == BASELINE:
            return 0.0
        return float(GUESS * sum(not self.path_of(name, c).with_suffix(".json").is_file() for c in self._trained_for(name)))

    def _adapter(self, name: str, concept: Concept) -> Generator[Progress, None, Adapter]:
        path, kind = self.path_of(name, concept), get_method(base_of(name))
        cost = path.with_suffix(".json")
        if not (path.is_file() and cost.is_file()):
            before, others = self.done, self.left[name] - GUESS
            classify = self.classify(concept) if self.classify and concept.kind in kind.needs_classifier else None
            record = None
            for record in kind.train(self.pipe, concept, self._config(name, kind, concept), classify=classify):
                whole = record.unet_forwards * record.iterations / max(1, record.iteration)
                self.done, self.left[name] = before + record.unet_forwards, others + max(0.0, whole - record.unet_forwards)
                yield self._progress(f"{'training' if kind.trains else 'building'} {name}: {concept.name}")
            if record is None:
                raise RuntimeError(f"method {name} ended without a record")
            path.parent.mkdir(parents=True, exist_ok=True)
            record.module.save(path)
            write_atomic(cost, json.dumps({"unet_forwards": record.unet_forwards, "seconds": round(record.seconds, 2)}) + "\n")
            self.left[name] = max(0.0, others)
        return load(path)

    def training_cost(self, name: str) -> dict[str, float]:
        """UNet sample-forwards and seconds of all adapters of a method."""
        total = {"unet_forwards": 0.0, "seconds": 0.0}
        for concept in self._trained_for(name) if name != BASELINE else ():
            found = json.loads(self.path_of(name, concept).with_suffix(".json").read_text(encoding="utf-8"))
            total = {k: total[k] + found[k] for k in total}
        return total

    # ------------------------------------------------------------ drawing

    def _images_left(self, setting: Variant) -> float:
        wanted = sum(len(prompts) * images for prompts, images in self.parts.values())
        there = sum(len(RunFolder(setting.folder / part).done()) for part in self.parts if (setting.folder / part / "run.json").is_file())
        return 2.0 * self.plan.steps * max(0, wanted - there)

    def _draw(self, setting: Variant, entries: Sequence[Adapter], part: str, prompts: Sequence[Prompt], images: int) -> Iterator[Progress]:
        p = self.plan
        config = GenerateConfig(
            images=images,
            scale=setting.scale * p.factor(setting.method),
            safety_scale=setting.scale * p.factor(setting.method),
            steps=p.steps,
            guidance=p.guidance,
            seed=p.seed,
            **p.drawing(setting.method),
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
        return Progress(what, self.done, self.done + sum(self.remaining(name) for name in self.names))


def folder_name(name: str, scale: float) -> str:
    """A method, variant and scale as a folder's name.

    >>> folder_name("slider:rank 1", 0.5), folder_name("uce", 1.0)
    ('slider-rank-1-0.5', 'uce')
    """
    return "-".join(re.findall(r"[\w.]+", name)) + ("" if scale == 1 else f"-{scale:g}")


def note_cost(folder: Path, images: int, forwards: int, seconds: float) -> None:
    """Add to what drawing a run has cost (``cost.json``), over all sittings."""
    found = cost_of(folder)
    added = {"images": images, "unet_forwards": forwards, "seconds": seconds}
    write_atomic(folder / "cost.json", json.dumps({k: found[k] + v for k, v in added.items()}) + "\n")


def cost_of(folder: Path) -> dict[str, float]:
    """What drawing a run has cost so far; zeros where nothing was drawn."""
    path = folder / "cost.json"
    if not path.is_file():
        return {"images": 0.0, "unet_forwards": 0.0, "seconds": 0.0}
    found: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return found
