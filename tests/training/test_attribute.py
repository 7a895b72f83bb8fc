"""Alternatives of an attribute trained in one run, against one training each."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from benchmarks.settings import HELD_OUT

import respodiff
from respodiff.concepts.concept import Attribute, Concept, attribute
from respodiff.concepts.concept import concept as find_concept
from respodiff.data.prompt_sets import suite
from respodiff.pipelines.denoiser import Denoiser
from respodiff.training import diagnostics, rollouts
from respodiff.training.attribute import fit_attribute, not_shared
from respodiff.training.config import TrainConfig
from respodiff.training.respodiff import fit, train_together
from tiny_models import flux, sdxl

pytestmark = pytest.mark.slow

GENDER, UNSAFE = attribute("gender"), Concept("violence", "a scene", "a scene", "violence", "safety")
TINY = {"iterations": 4, "batch": 3, "steps": 4, "rollouts": 4, "rollout_batch": 4, "refresh_every": 2}
ONE_POOL: dict[str, Any] = {**TINY, "refresh_every": 4, "projection": 0.0}


@contextmanager
def counted(unet: Any) -> Iterator[dict[str, int]]:
    """Samples that went through the first and the last layer of a UNet."""
    seen = {"encoder": 0, "decoder": 0}
    layers = {"encoder": unet.conv_in, "decoder": unet.conv_out}
    hooks = [layer.register_forward_pre_hook(lambda _m, a, k=k: seen.__setitem__(k, seen[k] + len(a[0]))) for k, layer in layers.items()]
    yield seen
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gender", {}),
        ("gender", {"sam_lr": 0.02}),
        ("gender", {"form": "mlp", "ram_lr": 0.002, "sam_lr": 0.0002, "objective": "guided", "target_guidance": 3.0}),
        ("tone", {}),
        ("gender*tone", {"rollouts": 7, "rollout_batch": 7, "iterations": 2}),
    ],
)
def test_with_one_pool_modules_are_those_of_one_training_each(tiny_pipe: Any, name: str, changes: dict[str, Any]) -> None:
    config = TrainConfig.preset("default", **{**ONE_POOL, **changes})
    found = fit_attribute(tiny_pipe, name, config)
    assert tuple(found) == attribute(name).names
    for c in attribute(name).concepts:
        alone, together = fit(tiny_pipe, c, config), found[c.name]
        assert together.header == replace(alone.header, h_norm=together.header.h_norm, verdict=together.header.verdict)
        assert together.header.verdict == pytest.approx(alone.header.verdict, rel=0.05, abs=0.02)
        for key, tensor in alone.tensors.items():
            assert torch.allclose(together.tensors[key], tensor, atol=2e-3), "float noise; a step of Adam is .05"
        assert together.tensors["ram.r" if "form" not in changes else "ram.up.weight"].abs().max() > 0.001


def test_scores_and_the_encoder_run_once_for_all_alternatives(tiny_pipe: Any) -> None:
    config = TrainConfig.preset("default", **ONE_POOL)
    with counted(tiny_pipe.unet) as seen:
        *_, last = train_together(tiny_pipe, attribute("tone").concepts, config)
    pool = 4 * 4  # 4 rollouts of "a person", 4 timesteps of each
    verdicts = 3 * (2 * 3 * 2 + 3 * 8)  # 2 rollouts of 3 steps with guidance, then 8 latents for 2 prompts and with the module
    assert seen["encoder"] == 4 * 3 * 2 + 4 * pool + verdicts, "3 steps with guidance, then the scores of 4 prompts"
    assert seen["decoder"] - seen["encoder"] == 3 * 2 * config.iterations * config.batch, "RAM and SAM"
    assert last.unet_forwards == seen["decoder"]


def test_a_pool_without_room_for_h_and_skips_trains_the_same(tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig.preset("default", **ONE_POOL, sam_lr=0.0)
    kept = fit_attribute(tiny_pipe, GENDER, config)
    monkeypatch.setattr(rollouts, "KEPT_BYTES", 0)
    with counted(tiny_pipe.unet) as seen:
        anew = fit_attribute(tiny_pipe, GENDER, config)
    assert seen["encoder"] == seen["decoder"], "every step runs the whole model"
    assert all(torch.allclose(kept[name].ram, anew[name].ram, atol=2e-3) for name in GENDER.names)


def test_later_rollouts_are_steered_in_equal_parts_and_every_pool_is_new(tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    real = rollouts.Rollouts.pool

    def pool(self: Any, number: int, delta: Any) -> Any:
        made = real(self, number, delta)
        seen.append((delta["mid_block"](torch.zeros(4, 1, 1, 1), torch.zeros(())), made))
        return made

    monkeypatch.setattr(rollouts.Rollouts, "pool", pool)
    records = list(train_together(tiny_pipe, GENDER.concepts, TrainConfig.preset("default", **TINY, projection=0.0)))
    (first, (woman, man)), (second, (later, _)) = seen
    assert first.abs().max() == 0
    r = [records[1].module[name].ram for name in GENDER.names]  # the second of two iterations: what the second round starts from
    assert torch.equal(second, torch.stack([r[0], r[0], r[1], r[1]])) and not torch.equal(r[0], r[1])
    assert torch.equal(woman.z, man.z) and not torch.equal(woman.e_tar, man.e_tar)
    assert not any(torch.equal(a, b) for a, b in zip(woman.z, later.z, strict=True))


def test_the_default_trains_both_genders_with_at_most_3000_forwards(tiny_pipe: Any) -> None:
    config = TrainConfig.preset("default")
    with counted(tiny_pipe.unet) as seen:
        *_, last = train_together(tiny_pipe, GENDER.concepts, config)
    assert seen["encoder"] < last.unet_forwards == seen["decoder"] == 2992, "at most 3,000; docs/training.md says how many"


@pytest.mark.filterwarnings("ignore")
def test_no_prompt_that_is_reported_is_seen_in_training(tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every text that training encodes, its verdict included, for what the package ships, by the default and as published."""
    reported = {p.text for name in ("occupations", "occupations-unseen", "winobias36", "winobias36-successful") for p in suite(name)}
    encode, seen = Denoiser.encode, set[str]()
    monkeypatch.setattr(Denoiser, "encode", lambda self, texts, *more: seen.update(texts) or encode(self, texts, *more))
    short = {"iterations": 1, "steps": 3, "rollouts": 3, "rollout_batch": 3}
    for name in ("gender", "tone"):
        fit_attribute(tiny_pipe, name, TrainConfig.preset("default", **short))
    for known in ("woman", "dark", "violence", "sexual"):
        for preset in ("default", "paper"):
            own = {**short, "rollouts": 1, "rollout_batch": 1} if preset == "paper" else short
            fit(tiny_pipe, find_concept(known), TrainConfig.preset(preset, known, **own))
    assert {"a person", "a woman", "a scene", "violence"} <= seen and not seen & reported
    assert not {p.text for p in suite("occupations") if p.group in HELD_OUT} & {*diagnostics.SUBJECTS}, "what neutral prompts are ranked by"


def test_the_alternative_that_diverges_or_has_no_effect_is_named(tiny_pipe: Any) -> None:
    for rate, said in (
        (1e6, "RAM of 'woman' is .* training diverged; lower ram_lr"),
        (1e-9, "respodiff 'woman' has an effect of .*; raise"),
    ):
        with pytest.raises(RuntimeError, match=said):
            fit_attribute(tiny_pipe, GENDER, TrainConfig.preset("default", **TINY, ram_lr=rate, sam_lr=0.0))


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_stopped_run_goes_on_to_the_same_bits(tiny_pipe: Any, stop: int) -> None:
    config = TrainConfig.preset("default", **TINY)
    *_, whole = train_together(tiny_pipe, GENDER.concepts, config)
    tensors = next(r for r in train_together(tiny_pipe, GENDER.concepts, config) if r.iteration == stop).state.tensors()
    *_, resumed = train_together(tiny_pipe, GENDER.concepts, config, resume=tensors)
    assert [m.digest for m in resumed.module.values()] == [m.digest for m in whole.module.values()]
    assert resumed.unet_forwards == whole.unet_forwards


@pytest.mark.parametrize("make", [sdxl, flux])
def test_every_family_trains_together(make: Any) -> None:
    pipe, config = make(), TrainConfig.preset("default", **{**ONE_POOL, "iterations": 2})
    found = fit_attribute(pipe, GENDER, config)
    assert torch.allclose(found["man"].ram, fit(pipe, "man", config).ram, atol=2e-3)


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_what_cannot_be_shared_is_trained_one_by_one_with_a_warning(tiny_pipe: Any, preset: str) -> None:
    config = TrainConfig.preset(preset, iterations=2, steps=4)
    with pytest.warns(UserWarning, match=r"'gender' is trained one concept after the other: rollouts or rollout_batch is 1"):
        found = respodiff.fit_attribute(tiny_pipe, "gender", config)
    assert all(found[c.name].digest == fit(tiny_pipe, c, config).digest for c in GENDER.concepts)


def test_reasons_against_one_run() -> None:
    config = TrainConfig.preset("default")
    woman, man = GENDER.concepts
    assert not_shared((woman, man), [config] * 2) == not_shared(attribute("gender*tone").concepts, [config] * 6) == ""
    assert "neutral prompt" in not_shared((woman, replace(man, neutral="a human")), [config] * 2)
    assert "kind" in not_shared((UNSAFE, UNSAFE), [config] * 2)
    assert "opposites" in not_shared((woman, replace(man, opposites=())), [config] * 2)
    assert "settings" in not_shared((woman, man), [config, replace(config, ram_lr=0.1)])
    assert "rollout_batch is 1" in not_shared((woman, man), [replace(config, rollout_batch=1)] * 2)


def test_an_own_attribute_is_taken_and_an_unknown_one_refused(tiny_pipe: Any) -> None:
    own = Attribute(
        "hat", tuple(Concept(k, f"a {k}", "a person", opposites=(f"a {o}",)) for k, o in (("doctor", "nurse"), ("nurse", "doctor")))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("default", ".*away from its target")
        assert tuple(fit_attribute(tiny_pipe, own, TrainConfig.preset("default", **{**ONE_POOL, "iterations": 1}))) == ("doctor", "nurse")
    with pytest.raises(ValueError, match="attribute 'gendr' is unknown"):
        fit_attribute(tiny_pipe, "gendr")
