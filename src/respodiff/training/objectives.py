"""Provides the targets and losses of RAM and SAM, as functions of noise predictions.

Notation: e(y) is the noise prediction of the frozen model for prompt y, e[d](y) the same with d added to h. Every tensor is (B, C, H, W).
``scores`` holds predictions of the frozen model by role:

    target     the concept's target prompt (of a safety concept: its neutral prompt)
    neutral    the neutral prompt
    negative   the negative prompt of a safety concept, else the empty prompt
    opposite   the other alternatives of the attribute (`opposed`); without any the negative prompt, and without that the neutral prompt
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

Scores = Mapping[str, Tensor]


def guided(scores: Scores, w: float) -> Tensor:
    """e_tar = e(negative) + w (e(target) - e(negative)). The paper has w = 1, which is e(target); the scripts 4, and 12 for safety."""
    return scores["target"] if w == 1 else scores["negative"] + w * (scores["target"] - scores["negative"])


def contrast(scores: Scores, w: float) -> Tensor:
    """e_tar = e(neutral) + w (e(target) - e(opposite)): what alternatives share cancels. Safety: e(neutral) + w (e(neutral) - e(negative))."""
    return scores["neutral"] + w * (scores["target"] - scores["opposite"])


TARGETS: dict[str, tuple[Callable[[Scores, float], Tensor], tuple[str, ...]]] = {
    "guided": (guided, ("target", "negative")),
    "contrast": (contrast, ("target", "neutral", "opposite")),
}
"""Name -> (function, roles it reads)."""


def opposed(neutral: Tensor, target: Tensor, opposites: Sequence[Tensor]) -> Tensor:
    """The mean of the opposites' scores, weighted by their proportions in images of the neutral prompt (`mixture`; at least .01)."""
    proportions = mixture(neutral, [target, *opposites])[1:].clamp(min=0.01)
    weights = (proportions / proportions.sum()).tolist()
    return torch.stack([w * e for w, e in zip(weights, opposites, strict=True)]).sum(0)


def mixture(neutral: Tensor, alternatives: Sequence[Tensor]) -> Tensor:
    """w (K,) that minimises |e(neutral) - sum_k w_k e_k|^2 with sum_k w_k = 1, for the alternatives' scores e_k; noise can make one negative.

    A neutral score is the posterior-weighted mean of the alternatives', so w estimates the proportions in images of the neutral prompt.
    """
    first, *others = (e.flatten().cpu().double() for e in alternatives)  # not every device has float64
    if not others:
        return torch.ones(1)
    columns = torch.stack([e - first for e in others], 1)
    w = torch.linalg.lstsq(columns, (neutral.flatten().cpu().double() - first)[:, None]).solution[:, 0]
    return torch.cat([1 - w.sum(0, keepdim=True), w]).float()


def response_loss(steered: Tensor, target: Tensor) -> Tensor:
    """L_resp = mean (e[r](neutral) - e_tar)^2 (paper, RAM)."""
    return mse_loss(steered, target)


def preservation_loss(steered: Tensor, plain: Tensor, mu: float) -> Tensor:
    """mu mean (e[r](y) - e(y))^2 on latents of prompts y that the concept must leave alone. Unlike L_sem it leaves the steering alone."""
    return mu * mse_loss(steered, plain)


def semantic_loss(steered: Tensor, neutral: Tensor, lam: float) -> Tensor:
    """lambda L_sem = lambda mean (e[r + s](neutral) - e(neutral))^2 (paper, SAM)."""
    return lam * mse_loss(steered, neutral)
