from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from tests.drawing import apart, draw, input_images, module, same, seen
from tests.raw_loop import raw_flow
from tests.tiny_models import TINY_PIPELINES, flux, modular, sd3

from respodiff.generation.generate import generate
from respodiff.pipelines.registry import PIPELINES, REFUSED, Unsupported, backbone, caller, row_blocks, spec_of
from respodiff.steering.steer import steer

# --- the table ---


@pytest.mark.parametrize("name", PIPELINES)
def test_every_row_names_a_class_of_diffusers_and_its_conditional_block(name: str) -> None:
    assert hasattr(diffusers, name)
    assert PIPELINES[name].passes.count("cond") == 1


@pytest.mark.parametrize("name", PIPELINES)
def test_as_many_tokens_are_read_as_the_class_reads(name: str) -> None:
    named = inspect.signature(getattr(diffusers, name).__call__).parameters
    if "max_sequence_length" in named:
        assert PIPELINES[name].longest == PIPELINES[name].call.get("max_sequence_length", named["max_sequence_length"].default)


def test_a_pipeline_that_is_not_in_the_table_is_refused_with_what_to_do() -> None:
    with pytest.raises(Unsupported, match=r"pipeline SimpleNamespace is not supported"):
        spec_of(SimpleNamespace())


def test_other_row_orders_are_refused() -> None:
    for name in ("StableDiffusionPAGPipeline", "StableDiffusionXLPAGPipeline", "StableCascadePriorPipeline", "HunyuanImagePipeline"):
        with pytest.raises(Unsupported, match=f"pipeline {name} is not supported"):
            spec_of(getattr(diffusers, name).__new__(getattr(diffusers, name)))


@pytest.mark.parametrize("name", REFUSED)
def test_a_class_that_cannot_be_steered_says_why(name: str) -> None:
    with pytest.raises(Unsupported, match=f"pipeline {name} is not supported: {REFUSED[name]}"):
        spec_of(object.__new__(getattr(diffusers, name)))


def test_a_subclass_is_supported_unless_it_draws_by_a_loop_of_its_own(tiny_pipe: StableDiffusionPipeline) -> None:
    class Mine(StableDiffusionPipeline):
        pass

    class Other(StableDiffusionPipeline):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return None

    assert spec_of(Mine(**tiny_pipe.components, requires_safety_checker=False)) == PIPELINES["StableDiffusionPipeline"]
    with pytest.raises(Unsupported, match="pipeline Other is not supported"):
        spec_of(Other(**tiny_pipe.components, requires_safety_checker=False))


def test_backbone_is_the_model_without_its_compiled_wrapper(tiny_pipe: StableDiffusionPipeline) -> None:
    plain = tiny_pipe.unet
    tiny_pipe.unet = torch.compile(plain, backend="eager")
    assert backbone(tiny_pipe) is plain


# --- rows ---


def test_conditional_rows_are_the_second_block_with_guidance_and_all_without(tiny_pipe: StableDiffusionPipeline) -> None:
    tiny_pipe._guidance_scale = 3.0
    assert row_blocks(tiny_pipe, 6, {})["cond"] == slice(3, 6)
    assert row_blocks(tiny_pipe, 2, {})["cond"] == slice(1, 2)
    tiny_pipe._guidance_scale = 1.0
    assert row_blocks(tiny_pipe, 6, {})["cond"] == slice(0, 6)
    assert row_blocks(tiny_pipe, 1, {})["cond"] == slice(0, 1)


def test_an_odd_number_of_guided_rows_is_refused(tiny_pipe: StableDiffusionPipeline) -> None:
    tiny_pipe._guidance_scale = 3.0
    with pytest.raises(ValueError, match="called with 5 rows, which is not a multiple of the 2 passes of StableDiffusionPipeline"):
        row_blocks(tiny_pipe, 5, {})


def test_the_caller_is_found_on_the_stack(tiny_pipe: StableDiffusionPipeline) -> None:
    assert caller() is None
    found: list[Any] = []
    tiny_pipe(
        "a doctor",
        height=16,
        width=16,
        num_inference_steps=1,
        output_type="latent",
        callback_on_step_end=lambda *_: found.append(caller()) or {},
    )
    assert found[0][0] is tiny_pipe and "latents" in found[0][1]


def test_guidance_that_is_cut_off_on_the_way_is_followed(tiny_pipe: StableDiffusionPipeline) -> None:
    def cut(pipe: Any, step: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 0:
            pipe._guidance_scale = 0.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"][-1:]
        return tensors

    arguments: dict[str, Any] = {"height": 16, "width": 16, "num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "latent"}
    arguments |= {"callback_on_step_end": cut, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    with steer(tiny_pipe, module(tiny_pipe)), seen(tiny_pipe) as calls:
        tiny_pipe("a doctor", generator=torch.Generator().manual_seed(0), **arguments)
    assert [len(h) for h, _ in calls] == [2, 1, 1]


# --- models that are called once per condition ---


def test_true_guidance_of_flux_steers_the_conditional_calls_alone() -> None:
    pipe = flux()
    m = module(pipe)
    options: dict[str, Any] = {"true_cfg_scale": 3.0, "negative_prompt": "a nurse", "steps": 2}
    plain = draw(pipe, **options)
    with steer(pipe, m.scale(0.0)):
        same(draw(pipe, **options), plain, "zero")
    with seen(pipe) as before:
        draw(pipe, **options)
    with steer(pipe, m), seen(pipe) as after:
        steered = draw(pipe, **options)
    assert len(before) == len(after) == 4
    assert torch.allclose(after[0][0], before[0][0] + m.delta.flatten(), atol=1e-6)
    assert torch.equal(after[1][0], before[1][0]), "the negative call"
    assert apart(steered, plain) > 1e-3


def test_skip_layer_guidance_of_sd3_is_a_conditional_call() -> None:
    pipe = sd3()
    m = module(pipe)
    options: dict[str, Any] = {"skip_guidance_layers": [2], "skip_layer_guidance_start": -1.0, "skip_layer_guidance_stop": 1.0, "steps": 1}
    with seen(pipe) as before:
        draw(pipe, images=2, **options)
    with steer(pipe, [m, None]), seen(pipe) as after:
        draw(pipe, images=2, **options)
    assert [len(h) for h, _ in after] == [4, 2]
    assert [i for i in range(4) if not torch.equal(before[0][0][i], after[0][0][i])] == [2]
    assert torch.allclose(after[1][0][0], before[1][0][0] + m.delta.flatten(), atol=1e-5) and torch.equal(after[1][0][1], before[1][0][1])


def test_prompt_embeddings_that_nobody_knows_are_refused() -> None:
    pipe = sd3()
    with pytest.raises(ValueError, match="which rows are conditional is unknown"):
        row_blocks(pipe, 2, {"prompt_embeds": torch.zeros(1)}, torch.zeros(1))


def test_the_hand_written_loop_of_transformers_is_the_pipeline_itself() -> None:
    for pipe in (sd3(), flux()):
        m = module(pipe, scale=0.0)
        assert apart(raw_flow(pipe, m.delta), draw(pipe)) < 1e-5


# --- images that are given ---


def test_tokens_of_a_given_image_keep_their_bits() -> None:
    pipe = TINY_PIPELINES["Flux2KleinPipeline"]()
    m, given = module(pipe), input_images(TINY_PIPELINES["QwenImageEditPipeline"](), 64, 64)
    with seen(pipe) as before:
        draw(pipe, steps=1, **given)
    with steer(pipe, m), seen(pipe) as after:
        draw(pipe, steps=1, **given)
    moved = (after[0][0] - before[0][0])[0]
    assert len(moved) == 64 + 256 and torch.equal(moved[64:], torch.zeros_like(moved[64:]))
    assert torch.allclose(moved[:64], m.delta.flatten().expand(64, -1), atol=1e-5)
    assert torch.equal(after[1][0], before[1][0]), "the unconditional call"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_given_image_and_a_compiled_model_are_refused_together() -> None:
    pipe = TINY_PIPELINES["Flux2KleinPipeline"]()
    pipe.transformer.compile(backend="eager")
    with steer(pipe, module(pipe)), pytest.raises(ValueError, match="tokens of images that are given follow those of the image"):
        draw(pipe, steps=1, **input_images(TINY_PIPELINES["QwenImageEditPipeline"](), 64, 64))
    torch.compiler.reset()


# --- modular pipelines ---


@pytest.mark.parametrize("guider", ["ClassifierFreeGuidance", "AdaptiveProjectedGuidance", "TangentialClassifierFreeGuidance"])
def test_a_guider_has_its_conditional_calls_steered(guider: str) -> None:
    pipe = modular()
    a, b = module(pipe, 1), module(pipe, 2)
    pipe.update_components(guider=getattr(diffusers, guider)(guidance_scale=3.0))
    options: dict[str, Any] = {"num_images_per_prompt": 2, "num_inference_steps": 3, "height": 32, "width": 32, "output_type": "latent"}
    with seen(pipe) as before, steer(pipe, [a, None, b, [a, b]]), seen(pipe) as after:
        pipe(prompt=["a doctor", "a nurse"], **options, generator=torch.Generator().manual_seed(0))
    assert [len(h) for h, _ in after] == [4] * 6, "one call a condition in each of three steps"
    conditional, wanted = after[0][1]["encoder_hidden_states"], torch.stack([a.delta, 0 * a.delta, b.delta, a.delta + b.delta])
    for (x, told), (y, _) in zip(before, after, strict=True):
        assert torch.allclose(y - x, wanted * torch.equal(told["encoder_hidden_states"], conditional), atol=1e-5)


def test_a_modular_pipeline_steered_by_a_list_of_the_wrong_length_is_refused() -> None:
    pipe = modular()
    with steer(pipe, [module(pipe), None]), pytest.raises(ValueError, match="2 entries, but the pipeline generates 1"):
        draw(pipe)


def test_generate_does_not_call_a_modular_pipeline() -> None:
    with pytest.raises(ValueError, match="StableDiffusionXLModularPipeline is made of blocks"):
        generate(modular(), ["a doctor"])
