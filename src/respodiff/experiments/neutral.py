"""Which neutral prompt to train on, from noise predictions alone: no image is generated and no module trained.

Notation: e(y) is the model's noise prediction for prompt y at a latent, e() that of the empty prompt, a_1..a_K the alternatives' prompts
(target and opposites), s the prompts of sample subjects. A good neutral prompt y says nothing but "one of the alternatives", and is
near what is steered later:

- residual: sum |e(y) - sum_k w_k e(a_k)|^2 / sum |e(y) - e()|^2 with the best weights w (summing to 1) at every latent of the
  alternatives' rollouts. A neutral score is the posterior-weighted mean of the alternatives' scores, so that 0 is a prompt they make up.
- distance: sum |e(y) - e(s)|^2 / sum |e(s) - e()|^2 on the rollouts of every subject: 1 is as far from "a doctor" as no prompt at all.
- push: -dL/dr at r = 0 of every latent, L the loss of RAM: where training on y sets out. Where candidates' pushes agree, the choice hardly
  matters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from respodiff.concepts.concept import Concept
from respodiff.pipelines.bottleneck import eager, frozen, run_with_decoder
from respodiff.pipelines.denoiser import Condition, Denoiser, repeat
from respodiff.pipelines.text_encoding import check_length
from respodiff.training.config import TrainConfig
from respodiff.training.objectives import TARGETS, mixture, opposed
from respodiff.training.rollouts import Rollouts, mix_seed

SUBJECTS = ("a doctor", "a nurse", "a teacher", "a cook", "a farmer", "a lawyer")
CANDIDATES = ("a person", "a human", "someone", "a portrait of a person", "a photo of a person")
ROLLOUTS, STEPS = 8, 8
"""Rollouts of all alternatives together, and of their steps; every subject gets two."""

Ratio = tuple[list[float], list[float]]
"""Tops and bottoms of a ratio of sums, a number a unit that varies by itself."""


@dataclass(frozen=True)
class Candidate:
    """What one neutral prompt is like.

    Attributes:
        residual: over rollouts of the alternatives. distance: over subjects.
        proportions: with which the alternatives make up its score over all latents, target first (`respodiff.training.objectives.mixture`).
        push: (N, C, H, W) float32 on the CPU, of latents of the alternatives. units: the rollout that each is of, (N,).
    """

    prompt: str
    residual: Ratio
    distance: Ratio
    proportions: list[float]
    push: Tensor
    units: Tensor


@dataclass(frozen=True)
class _Latents:
    """Latents (N, C, H, W), labels (N,), the rollout each is of (N,), and scores at them: of the prompts that candidates are held against,
    of the empty prompt, and of the concept's negative one (which is mostly the empty one)."""

    z: Tensor
    t: Tensor
    unit: Tensor
    scores: list[Tensor]
    empty: Tensor
    negative: Tensor


def weigh(
    pipe: Any, concept: Concept, candidates: Sequence[str], subjects: Sequence[str] = SUBJECTS, config: TrainConfig | None = None
) -> Iterator[Candidate]:
    """Figures of every candidate, one after another, on the same latents.

    Args:
        pipe: a diffusers pipeline; left as it was. concept: a fairness concept with opposites; its own neutral prompt plays no part.
        candidates: neutral prompts. subjects: prompts like those that are to be steered.
        config: settings of the training that the prompt is for; None takes the preset with `ROLLOUTS` of `STEPS`.

    Raises:
        ValueError: a safety concept, one without opposites, empty or too long prompts, or a model in float16; before anything is computed.
    """
    config = config or TrainConfig.preset("neutral", concept.kind, rollouts=ROLLOUTS, steps=STEPS)
    _check(concept, candidates, subjects)
    check_length(pipe, [*candidates, *subjects, concept.target, *concept.opposites])
    denoiser = Denoiser(pipe, config.height, config.width, config.rollout_guidance)
    if denoiser.dtype == torch.float16:
        raise ValueError("dtype is float16, in which small gradients become zero; use float32 or bfloat16")
    return _weighed(denoiser, concept, candidates, subjects, replace(config, timesteps="all"))


def _check(concept: Concept, candidates: Sequence[str], subjects: Sequence[str]) -> None:
    if concept.kind != "fairness" or not concept.opposites:
        raise ValueError(
            f"concept {concept.name!r} has no alternatives that a neutral prompt could be a mixture of; give a fairness concept"
        )
    for name, prompts in (("candidates", candidates), ("subjects", subjects)):
        if not prompts or not all(p.strip() for p in prompts):
            raise ValueError(f"{name} is {list(prompts)}; give at least one prompt, none of them empty")
        if twice := [p for p in prompts if list(prompts).count(p) > 1]:
            raise ValueError(f"{name} has {twice[0]!r} twice; give each prompt once")
    if len(subjects) < 2:
        raise ValueError(f"subjects is {subjects[0]!r} alone; give two or more, as intervals are over them")


def _weighed(
    denoiser: Denoiser, concept: Concept, candidates: Sequence[str], subjects: Sequence[str], config: TrainConfig
) -> Iterator[Candidate]:
    rollouts = Rollouts(denoiser, concept, config)
    with frozen(denoiser.model), eager(denoiser.model):
        others = denoiser.encode([concept.target, *concept.opposites])
        per = max(2, round(config.rollouts / len(others)))
        mixed = _latents(rollouts, others, per, 0, others)
        sample = denoiser.encode(subjects)
        asked = [_latents(rollouts, [c], 2, 1 + i, [c]) for i, c in enumerate(sample)]
        for prompt, condition in zip(candidates, denoiser.encode(candidates), strict=True):
            yield _candidate(rollouts, prompt, condition, mixed, asked)


@torch.no_grad()
def _latents(rollouts: Rollouts, sources: Sequence[Condition], per: int, stream: int, against: Sequence[Condition]) -> _Latents:
    """Latents of ``per`` unsteered rollouts of every source, with the scores of ``against``; noise depends on seed, stream and source."""
    parts = []
    for i, condition in enumerate(sources):
        z, t = rollouts.roll_batch(per, mix_seed(rollouts.config.seed, stream, i), condition, None)
        parts.append((z, t, torch.arange(len(z)) % per + i * per))
    z, t, unit = (torch.cat(column) for column in zip(*parts, strict=True))
    scores = [rollouts.predict_all(z, t, condition).float() for condition in against]
    empty, negative = (rollouts.conditions[role][0] for role in ("empty", "negative"))
    plain = rollouts.predict_all(z, t, empty).float()
    same = all(torch.equal(empty[k], negative[k]) for k in empty)
    return _Latents(z, t, unit, scores, plain, plain if same else rollouts.predict_all(z, t, negative).float())


def _candidate(rollouts: Rollouts, prompt: str, condition: Condition, mixed: _Latents, asked: Sequence[_Latents]) -> Candidate:
    with torch.no_grad():
        score = rollouts.predict_all(mixed.z, mixed.t, condition).float()
        left = [_unexplained(score[i], [e[i] for e in mixed.scores]) for i in range(len(score))]
        residual = _by_unit(torch.tensor(left), mixed.unit), _by_unit(_squares(score - mixed.empty), mixed.unit)
        apart = [_squares(rollouts.predict_all(a.z, a.t, condition).float() - a.scores[0]).sum().item() for a in asked]
        whole = [_squares(a.scores[0] - a.empty).sum().item() for a in asked]
    push = _push(rollouts, condition, mixed, _target(rollouts.config, score, mixed))
    return Candidate(prompt, residual, (apart, whole), mixture(score, mixed.scores).tolist(), push, mixed.unit)


def _unexplained(score: Tensor, alternatives: Sequence[Tensor]) -> float:
    """min over w, summing to 1, of |e - sum_k w_k e_k|^2 at one latent."""
    weights = mixture(score, alternatives)
    found = torch.stack([w * e.cpu() for w, e in zip(weights, alternatives, strict=True)]).sum(0)
    return float((score.cpu() - found).double().square().sum())


def _squares(x: Tensor) -> Tensor:
    """|x_i|^2 of every row, (N,) on the CPU."""
    return x.flatten(1).double().square().sum(1).cpu()


def _by_unit(values: Tensor, unit: Tensor) -> list[float]:
    found: list[float] = torch.zeros(int(unit.max()) + 1, dtype=torch.float64).index_add(0, unit, values.double()).tolist()
    return found


def _target(config: TrainConfig, score: Tensor, at: _Latents) -> Tensor:
    """RAM's target at every latent for a neutral prompt of this score."""
    target, *opposites = at.scores
    opposite = opposites[0] if len(opposites) == 1 else opposed(score, target, opposites)
    roles = {"target": target, "neutral": score, "opposite": opposite, "negative": at.negative}
    return TARGETS[config.objective][0](roles, config.target_guidance)


def _push(rollouts: Rollouts, condition: Condition, at: _Latents, target: Tensor) -> Tensor:
    """-dL/dr at r = 0 of every latent, (N, C, H, W) on the CPU: L = |e[r](y) - target|^2 / 2."""
    denoiser, config = rollouts.denoiser, rollouts.config
    shape = denoiser.shape if not config.per_channel else (denoiser.shape[0], 1, 1)
    found = []
    for z, t, wanted in zip(*(x.split(config.rollout_batch) for x in (at.z, at.t, target)), strict=True):
        r = torch.zeros(len(z), *shape, device=denoiser.device, requires_grad=True)
        prediction, _ = run_with_decoder(denoiser.model, partial(denoiser, z, t, repeat(condition, len(z))), r, denoiser.site)
        (pulled,) = torch.autograd.grad((prediction.float() - wanted).square().sum() / 2, r)
        found.append(-pulled.float().cpu())
    return torch.cat(found)
