"""Chooses the smallest scale of modules that reaches a concept accuracy; a larger one moves images further from the unsteered ones."""

from __future__ import annotations

import tempfile
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from respodiff.concepts.concept import Attribute, Concept, builtin
from respodiff.data.records import Prompt
from respodiff.evaluation.evaluate import evaluate
from respodiff.evaluation.judges import Vocabulary
from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate
from respodiff.steering.adapter import Adapter

SCALES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
IMAGES = 4
"""Images of every tuning prompt at every scale."""


class ScaleChoice(NamedTuple):
    """The smallest of `SCALES` that reaches the accuracy, and the accuracy there (95 % interval over prompts)."""

    scale: float
    accuracy: Estimate


def choose_scale(
    pipe: Any,
    modules: Sequence[Adapter],
    prompts: Sequence[Prompt | str],
    reach: float,
    config: GenerateConfig,
    judge: Any = "embedded",
    *,
    safety: Sequence[Adapter] = (),
    library: Mapping[str, Attribute | Concept] | None = None,
    vocabulary: Vocabulary | None = None,
) -> ScaleChoice:
    """Generate the prompts at rising scales, from the same noise, until the concept accuracy is reached.

    Args:
        modules: alternatives of one attribute, or one alone. library: attributes beside the built-in ones.
        prompts: to tune on, other than those that results are reported for. reach: concept accuracy, in (0, 1).
        config: settings of the run. Its scale, policy and proportions are not used; the noise is that of its seed + 1.

    Raises:
        ValueError: modules of several attributes or of none, ``reach`` outside (0, 1), or no scale that reaches it.
    """
    if not 0 < reach < 1:
        raise ValueError(f"reach is {reach:g}; allowed: a number between 0 and 1")
    attribute = attribute_of(modules, {**builtin(), **(library or {})})
    config = replace(config, images=IMAGES, policy="exact", target_proportions=None, group_proportions=None, seed=config.seed + 1)
    config = replace(config, skip_explicit_prompts=False, use_dataset_settings=False)
    best = (0.0, 0.0)
    for scale in SCALES:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            deque(generate(pipe, prompts, modules, replace(config, scale=scale), safety=safety, out=run), maxlen=0)
            summary = evaluate(run, judge, attribute, vocabulary=vocabulary)
        for line in summary.problems:
            warnings.warn(f"scale {scale:g}: {line}", stacklevel=2)
        found = summary.concept_accuracy[attribute.name]
        if found is None:
            raise ValueError(f"the judge labels no image of {attribute.name!r}; give other tuning prompts or another judge")
        if found.mean >= reach:
            return ScaleChoice(scale, found)
        best = max(best, (found.mean, scale))
    best_of = f"the best is {best[0]:.3f} at {best[1]:g}"
    raise ValueError(f"no scale up to {SCALES[-1]:g} reaches {reach:g}: {best_of}; train longer, or ask for less")


def attribute_of(modules: Sequence[Adapter], library: Mapping[str, Attribute | Concept]) -> Attribute:
    """What a judge chooses from: the known attribute of the modules, else their targets (a module alone: and its neutral prompt).

    ValueError for modules that are not the alternatives of one attribute.
    """
    names = {m.header.attribute or "concept" if m.header.kind == "fairness" else "safety" for m in modules}
    name = ", ".join(sorted(names))
    if len(names) != 1 or name == "safety" or "*" in name:
        raise ValueError(f"modules are of {name or 'nothing'}; give the alternatives of one attribute, which have a concept accuracy")
    own, known = {m.name: m.header.target for m in modules}, library.get(name)
    if isinstance(known, Attribute) and own.items() <= {c.name: c.target for c in known.concepts}.items():
        return known
    concepts = [Concept(n, target, attribute=name) for n, target in own.items()]
    rest = [Concept("neutral", modules[0].header.neutral, attribute=name)] if len(concepts) == 1 else []
    return Attribute(name, (*concepts, *rest))
