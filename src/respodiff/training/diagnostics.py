"""Ranks neutral prompts before a training, and judges what was trained, from noise predictions alone.

Notation: e(y) is the noise prediction for prompt y, e() for the empty one, a_1..a_K are the alternatives' prompts, s that of a subject.

    residual = sum |e(y) - sum_k w_k e(a_k)|^2 / sum |e(y) - e()|^2      on rollouts of the alternatives, w best at every latent, sum w = 1
    distance = sum |e(y) - e(s)|^2 / sum |e(s) - e()|^2                  on rollouts of every subject

Residual is 0 for a mean of the alternatives' scores, distance 1 for a prompt as far from subjects as no prompt.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from respodiff.concepts.concept import Concept
from respodiff.pipelines.bottleneck import channels_first, eager, shifted
from respodiff.pipelines.denoiser import Denoiser, repeat
from respodiff.pipelines.registry import Site
from respodiff.steering.adapter import Adapter
from respodiff.steering.module import ConceptModule
from respodiff.training.config import RolloutConfig
from respodiff.training.objectives import mixture
from respodiff.training.rollouts import mix_seed, predict, roll_batch
from respodiff.training.state import open_model

SUBJECTS = ("a doctor", "a nurse", "a teacher", "a mechanic", "a farmer", "a lawyer")
ROLLOUTS, STEPS = 8, 8
"""Rollouts of all alternatives together (every subject gets two), and their steps."""

SAME, LEAST, MOST = 1e-5, 1e-3, 10.0
"""Bounds of a verdict: |d| / |e| of two prompts that are the same, and the least effect and largest relative norm of what is kept."""

LITTLE, OUTWEIGHS = 0.05, 1.0
"""Projection below which, and relative norm above which, an adapter is kept with a warning.

On the embedded model sane trainings have effects of 0.4 to 8 and relative norms of at most 1.1; a learning rate of 1000 gives norms of 700 or more.
"""

Adapted = TypeVar("Adapted", bound=Adapter)


class NeutralScore(NamedTuple):
    """How well a neutral prompt stands for its alternatives; lower is better."""

    prompt: str
    residual: float
    distance: float

    @property
    def mean(self) -> float:
        """(residual + distance) / 2, by which prompts are ranked."""
        return (self.residual + self.distance) / 2


@torch.no_grad()
def choose_neutral(pipe: Any, concept: Concept, candidates: Sequence[str], seed: int = 0) -> list[NeutralScore]:
    """The candidates with their scores, the best first, all measured on the same latents.

    ValueError for a concept without alternatives, and for candidates that are missing, empty, repeated or too long.
    """
    if concept.kind != "fairness" or not concept.opposites:
        raise ValueError(f"concept {concept.name!r} has no alternatives, which neutral prompts are held against; give one with opposites")
    if not candidates or not all(p.strip() for p in candidates) or len(set(candidates)) < len(candidates):
        raise ValueError(f"candidates is {list(candidates)}; give distinct prompts, none of them empty")
    model = open_model(pipe, RolloutConfig())
    neutrals, alternatives, others = map(model.encode, (candidates, [concept.target, *concept.opposites], SUBJECTS))
    e = partial(predict, model, size=12)
    with eager(model.model):
        per = max(2, round(ROLLOUTS / len(alternatives)))
        rolled = [roll_batch(model, per, mix_seed(seed, 0, i), c, STEPS) for i, c in enumerate(alternatives)]
        z, t = (torch.cat(rows) for rows in zip(*rolled, strict=True))
        parts, nothing = [e(z, t, c) for c in alternatives], e(z, t, model.empty)
        visited = [(*roll_batch(model, 2, mix_seed(seed, 1 + i, 0), c, STEPS), c) for i, c in enumerate(others)]
        subjects = [(a, b, e(a, b, c)) for a, b, c in visited]
        whole = sum(_squares(score - e(a, b, model.empty)) for a, b, score in subjects)
        found = []
        for prompt, c in zip(candidates, neutrals, strict=True):
            y = e(z, t, c)
            residual = sum(_unexplained(*one) for one in zip(y, *parts, strict=True)) / _squares(y - nothing)
            distance = sum(_squares(e(a, b, c) - score) for a, b, score in subjects) / whole
            found.append(NeutralScore(prompt, residual, distance))
    return sorted(found, key=lambda score: score.mean)


def _unexplained(score: Tensor, *alternatives: Tensor) -> float:
    """min over w, sum w = 1, of |e - sum_k w_k e_k|^2 at one latent."""
    weights = mixture(score, alternatives)
    return _squares(score.cpu() - sum(w * e.cpu() for w, e in zip(weights, alternatives, strict=True)))


def _squares(x: Tensor) -> float:
    return float(x.detach().cpu().double().square().sum())


@torch.no_grad()
def with_verdict(
    model: Denoiser,
    adapter: Adapted,
    prompts: tuple[str, str, str],
    active: Callable[[Tensor], AbstractContextManager[object]],
    relative_norm: Callable[[], float],
) -> Adapted:
    """The adapter of a finished training, with a verdict in its header, from the latents of two short unsteered rollouts.

        effect = |e' - e| / |d|     projection = <e' - e, d> / |d|^2: 0 is no effect, 1 as far as the target

    A projection below `LITTLE` and a relative norm above `OUTWEIGHS` are warnings.

    Args:
        prompts: the steered one, of e, and the two whose predictions differ by d: from one to the other.
        active: a block for timesteps t (2,), in which predictions are those with the adapter, e'.
        relative_norm: size of the change as a part of what is changed; called after the predictions.

    Raises:
        RuntimeError: for no effect or too large a change, for figures that are not finite, and for prompts that are the same to the model.
    """
    name, config, (steered, start, end) = f"{adapter.method} {adapter.name!r}", adapter.settings, prompts
    conditions = dict(zip(prompts, model.encode(prompts), strict=True))
    y = conditions[steered]
    z, t = roll_batch(model, 2, mix_seed(0, 5), y, steps=4)
    e = {text: predict(model, z, t, c, 2) for text, c in conditions.items()}
    d, changed = e[end] - e[start], []
    for a, b in zip(z.split(2), t.split(2), strict=True):
        with active(b):
            changed.append(model(a, b, repeat(y, len(a))).float())
    change, size = torch.cat(changed) - e[steered], d.norm().item()
    if size <= SAME * e[steered].norm().item():
        raise RuntimeError(
            f"{name}: the prompts {start!r} and {end!r} are the same to this model; give another target, neutral or negative"
        )
    projection = (change * d).sum().item() / size**2
    found = {"effect": change.norm().item() / size, "projection": projection, "relative_norm": relative_norm()}
    rate, factors = ("ram_lr", ", projection, sam_lr or sam_weight") if "ram_lr" in config else ("lr", "")
    if not all(map(math.isfinite, found.values())) or found["relative_norm"] > MOST:
        words = f"is {found['relative_norm']:.3g} times as large as what it changes, with an effect of {found['effect']:.3g}"
        raise RuntimeError(f"{name} {words}: training diverged; lower {rate}, which is {config[rate]:g}{factors}")
    if found["effect"] < LEAST:
        words = f"has an effect of {found['effect']:.1g} of the way to the target, which is none"
        raise RuntimeError(f"{name} {words}; raise {rate}, which is {config[rate]:g}, or iterations")
    told = []
    if projection < LITTLE:
        or_less = ", or lower sam_weight" if config.get("sam_lr") else ""
        told = [
            f"moves predictions {'away from' if projection < 0 else 'hardly towards'} its target (projection {projection:.2g}); train it for longer{or_less}"
        ]
    if found["relative_norm"] > OUTWEIGHS:
        told += [
            f"outweighs what it changes, by {found['relative_norm']:.2g} to 1, and may break images; lower {rate}, which is {config[rate]:g}{factors}"
        ]
    for line in told:
        warnings.warn(f"{name} {line}", stacklevel=2)
    return replace(adapter, header=replace(adapter.header, verdict=found))


def module_with_verdict(model: Denoiser, concept: Concept, module: ConceptModule) -> ConceptModule:
    """`with_verdict` for a module: its relative norm is |r + s| / |h|, the mean of several sites', and d = e(target) - e(neutral), or
    e(neutral) - e(negative) for safety.
    """
    forms, norms = {site: [form.to(model.device) for form in module.at(site).forms()] for site in model.sites}, list[float]()

    @contextmanager
    def active(t: Tensor) -> Iterator[None]:
        def delta(site: Site, h: Tensor) -> tuple[Tensor, slice]:
            x, (r, s) = channels_first(h).float(), forms[site]
            offset: Tensor = r(x, t) + s(x, t)
            norms.append((offset.square().mean() / x.square().mean()).sqrt().item())
            return offset, slice(None)

        with ExitStack() as stack:
            for site in model.sites:
                stack.enter_context(shifted(model.model, partial(delta, site), site))
            yield

    known = module.relative_norm
    return with_verdict(model, module, directions(concept), active, lambda: fmean(norms) if known is None else known)


def directions(concept: Concept) -> tuple[str, str, str]:
    """The steered prompt, and the two that the concept's direction goes from and to."""
    if concept.kind == "safety":
        return concept.neutral, concept.negative, concept.neutral
    return concept.neutral, concept.neutral, concept.target


def share(changes: Iterable[tuple[Tensor, Tensor]]) -> float:
    """|change| / |weights| over pairs of both."""
    pairs = [(_squares(change), _squares(weight)) for change, weight in changes]
    return math.sqrt(sum(a for a, _ in pairs) / max(sum(b for _, b in pairs), 1e-12))
