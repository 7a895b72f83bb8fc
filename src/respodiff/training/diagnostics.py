"""Ranks neutral prompts before a training, and measures a trained module, from noise predictions alone.

Notation: e(y) is the noise prediction for prompt y, e() for the empty one, a_1..a_K are the alternatives' prompts, s that of a subject.

    residual = sum |e(y) - sum_k w_k e(a_k)|^2 / sum |e(y) - e()|^2      on rollouts of the alternatives, w best at every latent, sum w = 1
    distance = sum |e(y) - e(s)|^2 / sum |e(s) - e()|^2                  on rollouts of every subject

Residual is 0 for a mean of the alternatives' scores, distance 1 for a prompt as far from subjects as no prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from respodiff.concepts.concept import Concept
from respodiff.pipelines.bottleneck import channels_first, eager, shifted
from respodiff.steering.module import ConceptModule
from respodiff.training.config import RolloutConfig
from respodiff.training.objectives import mixture
from respodiff.training.rollouts import mix_seed, predict, roll_batch
from respodiff.training.state import open_model

SUBJECTS = ("a doctor", "a nurse", "a teacher", "a cook", "a farmer", "a lawyer")
ROLLOUTS, STEPS = 8, 8
"""Rollouts of all alternatives together (every subject gets two), and their steps."""


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
    return float(x.double().square().sum())


@torch.no_grad()
def projection(pipe: Any, concept: Concept, module: ConceptModule, seed: int = 0) -> float:
    """<e[r + s] - e, d> / |d|^2 over the latents of two short unsteered rollouts: 0 is no effect, 1 as far as the target.

    e is the prediction for the neutral prompt, e[r + s] the same with the module, d = e(target) - e (safety: e - e(negative)).
    """
    height, width = module.header.resolution
    model = open_model(pipe, RolloutConfig(height=height, width=width))
    neutral, target, negative = model.encode([concept.neutral, concept.target, concept.negative])
    r, s = (form.to(model.device) for form in module.forms())
    with eager(model.model):
        z, t = roll_batch(model, 2, mix_seed(seed, 5), neutral, steps=4)
        e = predict(model, z, t, neutral, 2)
        d = e - predict(model, z, t, negative, 2) if concept.kind == "safety" else predict(model, z, t, target, 2) - e
        steps = iter(t.split(2))

        def delta(h: Tensor) -> tuple[Tensor, slice]:
            at = channels_first(h).float(), next(steps)
            return module.weight * (r(*at) + s(*at)).to(h.dtype), slice(None)

        with shifted(model.model, delta, model.site):
            change = predict(model, z, t, neutral, 2) - e
    return ((change * d).sum() / d.square().sum().clamp(min=1e-12)).item()
