"""Prompt methods against calls with the rewritten prompt itself, and SLD against its equations written out."""

from __future__ import annotations

import math
from inspect import signature
from typing import Any

import pytest
import torch
from tests.drawing import close as close_to
from tests.drawing import draw, module, oblong
from tests.tiny_models import TINY_PIPELINES
from tests.tiny_transformers import TEXT_TO_IMAGE
from torch import Tensor

from drawing import input_images
from method_tools import MAKE, MAN, VIOLENCE, WOMAN, close, latents, noise, state, strong, unchanged
from respodiff.concepts.concept import Concept
from respodiff.concepts.prompt_editing import rewriting, rewritten
from respodiff.generation.generate import counted
from respodiff.methods.registry import get_method
from respodiff.methods.sld import EVERYTHING, PRESETS, TEXT, SldConfig, fitting, safety_guidance
from respodiff.pipelines.registry import backbone, spec_of
from respodiff.steering.steer import steer


@pytest.mark.parametrize(
    ("prompt", "adjective", "suffix", "wanted"),
    [
        ("a doctor", "female", "", "a female doctor"),
        ("an engineer", "male", "", "a male engineer"),
        ("A cook", "old", "", "An old cook"),
        ("the nurse at work", "male", "", "the male nurse at work"),
        ("doctor", "female", "", "female doctor"),
        ("Photo of nurse", "male", "", "Photo of male nurse"),
        ("a photo of a CEO", "female", "", "a photo of a female CEO"),
        ("a cup of tea", "old", "", "an old cup of tea"),
        ("a doctor", "", " with dark skin", "a doctor with dark skin"),
    ],
)
def test_rewriting(prompt: str, adjective: str, suffix: str, wanted: str) -> None:
    assert rewritten(prompt, adjective, suffix) == wanted


def test_the_words_follow_from_the_concept() -> None:
    assert rewriting(MAN.target) == ("male", "")
    assert rewriting("a Asian-race person") == ("Asian-race", "")
    assert rewriting("a person with light skin") == ("", " with light skin")


# --- each image as if the pipeline had been called with its own prompt ---


def test_a_rewritten_prompt_is_that_prompt_in_a_batch_of_all_kinds(pipe: Any) -> None:
    woman, man = (get_method("prompt").fit(pipe, c) for c in (WOMAN, MAN))
    before, plain = state(pipe), latents(pipe, ["a doctor"] * 4)
    found = latents(pipe, ["a doctor"] * 4, [woman, None, [man], ()])
    expected = latents(pipe, ["a female doctor", "a doctor", "a male doctor", "a doctor"])
    assert close(found, expected) and not close(found[:1], plain[:1], 1e-3)
    assert unchanged(before, state(pipe)) and torch.equal(latents(pipe, ["a doctor"] * 4), plain)


def test_one_adapter_is_for_all_images_and_several_are_combined(pipe: Any) -> None:
    woman = get_method("prompt").fit(pipe, WOMAN)
    dark = get_method("prompt").fit(pipe, Concept("dark", "a person with dark skin", attribute="tone"))
    assert close(latents(pipe, ["a nurse", "a cook"], woman), latents(pipe, ["a female nurse", "a female cook"]))
    assert close(latents(pipe, ["a nurse"], [[woman, dark]]), latents(pipe, ["a female nurse with dark skin"]))
    two = pipe(
        "a nurse", num_images_per_prompt=2, latents=noise(pipe, 2), num_inference_steps=3, guidance_scale=1.0, output_type="latent"
    ).images
    with steer(pipe, [woman, None]):
        found = pipe(
            "a nurse", num_images_per_prompt=2, latents=noise(pipe, 2), num_inference_steps=3, guidance_scale=1.0, output_type="latent"
        ).images
    assert close(found[1], two[1]) and not close(found[0], two[0], 1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -(10**400), 10**400, True, "1"])
def test_a_switch_that_is_no_number_of_this_size_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="switch"):
        get_method("prompt-switch").settings(switch=value)


def test_a_switch_draws_the_first_steps_with_the_prompt_as_it_was(pipe: Any) -> None:
    kind = get_method("prompt-switch")
    assert kind.settings().switch == 0.2
    prompts = ["a doctor", "a doctor"]
    plain, other = latents(pipe, prompts, steps=4), latents(pipe, ["a female doctor"] * 2, steps=4)
    for share, wanted in ((0.0, other), (1.0, plain)):
        assert close(latents(pipe, prompts, kind.fit(pipe, WOMAN, kind.settings(switch=share)), steps=4), wanted)
    found = latents(pipe, prompts, kind.fit(pipe, WOMAN, kind.settings(switch=0.5)), steps=4)
    seen: list[Tensor] = []

    def stop(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(kwargs["latents"].clone())
        return kwargs

    latents(pipe, prompts, kind.fit(pipe, WOMAN, kind.settings(switch=0.5)), steps=4, callback_on_step_end=stop)
    with_switch = list(seen)
    seen.clear()
    latents(pipe, prompts, steps=4, callback_on_step_end=stop)
    assert torch.equal(with_switch[1], seen[1]) and not close(with_switch[2], seen[2], 1e-4), "k = 2 of 4"
    assert not close(found, plain, 1e-3) and not close(found, other, 1e-3)


def test_a_negative_prompt_is_the_pipelines_own(pipe: Any) -> None:
    violence = get_method("negative").fit(pipe, VIOLENCE)
    blood = get_method("negative").fit(pipe, Concept("blood", "a scene", "a scene", "blood", "safety"))
    found = latents(pipe, ["a street"] * 3, [violence, None, [violence, blood]])
    expected = latents(pipe, ["a street"] * 2, negative_prompt=["violence", "violence, blood"], start=noise(pipe, 3)[[0, 2]])
    assert close(found[[0, 2]], expected)
    assert close(found[1:2], latents(pipe, ["a street"], start=noise(pipe, 3)[1:2]))
    with pytest.warns(UserWarning, match="guidance is off, so that a negative prompt has no effect"):
        latents(pipe, ["a street"], [violence], guidance=1.0)


# --- SLD ---


@pytest.mark.parametrize("name", PRESETS)
def test_safety_guidance_of_single_numbers_by_hand(name: str) -> None:
    c = get_method(name).settings("safety")
    for e0, ep, es, nu in ((0.1, 0.3, 0.2, 0.05), (0.0, 0.1, 0.6, -0.2), (0.5, 0.5, 0.495, 0.0), (0.2, -0.4, -0.4001, 0.3)):
        scale = min(1.0, abs(ep - es) * c.guidance_scale)
        mu = 0.0 if ep - es >= c.threshold else scale
        g = mu * (es - e0) + c.momentum * nu
        after = c.beta * nu + (1 - c.beta) * g
        found = safety_guidance(*(torch.tensor([x], dtype=torch.float64) for x in (e0, ep, es, nu)), c)
        assert [x.item() for x in found] == pytest.approx([g, after], abs=1e-12)


def test_the_presets_hold_the_published_numbers() -> None:
    names = ("warmup", "guidance_scale", "threshold", "momentum", "beta")
    table = {
        "sld-weak": (15, 20, 0, 0, 0), "sld-medium": (10, 1000, 0.01, 0.3, 0.4),
        "sld-strong": (7, 2000, 0.025, 0.5, 0.7), "sld-max": (0, 5000, 1.0, 0.5, 0.7),
    }  # fmt: skip
    for name, wanted in table.items():
        assert tuple(getattr(get_method(name).settings("safety"), k) for k in names) == wanted


def by_hand(pipe: Any, prompt: str, z: Tensor, text: str, c: SldConfig, steps: int, w: float, scale: float = 1.0) -> Tensor:
    """The sampling loop of SLD written out for one SD image."""
    unet, scheduler = pipe.unet, type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(steps)
    contexts = [pipe.encode_prompt(p, "cpu", 1, False)[0] for p in ("", prompt, text)]
    nu = torch.zeros_like(z)
    for i, t in enumerate(scheduler.timesteps):
        with torch.no_grad():
            e0, ep, es = (unet(z, t, encoder_hidden_states=y).sample for y in contexts)
        weight = torch.minimum(torch.ones_like(ep), (ep - es).abs() * c.guidance_scale)
        mu = torch.where((ep - es) >= c.threshold, torch.zeros_like(weight), weight)
        g = mu * (es - e0) + c.momentum * nu
        nu = c.beta * nu + (1 - c.beta) * g
        guide = ep - e0 - (scale * g if i >= round(c.warmup * steps / 50) else 0)
        z = scheduler.step(e0 + w * guide, t, z).prev_sample
    return z


@pytest.mark.parametrize("name", PRESETS)
def test_an_image_is_that_of_the_loop_written_out(name: str) -> None:
    pipe = strong(MAKE["sd"]())
    concept = VIOLENCE if name == "sld-max" else EVERYTHING
    short = Concept(concept.name, "a scene", "a scene", concept.negative if name == "sld-max" else "hate, violence", "safety")
    a = get_method(name).fit(pipe, short)
    z = noise(pipe, 3)
    before, plain = state(pipe), latents(pipe, ["a street"] * 3, steps=5)
    with counted(pipe.unet) as forwards:
        found = latents(pipe, ["a street"] * 3, [a, None, a.scale(0.5)], steps=5)
    assert forwards[0] == 5 * (2 * 3 + 2), "three forwards for an image that is bent, two for one that is not"
    c = get_method(name).settings("safety")
    for i, scale in ((0, 1.0), (2, 0.5)):
        assert close(found[i : i + 1], by_hand(pipe, "a street", z[i : i + 1], short.negative, c, 5, 3.0, scale), 2e-3)
    assert close(found[1], plain[1]) and not close(found[0], plain[0], 1e-3)
    assert unchanged(before, state(pipe))


def test_sld_on_sdxl_alone_and_in_a_batch() -> None:
    pipe = strong(MAKE["sdxl"]())
    a = get_method("sld-strong").fit(pipe, VIOLENCE)
    z, prompts = noise(pipe, 2), ["a street", "a tree"]
    both = latents(pipe, prompts, [a, a], steps=4)
    assert close(both[1:], latents(pipe, prompts[1:], a, steps=4, start=z[1:]), 1e-3)
    assert not close(both, latents(pipe, prompts, steps=4), 1e-3)
    assert torch.equal(both, latents(pipe, prompts, [a, a], steps=4)), "momentum starts anew with every call"


def test_sld_takes_the_rows_of_what_a_controlnet_adds() -> None:
    pipe = strong(MAKE["sd"]("StableDiffusionControlNetPipeline"))
    a, z, prompts, more = get_method("sld-strong").fit(pipe, VIOLENCE), noise(pipe, 2), ["a street", "a tree"], input_images(pipe)
    both, plain = latents(pipe, prompts, [None, a], steps=3, **more), latents(pipe, prompts, steps=3, **more)
    assert close(both[0], plain[0]) and not close(both[1], plain[1], 1e-3)
    assert close(both[1:], latents(pipe, prompts[1:], a, steps=3, start=z[1:], **more), 1e-3)


def test_settings_of_sld_that_make_no_sense_are_refused() -> None:
    for changes, said in (
        ({"beta": 1.0}, "beta is 1.0"),
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0"),
        ({"warmup": math.nan}, "warmup is nan"),
    ):
        with pytest.raises(ValueError, match=said):
            get_method("sld-medium").settings("safety", **changes)
    assert TEXT.startswith("hate, harassment, violence") and TEXT.count(",") == 19


def test_phrases_that_the_model_does_not_read_are_left_out() -> None:
    pipe = MAKE["sd"]()
    with pytest.warns(UserWarning, match="the safety text is longer than this model reads: from '[a-z ]+' on it is left out"):
        found = fitting(pipe, [TEXT])
    assert TEXT.startswith(found) and found.startswith("hate, harassment")
    assert fitting(pipe, ["violence, blood", "blood"]) == "violence, blood"
    with pytest.raises(ValueError, match="has no phrase that this model can read; give shorter ones"):
        fitting(pipe, ["very " * 40])


def test_a_call_with_embeddings_is_refused(pipe: Any) -> None:
    woman = get_method("prompt").fit(pipe, WOMAN)
    side = backbone(pipe).config.cross_attention_dim
    more = {"pooled_prompt_embeds": torch.zeros(1, 32)} if hasattr(pipe, "tokenizer_2") else {}
    before = state(pipe)
    with pytest.raises(ValueError, match="prompt_embeds or prompt_2; this method needs the text itself"), steer(pipe, woman):
        pipe(prompt_embeds=torch.zeros(1, 77, side), num_inference_steps=1, guidance_scale=1.0, **more)
    if more:  # that of SD breaks with transformers 5
        with pytest.raises(ValueError, match="clip_skip"), steer(pipe, woman):
            pipe("a doctor", clip_skip=1, num_inference_steps=1, guidance_scale=1.0)
    assert unchanged(before, state(pipe))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*TEXT_TO_IMAGE, "FluxPipeline", "StableDiffusion3Pipeline", "LatentConsistencyModelPipeline"])
def test_on_transformers_it_is_the_pipelines_own_prompt_and_negative_prompt(name: str) -> None:
    pipe = TINY_PIPELINES[name]()
    size = oblong(pipe)
    if "negative_prompt" in signature(type(pipe).__call__).parameters:
        with steer(pipe, get_method("negative").fit(pipe, VIOLENCE)):
            found = draw(pipe, "a street", **size)
        close_to(found, draw(pipe, "a street", **size, negative_prompt=[VIOLENCE.negative]), "negative prompt", 1e-5)
    if reason := get_method("prompt").refuses(pipe):
        assert spec_of(pipe).listed and "template" in reason
        return
    with steer(pipe, get_method("prompt").fit(pipe, WOMAN)):
        found = draw(pipe, "a person", **size)
    close_to(found, draw(pipe, asked("a person"), **size), "prompt", 1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["Lumina2Pipeline", "ChromaPipeline"])
def test_a_module_beside_it_acts_as_on_the_prompt_that_it_gives(name: str) -> None:
    pipe = TINY_PIPELINES[name]()
    prompt, added = get_method("prompt").fit(pipe, WOMAN), module(pipe)
    with steer(pipe, added):
        expected = draw(pipe, asked("a person"))
    for both in ([added, prompt], [prompt, added]):
        with steer(pipe, [both]):
            close_to(draw(pipe, "a person"), expected, name, 1e-5)


@pytest.mark.slow
def test_a_module_beside_a_negative_prompt_acts_as_beside_the_pipelines_own() -> None:
    pipe = TINY_PIPELINES["ZImagePipeline"]()
    negative, added = get_method("negative").fit(pipe, VIOLENCE), module(pipe)
    with steer(pipe, added):
        expected = draw(pipe, "a street", negative_prompt=[VIOLENCE.negative])
    for both in ([added, negative], [negative, added]):
        with steer(pipe, [both]):
            close_to(draw(pipe, "a street"), expected, "negative prompt", 1e-5)


def asked(text: str) -> str:
    return rewritten(text, *rewriting(WOMAN.target, WOMAN.neutral))


@pytest.mark.slow
def test_prompts_of_different_lengths_in_one_call() -> None:
    pipe, texts = TINY_PIPELINES["QwenImagePipeline"](), ["a person", "a tall person"]
    with steer(pipe, get_method("prompt").fit(pipe, WOMAN)):
        found = draw(pipe, texts)
    close_to(found, draw(pipe, [asked(text) for text in texts]), "prompts", 1e-4)
    pipe = TINY_PIPELINES["CogView4Pipeline"]()
    with pytest.raises(ValueError, match="--batch 1"), steer(pipe, get_method("prompt").fit(pipe, WOMAN)):
        draw(pipe, ["a person", "a person who sings"])
