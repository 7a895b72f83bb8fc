"""Targets and losses against the formulas written out."""

from __future__ import annotations

import torch

from respodiff.training.objectives import TARGETS, contrast, guided, preservation_loss, response_loss, semantic_loss

SCORES = {
    "target": torch.tensor([1.0, 2.0]),
    "neutral": torch.tensor([0.5, -1.0]),
    "negative": torch.tensor([0.0, 3.0]),
    "opposite": torch.tensor([2.0, 0.0]),
}


def test_targets_match_their_equations() -> None:
    assert guided(SCORES, 1).tolist() == [1.0, 2.0]
    assert guided(SCORES, 4).tolist() == [0 + 4 * (1 - 0), 3 + 4 * (2 - 3)]
    assert contrast(SCORES, 2).tolist() == [0.5 + 2 * (1 - 2), -1 + 2 * (2 - 0)]


def test_targets_read_only_the_roles_they_declare() -> None:
    for function, roles in TARGETS.values():
        function({role: SCORES[role] for role in roles}, 2.0)


def test_losses_are_means_over_all_elements() -> None:
    a, b = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    mean = (1 + 0 + 4 + 16) / 4
    assert response_loss(a, b).item() == mean
    assert semantic_loss(a, b, 0.5).item() == 0.5 * mean
    assert preservation_loss(a, b, 3.0).item() == 3 * mean
