"""Adapters that stay on a pipeline: the same images as inside of `steer`, bit for bit, and the pipeline as it was found."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

import respodiff
from respodiff.concepts.concept import Concept
from respodiff.methods.registry import get_method
from respodiff.steering.attach import attach
from respodiff.steering.fuse import fused
from respodiff.steering.module import ConceptModule
from respodiff.steering.serialization import Header
from respodiff.steering.steer import steer

Make = Callable[..., ConceptModule]
Pipe = StableDiffusionPipeline


def draw(pipe: Pipe, n: int = 2) -> Tensor:
    """Final latents (n, 4, 8, 8)."""
    start = torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    found: Tensor = pipe(
        "a doctor", latents=start, num_images_per_prompt=n, guidance_scale=3.0, num_inference_steps=2, output_type="latent"
    ).images
    return found


def steered(pipe: Pipe, *modules: ConceptModule) -> Tensor:
    with steer(pipe, [list(modules)] * 2):
        return draw(pipe)


def state(pipe: Pipe) -> tuple[Any, ...]:
    """What must be as it was found: attributes, hooks, weights."""
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for part in (pipe.unet, pipe.vae) for m in part.modules())
    return sorted(vars(pipe)), hooks, {k: v.clone() for k, v in pipe.unet.state_dict().items()}


def same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return a[:2] == b[:2] and a[2].keys() == b[2].keys() and all(torch.equal(a[2][k], b[2][k]) for k in a[2])


@pytest.fixture
def woman(make_module: Make) -> ConceptModule:
    return make_module("woman", "gender")


@pytest.fixture
def dark(make_module: Make) -> ConceptModule:
    return make_module("dark", "tone", seed=1)


def test_steered_as_inside_of_steer(tiny_pipe: Pipe, woman: ConceptModule, dark: ConceptModule, tmp_path: Path) -> None:
    plain, before = draw(tiny_pipe), state(tiny_pipe)  # a call leaves attributes
    adapters = respodiff.attach(tiny_pipe)
    assert adapters.load_weights(woman.save(tmp_path / "w.safetensors"), adapter_name="w") == ["w"]
    assert adapters.load_weights(dark) == ["dark"]
    assert torch.equal(draw(tiny_pipe), plain) and state(tiny_pipe)[1] == before[1], "nothing acts yet"
    assert adapters.get_list_adapters() == {"unet": ["w", "dark"]} and adapters.get_active_adapters() == []
    for names, weights, expected in (
        ("w", None, [woman]),
        (["w", "dark"], None, [woman, dark]),
        (["w", "dark"], [0.8, -0.5], [woman.scale(0.8), dark.scale(-0.5)]),
        (["dark", "w"], 0.5, [dark.scale(0.5), woman.scale(0.5)]),
        (("w", "dark"), (0, 1), [dark]),
    ):
        adapters.set_adapters(names, adapter_weights=weights)
        assert torch.equal(draw(tiny_pipe), steered_alone(tiny_pipe, adapters, expected)), (names, weights)
        assert adapters.get_active_adapters() == ([names] if isinstance(names, str) else list(names))
    adapters.unload_weights()
    assert same(state(tiny_pipe), before) and torch.equal(draw(tiny_pipe), plain)
    assert adapters.get_list_adapters() == {} and attach(tiny_pipe) is not adapters
    with pytest.raises(ValueError, match="attach made others"):
        adapters.load_weights(woman)


def steered_alone(pipe: Pipe, adapters: Any, modules: list[ConceptModule]) -> Tensor:
    """Latents inside of `steer` alone: what is attached is switched off meanwhile."""
    adapters.disable_adapters()
    found = steered(pipe, *modules)
    adapters.enable_adapters()
    return found


def test_a_factor_behind_the_name_is_its_scale(tiny_pipe: Pipe, woman: ConceptModule, tmp_path: Path) -> None:
    adapters = attach(tiny_pipe)
    adapters.load_weights(f"{woman.save(tmp_path / 'w.safetensors')}:0.5")
    adapters.set_adapters("woman")
    assert torch.equal(draw(tiny_pipe), steered_alone(tiny_pipe, adapters, [woman.scale(0.5)]))


def test_disabled_enabled_and_deleted(tiny_pipe: Pipe, woman: ConceptModule, dark: ConceptModule) -> None:
    plain, one, both = draw(tiny_pipe), steered(tiny_pipe, woman), steered(tiny_pipe, woman, dark)
    adapters = attach(tiny_pipe)
    adapters.load_weights(woman)
    adapters.load_weights(dark)
    adapters.set_adapters(["woman", "dark"])
    adapters.disable_adapters()
    assert torch.equal(draw(tiny_pipe), plain) and adapters.get_active_adapters() == []
    adapters.enable_adapters()
    assert torch.equal(draw(tiny_pipe), both)
    adapters.delete_adapters("dark")
    assert torch.equal(draw(tiny_pipe), one) and adapters.get_list_adapters() == {"unet": ["woman"]}
    adapters.set_adapters([])
    assert torch.equal(draw(tiny_pipe), plain)


def test_they_stay_when_nobody_holds_them(tiny_pipe: Pipe, woman: ConceptModule) -> None:
    expected = steered(tiny_pipe, woman)
    attach(tiny_pipe).load_weights(woman)
    attach(tiny_pipe).set_adapters("woman")
    gc.collect()
    assert torch.equal(draw(tiny_pipe), expected)
    attach(tiny_pipe).unload_weights()


def test_they_go_with_a_pipeline_that_nobody_holds(tiny_pipe: Pipe, woman: ConceptModule) -> None:
    pipe = copy.deepcopy(tiny_pipe)
    attach(pipe).load_weights(woman)
    attach(pipe).set_adapters("woman")
    held = weakref.ref(pipe.unet)
    del pipe
    gc.collect()
    assert held() is None


def test_a_folder_brings_all_of_its_modules(tiny_pipe: Pipe, woman: ConceptModule, make_module: Make, tmp_path: Path) -> None:
    woman.save(tmp_path / "woman.safetensors")
    make_module("man", "gender", seed=2).save(tmp_path / "man.safetensors")
    adapters = attach(tiny_pipe)
    assert adapters.load_weights(tmp_path) == ["man", "woman"]
    with pytest.raises(ValueError, match="adapter_name is 'x'"):
        adapters.load_weights(tmp_path, adapter_name="x")
    with pytest.raises(ValueError, match="adapter_name is 'man', which is loaded already"):
        adapters.load_weights(tmp_path)


def test_an_adapter_of_another_method(tiny_pipe: Pipe) -> None:
    method = get_method("negative")
    concept = Concept("violence", "a scene", "a scene", "violence", "safety")
    other = method.adapter(Header.of(concept, method="negative", site="", train={}))
    with steer(tiny_pipe, other):
        expected = draw(tiny_pipe)
    plain, adapters = draw(tiny_pipe), attach(tiny_pipe)
    adapters.load_weights(other)
    adapters.set_adapters("violence")
    assert torch.equal(draw(tiny_pipe), expected) and not torch.equal(expected, plain)
    with pytest.raises(ValueError, match="modules alone can be fused"):
        adapters.fuse()
    assert torch.equal(draw(tiny_pipe), expected)
    adapters.unload_weights()


def test_fused_and_given_back(tiny_pipe: Pipe, make_module: Make) -> None:
    flat = make_module("flat", shape=(64, 1, 1))
    with fused(tiny_pipe, [flat.scale(0.5)], scale=2.0):
        expected = draw(tiny_pipe)
    before, adapters = state(tiny_pipe), attach(tiny_pipe)
    adapters.load_weights(flat)
    with pytest.raises(ValueError, match="no adapter acts"):
        adapters.fuse()
    adapters.set_adapters("flat", adapter_weights=0.5)
    steering = draw(tiny_pipe)
    adapters.fuse(scale=2.0)
    assert torch.equal(draw(tiny_pipe), expected) and state(tiny_pipe)[1] == before[1], "no hook is left"
    assert adapters.get_active_adapters() == ["flat"]
    adapters.unfuse()
    assert torch.equal(draw(tiny_pipe), steering)
    adapters.fuse()
    adapters.unload_weights()
    assert same(state(tiny_pipe), before)


def test_what_cannot_be_fused_goes_on_steering(tiny_pipe: Pipe, woman: ConceptModule) -> None:
    expected, adapters = steered(tiny_pipe, woman), attach(tiny_pipe)
    adapters.load_weights(woman)
    adapters.set_adapters("woman")
    with pytest.raises(ValueError, match="only one number a channel can be fused"):
        adapters.fuse()
    assert torch.equal(draw(tiny_pipe), expected) and adapters.get_active_adapters() == ["woman"]
    adapters.unload_weights()


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        ("man", None, "adapter_names has 'man', which is not loaded; loaded: woman"),
        (["woman"], [1.0, 2.0], "adapter_weights has 2 entries for 1 adapters"),
        ("woman", float("nan"), "scale is nan"),
    ],
)
def test_a_refused_choice_leaves_the_one_before(tiny_pipe: Pipe, woman: ConceptModule, names: Any, weights: Any, message: str) -> None:
    expected, adapters = steered(tiny_pipe, woman), attach(tiny_pipe)
    adapters.load_weights(woman)
    adapters.set_adapters("woman")
    with pytest.raises(ValueError, match=message):
        adapters.set_adapters(names, adapter_weights=weights)
    assert torch.equal(draw(tiny_pipe), expected) and adapters.get_active_adapters() == ["woman"]
    adapters.unload_weights()


@pytest.mark.parametrize("unload", [False, True])
def test_a_prediction_that_is_not_finite_is_said_and_the_choice_is_made(
    tiny_pipe: Pipe, woman: ConceptModule, make_module: Make, unload: bool
) -> None:
    plain, expected, adapters = draw(tiny_pipe), steered(tiny_pipe, woman), attach(tiny_pipe)
    adapters.load_weights(woman)
    adapters.load_weights(make_module("boom", scale=1e30))
    adapters.set_adapters("boom")
    tiny_pipe("a doctor", num_inference_steps=1, output_type="latent")
    with pytest.raises(RuntimeError, match="'boom'"):
        adapters.unload_weights() if unload else adapters.set_adapters("woman")
    assert torch.equal(draw(tiny_pipe), plain if unload else expected)
    assert (attach(tiny_pipe) is adapters) is not unload
    attach(tiny_pipe).unload_weights()


def test_what_does_not_fit_is_not_loaded(tiny_pipe: Pipe, make_module: Make) -> None:
    adapters = attach(tiny_pipe)
    with pytest.raises(ValueError, match="has 1280 channels"):
        adapters.load_weights(make_module(shape=(1280, 8, 8)))
    with pytest.raises(FileNotFoundError):
        adapters.load_weights("absent.safetensors")
    assert adapters.get_list_adapters() == {}
    with pytest.raises(ValueError, match="not supported"):
        attach(object())


def test_steer_beside_what_acts_is_refused(tiny_pipe: Pipe, woman: ConceptModule, dark: ConceptModule) -> None:
    expected, adapters = steered(tiny_pipe, dark), attach(tiny_pipe)
    adapters.load_weights(woman)
    assert torch.equal(steered(tiny_pipe, dark), expected), "loaded is not active"
    adapters.set_adapters("woman")
    with pytest.raises(ValueError, match="adapters woman are attached"):
        steered(tiny_pipe, dark)
    adapters.unload_weights()
    assert torch.equal(steered(tiny_pipe, dark), expected)
