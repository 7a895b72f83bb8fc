"""Neutral prompts ranked by noise predictions: scores against the equations written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from respodiff.concepts.concept import Concept, concept
from respodiff.pipelines.denoiser import Denoiser, repeat
from respodiff.training import diagnostics
from respodiff.training.diagnostics import choose_neutral
from respodiff.training.rollouts import mix_seed, roll_batch

pytestmark = pytest.mark.slow

WOMAN = concept("woman")
SUBJECTS = ("a doctor", "a nurse")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ROLLOUTS", 4), ("STEPS", 3), ("SUBJECTS", SUBJECTS)):
        monkeypatch.setattr(diagnostics, name, value)


def test_residual_and_distance_by_hand(tiny_pipe: Any) -> None:
    denoiser = Denoiser(tiny_pipe, guidance=3.0)

    @torch.no_grad()
    def predicted(prompt: str, z: Any, t: Any) -> Any:
        return denoiser(z, t, repeat(denoiser.encode([prompt])[0], len(z))).double().flatten(1)

    def rolled(prompt: str, *stream: int) -> Any:
        return roll_batch(denoiser, 2, mix_seed(0, *stream), denoiser.encode([prompt])[0], 3)

    (found,) = choose_neutral(tiny_pipe, WOMAN, ["a person"])
    parts = [rolled("a woman", 0, 0), rolled("a man", 0, 1)]
    z, t = (torch.cat(rows) for rows in zip(*parts, strict=True))
    assert len(z) == 2 * 2 * 3, "two rollouts of three steps of each alternative"
    y, woman, man, nothing = (predicted(p, z, t) for p in ("a person", "a woman", "a man", ""))
    w = ((y - man) * (woman - man)).sum(1) / (woman - man).square().sum(1)
    left = (y - man - w[:, None] * (woman - man)).square().sum()
    assert found.residual == pytest.approx((left / (y - nothing).square().sum()).item(), rel=1e-3)
    tops, bottoms = 0.0, 0.0
    for i, subject in enumerate(SUBJECTS):
        at = rolled(subject, 1 + i, 0)
        y, s, nothing = (predicted(p, *at) for p in ("a person", subject, ""))
        tops, bottoms = tops + (y - s).square().sum().item(), bottoms + (s - nothing).square().sum().item()
    assert found.distance == pytest.approx(tops / bottoms, rel=1e-3)
    assert found.mean == pytest.approx((found.residual + found.distance) / 2)


def test_the_best_comes_first_and_a_prompt_that_is_an_alternative_leaves_no_residual(tiny_pipe: Any) -> None:
    found = choose_neutral(tiny_pipe, concept("dark"), ["a car", concept("dark").target, "a person"], seed=3)
    assert [s.mean for s in found] == sorted(s.mean for s in found) and len(found) == 3
    assert next(s.residual for s in found if s.prompt == concept("dark").target) < 1e-6
    assert found == choose_neutral(tiny_pipe, concept("dark"), [s.prompt for s in found], seed=3)


@pytest.mark.parametrize(
    ("chosen", "candidates", "said"),
    [
        (concept("violence"), ["a person"], "concept 'violence' has no alternatives"),
        (Concept("x", "a woman"), ["a person"], "concept 'x' has no alternatives"),
        (WOMAN, [], "candidates"),
        (WOMAN, ["a person", " "], "candidates"),
        (WOMAN, ["a person", "a person"], "candidates"),
        (WOMAN, ["a person " * 40], "tokens"),
    ],
)
def test_refusals(tiny_pipe: Any, chosen: Concept, candidates: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        choose_neutral(tiny_pipe, chosen, candidates)
