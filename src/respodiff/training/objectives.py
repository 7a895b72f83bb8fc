"""Targets and losses of the two modules, and several opposites' scores as one: small functions of noise predictions.

Notation: e(y) is the noise prediction of the unmodified model for prompt y, e[d](y) the same with d added to h. Every tensor is
(B, C, H, W). ``scores`` holds the predictions of the unmodified model by role: ``target``, ``neutral``, ``negative`` (the negative
prompt of a safety concept, else the empty prompt), ``opposite`` (mean over the other alternatives of the attribute, weighted by how often
the neutral prompt draws them, `opposed`; the negative prompt where there are none; the neutral prompt where there is neither).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

Scores = Mapping[str, Tensor]
Target = Callable[[Scores, float], Tensor]


def guided(scores: Scores, w: float) -> Tensor:
    """e(negative) + w (e(target) - e(negative)). Paper, L_resp: w = 1 is the plain target score; the released code uses 4 for
    fairness, and 12 with the negative prompt in place of the empty one for safety."""
    if w == 1:
        return scores["target"]
    return scores["negative"] + w * (scores["target"] - scores["negative"])


def shift(scores: Scores, w: float) -> Tensor:
    """e(neutral) + w (e(target) - e(neutral)): the way from neutral to target, w times as far (w = 1 equals `guided` at 1)."""
    return scores["neutral"] + w * (scores["target"] - scores["neutral"])


def contrast(scores: Scores, w: float) -> Tensor:
    """e(neutral) + w (e(target) - e(opposite)): what all alternatives share cancels, and so does the share that the neutral prompt
    already draws (where 70 % are men, "man" is less than half as far from "a person" as "woman"). For a safety concept the target is
    the neutral prompt and the opposite the negative one: the way from unsafe to neutral, taken from the neutral prompt onwards."""
    return scores["neutral"] + w * (scores["target"] - scores["opposite"])


TARGETS: dict[str, tuple[Target, tuple[str, ...]]] = {
    "guided": (guided, ("target", "negative")),
    "shift": (shift, ("target", "neutral")),
    "contrast": (contrast, ("target", "neutral", "opposite")),
}
"""Name -> (function, roles it reads)."""


def opposed(neutral: Tensor, target: Tensor, opposites: Sequence[Tensor]) -> Tensor:
    """The opposites' scores as one: their mean, weighted by what the neutral prompt draws of each (`mixture`; at least .01)."""
    proportions = mixture(neutral, [target, *opposites])[1:].clamp(min=0.01)
    weights = (proportions / proportions.sum()).tolist()
    return torch.stack([w * e for w, e in zip(weights, opposites, strict=True)]).sum(0)


def mixture(neutral: Tensor, alternatives: Sequence[Tensor]) -> Tensor:
    """Shares w (K,), summing to 1, with which the alternatives' scores e_k make up the neutral score: min |e(neutral) - sum_k w_k e_k|^2.

    A neutral score is the posterior-weighted mean of the alternatives' scores, so that w estimates what the model draws for the neutral
    prompt, from predictions alone. Not clamped: noise can make a share slightly negative.
    """
    first, *others = (e.flatten().cpu().double() for e in alternatives)  # float64 is not to be had on every device
    if not others:
        return torch.ones(1)
    columns = torch.stack([e - first for e in others], 1)
    w = torch.linalg.lstsq(columns, (neutral.flatten().cpu().double() - first)[:, None]).solution[:, 0]
    return torch.cat([1 - w.sum(0, keepdim=True), w]).float()


def blended(target: Tensor, neutral: Tensor, blend: float) -> Tensor:
    """(e_tar + lambda e_neu) / (1 + lambda), the one target of both losses: for one tensor d,

    |e[d] - e_tar|^2 + lambda |e[d] - e_neu|^2 = (1 + lambda) |e[d] - (e_tar + lambda e_neu) / (1 + lambda)|^2 + what d does not change.
    """
    return (target + blend * neutral) / (1 + blend)


def response_loss(steered: Tensor, target: Tensor, blend: float = 0.0) -> Tensor:
    """L_resp = mean (e[r](neutral) - e_target)^2 over all elements (paper, RAM); times 1 + lambda for a `blended` target, so that its
    gradient is that of both losses, and preservation weighs what it weighs beside them."""
    return (1 + blend) * mse_loss(steered, target) if blend else mse_loss(steered, target)


def preservation_loss(steered: Tensor, plain: Tensor, mu: float) -> Tensor:
    """mu mean (e[d](y) - e(y))^2 over latents of prompts y that the concept must leave alone. Unlike L_sem it is not measured on the
    prompt that is being steered, so that its optimum is not to cancel the steering."""
    return mu * mse_loss(steered, plain)


def semantic_loss(steered: Tensor, neutral: Tensor, lam: float) -> Tensor:
    """lambda L_sem = lambda mean (e[r + s](neutral) - e(neutral))^2 over all elements (paper, SAM)."""
    return lam * mse_loss(steered, neutral)
