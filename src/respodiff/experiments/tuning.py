"""Scale chosen by images: modules of one attribute drawn at several scales from the same noise, and judged (`respodiff.experiments.strength`)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from respodiff.concepts.concept import Attribute, Concept, builtin
from respodiff.data.run_folder import Prompt
from respodiff.evaluation.evaluate import judge_all
from respodiff.evaluation.judges import Judge, Vocabulary
from respodiff.evaluation.metrics import fidelity
from respodiff.evaluation.scored_run import ScoredRun
from respodiff.evaluation.statistics import Settings, share, show
from respodiff.experiments.strength import Choice, Point, choose
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate
from respodiff.steering.adapter import AnyAdapter


def tune(
    pipe: Any,
    modules: Sequence[AnyAdapter],
    prompts: Sequence[Prompt | str],
    judge: Judge,
    config: GenerateConfig | None = None,
    *,
    library: Mapping[str, Attribute | Concept] | None = None,
    vocabulary: Vocabulary | None = None,
    out: str | Path | None = None,
    told: Callable[[float], None] = lambda _scale: None,
    **settings: Any,
) -> Choice:
    """`choose` with images of a pipeline: every scale is drawn from the same noise, with the same concepts asked for.

    Args:
        modules: alternatives of one attribute, or one alone. prompts: to tune on, other than those that are reported. judge: one that
            compares images with texts. config: how images are generated; its scale is not used. library: attributes beside the built-in ones.
        out: folder for the run of every scale; what is there is not drawn again. None takes a folder that goes away.
        told: called with every scale before it is drawn. settings: of `choose`.
    """
    attribute = attribute_of(modules, {**builtin(), **(library or {})})
    config = config or GenerateConfig(images=4)
    with _folder(out) as home:
        base: list[ScoredRun] = []

        def measure(scale: float) -> Point:
            told(scale)
            folder = home / f"scale-{scale:g}"
            for _ in generate(pipe, prompts, modules, replace(config, scale=scale, policy="exact"), out=folder):
                pass
            run = judge_all(folder, judge, [attribute], vocabulary=vocabulary)
            base.append(run)
            return point(scale, run, base[0], attribute.name)

        return choose(measure, seed=config.seed, **settings)


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    if out is not None:
        yield Path(out)
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def attribute_of(modules: Sequence[AnyAdapter], library: Mapping[str, Attribute | Concept]) -> Attribute:
    """The alternatives that a judge is to choose from: those of the modules' attribute, if it is known, else the modules' own targets; of a
    module alone its target and its neutral prompt.

    Raises:
        ValueError: modules of several attributes, none, or safety modules.
    """
    if odd := [m.name for m in modules if m.header.kind != "fairness"]:
        raise ValueError(f"module {odd[0]!r} is no alternative that is asked for, so it has no concept accuracy; give fairness modules")
    names = {m.header.attribute or "concept" for m in modules}
    if len(names) != 1:
        raise ValueError(f"modules are of {', '.join(sorted(names)) or 'nothing'}; give the alternatives of one attribute")
    (name,) = names
    own = {m.name: m.header.target for m in modules}
    known = library.get(name)
    if isinstance(known, Attribute) and own.items() <= {c.name: c.target for c in known.concepts}.items():
        return known
    concepts = [Concept(n, target, attribute=name) for n, target in own.items()]
    rest = [Concept("neutral", modules[0].header.neutral, attribute=name)] if len(concepts) == 1 else []
    return Attribute(name, (*concepts, *rest))


def point(scale: float, run: ScoredRun, base: ScoredRun, attribute: str) -> Point:
    """What a scored run shows at a scale; ``base`` is the run at scale 0."""
    known = [(r, s) for r, s in zip(run.records, run.scores, strict=True) if s.problem is None and attribute in r.concepts]
    kept = [(r, bool(s.subject_correct)) for r, s in known if s.subject_correct is not None]
    x, y, drift = base.vectors(base.primary), run.vectors(run.primary), None
    if x is not None and y is not None:
        good = [i for i in range(len(x)) if np.isfinite(x[i]).all() and np.isfinite(y[i]).all()]
        drift = show(fidelity.drift(y[good], x[good], [run.records[i].group for i in good])) if good else None
    return Point(
        scale,
        tuple(r.group for r, _ in known),
        tuple(s.labels[attribute] == r.concepts[attribute] for r, s in known),
        share(kept, Settings()),
        drift,
    )
