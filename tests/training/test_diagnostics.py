"""Neutral prompts ranked, and modules judged, by noise predictions: figures against the equations written out."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from respodiff.concepts.concept import Concept, concept
from respodiff.pipelines.denoiser import Denoiser, repeat
from respodiff.steering.module import ConceptModule
from respodiff.steering.serialization import Header
from respodiff.training import diagnostics
from respodiff.training.diagnostics import choose_neutral, directions, module_with_verdict, with_verdict
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


VIOLENCE = Concept("violence", "a scene", "a scene", "violence", "safety")


def module_of(concept: Concept, ram: Any, sam: Any, h_norm: float = 0.0) -> ConceptModule:
    return ConceptModule.of(ram, sam, Header.of(concept, h_norm=h_norm, train={"ram_lr": 0.2}))


def noise(scale: float, seed: int = 0) -> Any:
    return scale * torch.randn(64, 4, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("concept", "ends"), [(WOMAN, ("a person", "a woman")), (VIOLENCE, ("violence", "a scene"))])
@pytest.mark.filterwarnings("ignore:.*away from its target")
def test_a_verdict_by_hand(tiny_pipe: Any, concept: Concept, ends: tuple[str, str]) -> None:
    denoiser, unet = Denoiser(tiny_pipe, guidance=3.0), tiny_pipe.unet
    r, s, hidden = noise(0.1), noise(0.05, 1), []

    @torch.no_grad()
    def predicted(prompt: str, offset: Any = None) -> Any:
        hook = unet.mid_block.register_forward_hook(lambda _m, _a, h: hidden.append(h) or (None if offset is None else h + offset))
        e = unet(z, t, encoder_hidden_states=denoiser.encode([prompt])[0]["encoder_hidden_states"].expand(len(z), -1, -1)).sample
        hook.remove()
        return e.double()

    z, t = roll_batch(denoiser, 2, mix_seed(0, 5), denoiser.encode([concept.neutral])[0], 4)
    assert len(z) == 8, "two rollouts of four steps"
    e, d = predicted(concept.neutral), predicted(ends[1]) - predicted(ends[0])
    change = predicted(concept.neutral, r + s) - e
    before = denoiser.forwards
    found = module_with_verdict(denoiser, concept, module_of(concept, r, s)).header.verdict
    assert found["effect"] == pytest.approx((change.norm() / d.norm()).item(), rel=1e-3)
    assert found["projection"] == pytest.approx(((change * d).sum() / d.square().sum()).item(), rel=1e-2, abs=1e-4)
    norms = [((r + s).norm() * 2**0.5 / h.norm()).item() for h in hidden[0].split(2)]
    assert found["relative_norm"] == pytest.approx(sum(norms) / 4, rel=1e-3), "without a norm of h from training"
    assert denoiser.forwards - before == 2 * 3 * 2 + 3 * 8, "steps with guidance, then two prompts and the module"
    known = module_with_verdict(denoiser, concept, module_of(concept, r, s, h_norm=20.0))
    assert known.header.verdict["relative_norm"] == known.relative_norm == pytest.approx((r + s).norm().item() / 20)


def test_modules_that_are_not_kept(tiny_pipe: Any) -> None:
    zero, model = torch.zeros(64, 4, 4), Denoiser(tiny_pipe)
    same = Concept("x", "A  Person", "a person")
    for chosen, ram, said in (
        (WOMAN, zero, r"respodiff 'woman' has an effect of 0 of the way to the target, which is none; raise ram_lr, which is 0\.2"),
        (WOMAN, noise(1e3), r"times as large as what it changes.*; lower ram_lr, which is 0\.2"),
        (same, noise(0.1), "the prompts 'a person' and 'A  Person' are the same to this model"),
    ):
        with pytest.raises(RuntimeError, match=said) as error:
            module_with_verdict(model, chosen, module_of(chosen, ram, zero))
        assert "\n" not in str(error.value)


def test_a_module_that_leads_away_from_its_target_is_kept_with_a_warning(tiny_pipe: Any, recwarn: pytest.WarningsRecorder) -> None:
    model, zero = Denoiser(tiny_pipe), torch.zeros(64, 4, 4)
    signs = []
    for sign in (1, -1):
        found = module_with_verdict(model, WOMAN, module_of(WOMAN, sign * noise(0.02), zero)).header.verdict["projection"]
        signs.append(found > 0)
        told = [w for w in recwarn.list if "'woman' moves predictions away from" in str(w.message)]
        assert len(told) == signs.count(False)
    assert sorted(signs) == [False, True], "a short offset acts linearly"


@pytest.mark.parametrize(
    ("projection", "norm", "told"), [(0.06, 0.9, ""), (0.04, 0.9, "hardly"), (0.06, 1.1, "outweighs"), (-0.1, 1.1, "away")]
)
def test_little_effect_and_a_module_that_outweighs_h_are_warnings(
    tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, projection: float, norm: float, told: str
) -> None:
    """The projection is that of a module along d itself: h is not read, so that the figure is known."""
    model, d = Denoiser(tiny_pipe), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    at = {WOMAN.neutral: 0 * d, WOMAN.target: d}
    texts = iter([*at.values()])
    monkeypatch.setattr("respodiff.training.diagnostics.predict", lambda *_: next(texts, d))
    monkeypatch.setattr("respodiff.training.diagnostics.roll_batch", lambda *_, **__: (d, torch.ones(2)))
    monkeypatch.setattr(Denoiser, "__call__", lambda *_, **__: projection * d)
    with_verdict(model, module_of(WOMAN, noise(0.02), torch.zeros(64, 4, 4)), directions(WOMAN), lambda _: nullcontext(), lambda: norm)
    lines = [str(w.message) for w in recwarn.list if "'woman'" in str(w.message)]
    assert len(lines) == (0 if not told else 2 if norm > 1 and projection < 0 else 1)
    assert not told or told in lines[0]
