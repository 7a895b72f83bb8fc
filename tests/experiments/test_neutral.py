"""Neutral prompts weighed by scores alone: figures by hand, the rule, and the command."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from command import last_json, respodiff
from respodiff.cli import neutral, train
from respodiff.concepts.concept import Concept, concept
from respodiff.evaluation.metrics.bootstrap import ratio_draws
from respodiff.experiments.neutral import Candidate, _latents, weigh
from respodiff.experiments.neutral_choice import choice, command, cosine, lines
from respodiff.pipelines.bottleneck import shifted
from respodiff.pipelines.denoiser import Denoiser, repeat
from respodiff.training.config import TrainConfig
from respodiff.training.rollouts import Rollouts

WOMAN = concept("woman")
TINY: dict[str, Any] = {"rollouts": 4, "rollout_batch": 4, "steps": 3}
SUBJECTS = ("a doctor", "a nurse")


def config(**changes: Any) -> TrainConfig:
    return TrainConfig.preset("neutral", **{**TINY, **changes})


def weighed(pipe: Any, *candidates: str, chosen: Concept = WOMAN, **changes: Any) -> list[Candidate]:
    return list(weigh(pipe, chosen, candidates, SUBJECTS, config(**changes)))


@pytest.fixture
def lab(tiny_pipe: Any) -> tuple[Any, Rollouts]:
    """The latents of the alternatives, and a function that predicts at them."""
    denoiser = Denoiser(tiny_pipe, guidance=3.0)
    return denoiser, Rollouts(denoiser, WOMAN, config())


@torch.no_grad()
def predicted(denoiser: Any, prompt: str, z: Any, t: Any) -> Any:
    return denoiser(z, t, repeat(denoiser.encode([prompt])[0], len(z))).double()


def test_residual_and_distance_by_hand(tiny_pipe: Any, lab: Any) -> None:
    denoiser, rollouts = lab
    (found,) = weighed(tiny_pipe, "a person")
    both = denoiser.encode(["a woman", "a man"])
    at = _latents(rollouts, both, 2, 0, both)
    assert len(at.z) == 4 * 3 and at.unit.tolist() == [0, 1] * 3 + [2, 3] * 3, "two rollouts of three steps of each alternative"
    y, woman, man, empty = (predicted(denoiser, p, at.z, at.t).flatten(1) for p in ("a person", "a woman", "a man", ""))
    w = ((y - man) * (woman - man)).sum(1) / (woman - man).square().sum(1)
    left = (y - man - w[:, None] * (woman - man)).square().sum(1)
    whole = (y - empty).square().sum(1)
    for unit in range(4):
        assert found.residual[0][unit] == pytest.approx(left[at.unit == unit].sum().item(), rel=1e-3)
        assert found.residual[1][unit] == pytest.approx(whole[at.unit == unit].sum().item(), rel=1e-3)
    for i, subject in enumerate(SUBJECTS):
        asked = denoiser.encode([subject])
        on = _latents(rollouts, asked, 2, 1 + i, asked)
        y, s, empty = (predicted(denoiser, p, on.z, on.t) for p in ("a person", subject, ""))
        assert found.distance[0][i] == pytest.approx((y - s).square().sum().item(), rel=1e-3)
        assert found.distance[1][i] == pytest.approx((s - empty).square().sum().item(), rel=1e-3)


def test_a_prompt_that_is_an_alternative_or_a_subject(tiny_pipe: Any) -> None:
    woman, doctor = weighed(tiny_pipe, "a woman", "a doctor")
    assert sum(woman.residual[0]) < 1e-6 * sum(woman.residual[1]) and woman.proportions == pytest.approx([1.0, 0.0], abs=1e-4)
    assert doctor.distance[0][0] == 0 and doctor.distance[0][1] > 0


@pytest.mark.parametrize("objective", ["contrast", "guided"])
def test_the_direction_is_the_way_down_of_the_loss(tiny_pipe: Any, lab: Any, objective: str) -> None:
    denoiser, rollouts = lab
    (found,) = weighed(tiny_pipe, "a person", objective=objective)
    both = denoiser.encode(["a woman", "a man"])
    at = _latents(rollouts, both, 2, 0, both)
    y, woman, man = (predicted(denoiser, p, at.z, at.t) for p in ("a person", "a woman", "a man"))
    target = y + woman - man if objective == "contrast" else woman

    def loss(r: Any) -> float:
        with shifted(denoiser.model, lambda _h: (r, slice(0, len(at.z))), denoiser.site):
            return float((predicted(denoiser, "a person", at.z, at.t) - target).square().sum() / 2)

    way = found.push.sum(0)
    v = way / way.norm()
    slope = loss(0.5 * v[None]) - loss(-0.5 * v[None])
    assert -slope == pytest.approx(float(way.norm()), rel=0.05)
    assert found.push.shape == (12, 64, 4, 4) and torch.equal(found.units, at.unit)


def test_weighing_leaves_the_pipeline_as_it_was_and_repeats(tiny_pipe: Any) -> None:
    unet = tiny_pipe.unet.requires_grad_(True)
    before = {k: v.clone() for k, v in unet.state_dict().items()}
    first, second = (weighed(tiny_pipe, "a person", "someone") for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert (a.residual, a.distance, a.proportions) == (b.residual, b.distance, b.proportions) and torch.equal(a.push, b.push)
    assert all(p.requires_grad and p.grad is None for p in unet.parameters())
    assert all(torch.equal(v, before[k]) for k, v in unet.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())
    unet.requires_grad_(False)


def test_of_more_alternatives_each_has_a_share(tiny_pipe: Any) -> None:
    (found,) = weighed(tiny_pipe, "a person", chosen=concept("dark"), per_channel=True)
    assert len(found.proportions) == 3 and sum(found.proportions) == pytest.approx(1) and found.push.shape == (18, 64, 1, 1)
    assert len(found.residual[0]) == 6, "two rollouts of each, though fewer were asked for"


@pytest.mark.parametrize(
    ("chosen", "candidates", "subjects", "message"),
    [
        (concept("violence"), ["a person"], SUBJECTS, "concept 'violence' has no alternatives"),
        (Concept("x", "a woman"), ["a person"], SUBJECTS, "concept 'x' has no alternatives"),
        (WOMAN, [], SUBJECTS, r"candidates is \[\]; give at least one prompt"),
        (WOMAN, ["a person", " "], SUBJECTS, "none of them empty"),
        (WOMAN, ["a person"], ["a cook", "a cook"], "subjects has 'a cook' twice"),
        (WOMAN, ["a person"], ["a cook"], "subjects is 'a cook' alone; give two or more"),
        (WOMAN, ["a person " * 40], SUBJECTS, "tokens; this model takes 32"),
    ],
)
def test_refusals(tiny_pipe: Any, chosen: Concept, candidates: list[str], subjects: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weigh(tiny_pipe, chosen, candidates, subjects, config())


# --- the rule ---


def made(prompt: str, residual: float, distance: float, push: list[float]) -> Candidate:
    """A candidate whose figures vary by a tenth over units, in the same way for all candidates."""
    spread = [0.9, 1.0, 1.1, 1.0]
    return Candidate(
        prompt,
        ([residual * x for x in spread], [1.0] * 4),
        ([distance * x for x in spread], [1.0] * 4),
        [0.4, 0.6],
        torch.tensor(push).reshape(-1, 1, 1, 1),
        torch.arange(len(push)),
    )


def test_a_better_prompt_is_taken_and_a_draw_changes_nothing() -> None:
    own, better, same = (
        made("a person", 0.4, 0.6, [1.0, 0.0]),
        made("a human", 0.2, 0.4, [1.0, 0.1]),
        made("someone", 0.41, 0.58, [1.0, -0.1]),
    )
    same = replace(same, residual=(same.residual[0][::-1], same.residual[1]), distance=(same.distance[0][::-1], same.distance[1]))
    found = choice([own, better, same], WOMAN)
    assert found["recommended"] == "a human" and not found["matters"]
    assert found["candidates"][1]["less_own"]["mean"] == pytest.approx(-0.2) and found["candidates"][1]["less_own"]["high"] < 0
    assert found["candidates"][0]["both"]["mean"] == pytest.approx(0.5) and found["candidates"][0]["less_own"] is None
    assert found["candidates"][0]["proportions"] == {"a woman": 0.4, "a man": 0.6}
    assert choice([own, same], WOMAN)["recommended"] == "a person", "lower, but not beyond its interval"
    assert "stay with 'a person'" in "\n".join(lines(choice([own, same], WOMAN), WOMAN, "embedded"))
    assert "take 'a human'" in "\n".join(lines(found, WOMAN, "embedded"))


def test_differences_are_of_the_same_units() -> None:
    """A candidate that is lower by the same in every unit is lower for sure, however much units vary."""
    own, lower = made("a person", 0.4, 0.6, [1.0]), made("a human", 0.4, 0.6, [1.0])
    lower = replace(lower, residual=([x - 0.01 for x in own.residual[0]], own.residual[1]))
    less = choice([own, lower], WOMAN)["candidates"][1]["less_own"]
    assert less == pytest.approx({"mean": -0.005, "low": -0.005, "high": -0.005, "n": 4})


def test_the_choice_matters_where_pushes_differ() -> None:
    one, other, third = (made(p, 0.4, 0.6, push) for p, push in (("a person", [3.0, 4.0]), ("a human", [4.0, 3.0]), ("x", [4.0, 0.0])))
    found = choice([one, other], WOMAN)
    assert found["lowest"]["cosine"] == pytest.approx(24 / 25) and not found["matters"]
    assert found["cosines"]["a human"] == pytest.approx({"a person": 24 / 25, "a human": 1.0})
    found = choice([one, other, third], WOMAN)
    assert found["lowest"]["cosine"] == pytest.approx(12 / 20) and found["matters"]
    assert sorted(found["lowest"]["pair"]) == ["a person", "x"]
    assert found["candidates"][0]["cosine_to_own"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 2}


def test_pushes_are_compared_latent_beside_latent() -> None:
    """Two latents of one rollout with opposite pushes cancel in the sum, and still agree between prompts."""
    one = replace(made("a person", 0.4, 0.6, [1.0, -1.0, 2.0]), units=torch.tensor([0, 0, 1]))
    found = cosine(one, replace(one, push=2 * one.push))
    assert (found["mean"], found["low"], found["high"], found["n"]) == (1.0, 1.0, 1.0, 2)
    opposite = cosine(one, replace(one, push=torch.tensor([1.0, -1.0, -2.0]).reshape(-1, 1, 1, 1)))
    assert opposite["mean"] == pytest.approx((1 + 1 - 4) / 6) and opposite["low"] == -1 and opposite["high"] == 1


def test_intervals_are_bootstraps_over_units() -> None:
    own = replace(made("a person", 0.4, 0.6, [1.0]), residual=([0.1, 0.5, 0.3], [1.0, 2.0, 1.0]))
    found = choice([own], WOMAN)["candidates"][0]["residual"]
    assert (found["mean"], found["n"]) == (pytest.approx(0.225), 3)
    draws = ratio_draws(*own.residual, seed=0)
    assert found["low"] < draws.min() + 0.1 and found["high"] > draws.max() - 0.1, "few units: wider than the draws' own quantiles"


def test_the_own_prompt_comes_first() -> None:
    with pytest.raises(ValueError, match="candidates begin with 'a human'; give the own prompt 'a person' first"):
        choice([made("a human", 0.4, 0.6, [1.0])], WOMAN)


# --- the command ---


@pytest.fixture
def tiny(tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neutral, "open_model", lambda *_: tiny_pipe)


def test_the_command(tiny: None) -> None:
    sets = [part for k, v in TINY.items() for part in ("--set", f"{k}={v}")]
    given = ["neutral", "--concept", "woman", "--candidates", "someone, a human,a person", "--subjects", "a doctor,a cook", *sets]
    result = last_json(respodiff(*given, "--json"))
    assert [row["neutral"] for row in result["candidates"]] == ["a person", "someone", "a human"]
    assert set(result) >= {"recommended", "matters", "cosines", "lowest"} and result["own"] == "a person"
    words = respodiff(*given).stdout
    assert "neutral prompt" in words and "training sets out most differently" in words and "respodiff train --model embedded" in words


@pytest.mark.parametrize("name", ["woman", "dark", "woman*dark"])
def test_the_suggested_training_is_of_the_same_concept(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(train, "open_model", lambda *given: given)
    monkeypatch.setattr(train, "Checkpoint", lambda out, *_: out)
    monkeypatch.setattr(train, "_trained", lambda _p, chosen, config, *_: (seen.append((chosen, config.of(chosen))) or {}, ""))
    done = respodiff(*shlex.split(command(concept(name), "a human", "embedded"))[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    wanted = replace(concept(name), neutral="a human")
    assert seen == [(replace(wanted, contexts=()), TrainConfig.preset("default").of(wanted))]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--concept", "wombat"], "concept 'wombat' is unknown"),
        (["--concept", "woman", "--candidates", "a person"], "which is the concept's own neutral prompt"),
        (["--concept", "woman", "--candidates", "a human,,someone"], "which has an empty prompt"),
        (["--concept", "woman", "--set", "colour=red"], "setting 'colour' is unknown"),
        (["--concept", "violence"], "concept 'violence' has no alternatives"),
    ],
)
def test_refusals_are_one_line(tiny: None, more: list[str], said: str) -> None:
    done = respodiff("neutral", *more)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
