from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from torch.nn.functional import interpolate

from respodiff.pipelines.identity import config_digest, weights_digest
from respodiff.steering.adapter import Adapter
from respodiff.steering.module import ConceptModule
from respodiff.steering.serialization import Header
from respodiff.steering.steer import steer

Make = Callable[..., ConceptModule]
Pipe = StableDiffusionPipeline


def latents(n: int, seed: int = 3) -> Tensor:
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def draw(pipe: Pipe, n: int = 1, prompt: Any = "a doctor", start: Tensor | None = None, guidance: float = 3.0, steps: int = 2) -> Tensor:
    """Final latents (n, 4, 8, 8)."""
    start = latents(n) if start is None else start
    per_prompt = len(start) // (len(prompt) if isinstance(prompt, list) else 1)
    return pipe(
        prompt,
        latents=start,
        num_images_per_prompt=per_prompt,
        guidance_scale=guidance,
        num_inference_steps=steps,
        output_type="latent",
    ).images


@contextmanager
def bottlenecks(pipe: Pipe) -> Iterator[list[Tensor]]:
    """What the first up block receives, one tensor per UNet call."""
    seen: list[Tensor] = []
    handle = pipe.unet.up_blocks[0].register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(kwargs["hidden_states"].clone()), with_kwargs=True
    )
    try:
        yield seen
    finally:
        handle.remove()


def first_bottleneck(pipe: Pipe, n: int, guidance: float) -> Tensor:
    with bottlenecks(pipe) as seen:
        draw(pipe, n, guidance=guidance, steps=1)
    return seen[0]


def hooks(pipe: Pipe) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.unet.modules())


# --- the pipeline is left as it was ---


def test_images_are_bit_identical_before_and_after(tiny_pipe: Pipe, make_module: Make) -> None:
    before, keys = draw(tiny_pipe, 2), list(tiny_pipe.unet.state_dict())
    with steer(tiny_pipe, make_module()):
        steered = draw(tiny_pipe, 2)
        assert list(tiny_pipe.unet.state_dict()) == keys
        assert hooks(tiny_pipe) == 4
    assert hooks(tiny_pipe) == 0
    assert list(tiny_pipe.unet.state_dict()) == keys
    assert torch.equal(draw(tiny_pipe, 2), before)
    assert (steered - before).abs().max() > 1e-2


def test_an_exception_inside_leaves_no_hook(tiny_pipe: Pipe, make_module: Make) -> None:
    with pytest.raises(KeyboardInterrupt), steer(tiny_pipe, make_module()):
        raise KeyboardInterrupt
    assert hooks(tiny_pipe) == 0


@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_a_zero_delta_equals_no_hook(tiny_pipe: Pipe, make_module: Make, guidance: float) -> None:
    plain = draw(tiny_pipe, 2, guidance=guidance)
    with steer(tiny_pipe, make_module(scale=0.0)):
        assert hooks(tiny_pipe) == 4, "otherwise the test tests nothing"
        assert torch.equal(draw(tiny_pipe, 2, guidance=guidance), plain)


def test_idle_steering_changes_no_bit_and_still_counts_entries(tiny_pipe: Pipe, make_module: Make) -> None:
    plain = draw(tiny_pipe, 2)
    for modules, scale in ((None, 1.0), ([None, None], 1.0), ([[], None], 1.0), (make_module(), 0.0)):
        with steer(tiny_pipe, modules, scale=scale):
            assert torch.equal(draw(tiny_pipe, 2), plain)
    with steer(tiny_pipe, [None, None, None]), pytest.raises(ValueError, match="given 3 entries, but the pipeline generates 2"):
        draw(tiny_pipe, 2)


def test_one_entry_is_one_image(tiny_pipe: Pipe, make_module: Make) -> None:
    with steer(tiny_pipe, [make_module()]), pytest.raises(ValueError, match="given 1 entries, but the pipeline generates 2"):
        draw(tiny_pipe, 2)


def test_unet_called_on_its_own_is_refused(tiny_pipe: Pipe, make_module: Make) -> None:
    z, context = torch.zeros(2, 4, 8, 8), torch.zeros(2, 32, 16)
    with steer(tiny_pipe, make_module()), pytest.raises(ValueError, match="outside of its pipeline"):
        tiny_pipe.unet(z, 1, encoder_hidden_states=context)


def test_the_embedded_pipeline_is_left_as_it_was(embedded: Pipe, make_module: Make) -> None:
    def image() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.as_tensor(embedded("a doctor", num_inference_steps=1, generator=generator, output_type="latent").images)

    before = image()
    with steer(embedded, make_module(shape=(256, 4, 4))):
        assert not torch.equal(image(), before)
    assert torch.equal(image(), before)
    assert hooks(embedded) == 0


# --- conditional rows alone ---


def test_with_guidance_only_conditional_rows_change(tiny_pipe: Pipe, make_module: Make) -> None:
    woman = make_module()
    plain = first_bottleneck(tiny_pipe, 3, 3.0)
    with steer(tiny_pipe, woman):
        out = first_bottleneck(tiny_pipe, 3, 3.0)
    assert len(out) == 6
    assert torch.equal(out[:3], plain[:3]), "unconditional rows keep their bits"
    assert torch.equal(out[3:], plain[3:] + woman.delta)


def test_without_guidance_every_row_is_conditional(tiny_pipe: Pipe, make_module: Make) -> None:
    woman = make_module()
    plain = first_bottleneck(tiny_pipe, 2, 1.0)
    with steer(tiny_pipe, woman):
        out = first_bottleneck(tiny_pipe, 2, 1.0)
    assert len(out) == 2
    assert torch.equal(out, plain + woman.delta)


def test_guidance_may_change_from_call_to_call(tiny_pipe: Pipe, make_module: Make) -> None:
    woman = make_module()
    with steer(tiny_pipe, woman):
        one, two = first_bottleneck(tiny_pipe, 2, 3.0), first_bottleneck(tiny_pipe, 2, 1.0)
    assert torch.equal(one[2:], first_bottleneck(tiny_pipe, 2, 3.0)[2:] + woman.delta)
    assert torch.equal(two, first_bottleneck(tiny_pipe, 2, 1.0) + woman.delta)


@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_unsteered_images_of_a_mixed_batch_keep_their_bits(tiny_pipe: Pipe, make_module: Make, guidance: float) -> None:
    plain = first_bottleneck(tiny_pipe, 3, guidance)
    with steer(tiny_pipe, [None, make_module(), None]):
        out = first_bottleneck(tiny_pipe, 3, guidance)
    changed = [i for i in range(len(out)) if not torch.equal(out[i], plain[i])]
    assert changed == [len(out) - 2]


def test_every_step_is_steered(tiny_pipe: Pipe, make_module: Make) -> None:
    with bottlenecks(tiny_pipe) as plain:
        draw(tiny_pipe, steps=4)
    with steer(tiny_pipe, make_module(scale=100.0)), bottlenecks(tiny_pipe) as seen:
        draw(tiny_pipe, steps=4)
    assert len(seen) == len(plain) == 4
    assert all((s[1] - p[1]).abs().mean() > 50 for s, p in zip(seen, plain, strict=True))


def test_scale_is_a_factor(tiny_pipe: Pipe, make_module: Make) -> None:
    woman = make_module()
    with steer(tiny_pipe, woman, scale=-0.5):
        out = draw(tiny_pipe)
    with steer(tiny_pipe, woman.scale(-0.5)):
        assert torch.allclose(draw(tiny_pipe), out, atol=1e-5)
    with steer(tiny_pipe, woman):
        assert not torch.allclose(draw(tiny_pipe), out, atol=1e-2)


def test_nested_steering_adds_up(tiny_pipe: Pipe, make_module: Make) -> None:
    a, b = make_module(), make_module("dark", seed=1)
    with steer(tiny_pipe, [[a, b]]):
        together = draw(tiny_pipe)
    with steer(tiny_pipe, a), steer(tiny_pipe, b):
        assert torch.allclose(draw(tiny_pipe), together, atol=1e-5)


def test_a_model_in_half_precision(tiny_pipe: Pipe, make_module: Make) -> None:
    pipe = tiny_pipe.to(torch.bfloat16)
    plain = draw(pipe, start=latents(1).bfloat16())
    with steer(pipe, make_module()):
        out = draw(pipe, start=latents(1).bfloat16())
    assert out.dtype == torch.bfloat16 and torch.isfinite(out).all() and not torch.equal(out, plain)


# --- mixed batches ---


def separately(pipe: Pipe, rows: list[Any], prompts: list[str], start: Tensor) -> Tensor:
    out = []
    for row, prompt, z in zip(rows, prompts, start, strict=True):
        with steer(pipe, [row]):
            out.append(draw(pipe, 1, prompt, z[None]))
    return torch.cat(out)


def test_one_mixed_batch_equals_separate_runs(tiny_pipe: Pipe, make_module: Make) -> None:
    woman, man, dark = make_module("woman"), make_module("man", seed=1), make_module("dark", seed=2)
    rows = [woman, man, None, [woman, dark], woman.scale(0.3), man.scale(-2)]
    with steer(tiny_pipe, rows):
        batch = draw(tiny_pipe, len(rows))
    alone = separately(tiny_pipe, rows, ["a doctor"] * len(rows), latents(len(rows)))
    assert torch.allclose(batch, alone, atol=1e-5)
    assert torch.allclose(batch[2], draw(tiny_pipe, len(rows))[2], atol=1e-5), "the image without a module is the plain one"


def test_entries_follow_prompts_times_images_per_prompt(tiny_pipe: Pipe, make_module: Make) -> None:
    rows = [make_module("woman"), make_module("man", seed=1), None, make_module("dark", seed=2)]
    with steer(tiny_pipe, rows):
        batch = draw(tiny_pipe, 4, ["a doctor", "a firefighter"])
    alone = separately(tiny_pipe, rows, ["a doctor", "a doctor", "a firefighter", "a firefighter"], latents(4))
    assert torch.allclose(batch, alone, atol=1e-5)


def test_one_entry_serves_every_image(tiny_pipe: Pipe, make_module: Make) -> None:
    woman = make_module()
    with steer(tiny_pipe, woman):
        one = draw(tiny_pipe, 3)
    with steer(tiny_pipe, [woman] * 3):
        assert torch.allclose(draw(tiny_pipe, 3), one, atol=1e-6)


# --- refusals ---


@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_a_wrong_number_of_entries_is_refused_at_the_call(tiny_pipe: Pipe, make_module: Make, guidance: float) -> None:
    with (
        pytest.raises(ValueError, match=r"given 2 entries, but the pipeline generates 4 images; .*prompts x num_images_per_prompt"),
        steer(tiny_pipe, [make_module(), None]),
    ):
        draw(tiny_pipe, 4, ["a doctor", "a nurse"], guidance=guidance)
    assert hooks(tiny_pipe) == 0


def resized(r: Tensor, side: int) -> Tensor:
    return interpolate(r[None], (side, side), mode="bilinear", antialias=True)[0]


def refused(pipe: Any, modules: Any, message: str, **kwargs: Any) -> None:
    with pytest.raises(ValueError, match=message), steer(pipe, modules, **kwargs):
        pytest.fail("steer() let it in")


def test_an_unknown_pipeline_is_refused(make_module: Make) -> None:
    refused(SimpleNamespace(), make_module(), "pipeline SimpleNamespace is not supported; supported: StableDiffusionPipeline")


def test_a_module_of_other_channels_is_refused(tiny_pipe: Pipe, make_module: Make) -> None:
    module = make_module(shape=(1280, 8, 8), base_model="someone/sd")
    refused(tiny_pipe, module, "module 'woman' has 1280 channels, the bottleneck of model '.*' has 64; it was trained on 'someone/sd'")
    refused(tiny_pipe, [None, [make_module(), module]], "has 1280 channels")


def test_a_module_of_another_site_is_refused(tiny_pipe: Pipe, make_module: Make) -> None:
    refused(tiny_pipe, make_module(site="transformer.9"), "was trained at site 'transformer.9', this pipeline is steered at 'mid_block'")


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_a_scale_that_is_not_finite_is_refused(tiny_pipe: Pipe, make_module: Make, scale: float) -> None:
    refused(tiny_pipe, make_module(), f"scale is {scale}; allowed: any finite number", scale=scale)


def test_an_empty_list_is_refused(tiny_pipe: Pipe) -> None:
    refused(tiny_pipe, [], "adapters is empty; give one adapter, or one entry per image")


def test_modules_may_be_named(tiny_pipe: Pipe, make_module: Make, tmp_path: Path) -> None:
    woman = make_module()
    file = woman.save(tmp_path / "woman.safetensors")
    with steer(tiny_pipe, [woman, None]):
        expected = draw(tiny_pipe, 2)
    for named in ([file, None], [[str(tmp_path)], None]):
        with steer(tiny_pipe, named):
            assert torch.equal(draw(tiny_pipe, 2), expected)
    with steer(tiny_pipe, str(file)):
        assert torch.equal(draw(tiny_pipe, 2)[0], expected[0]), "one name is for all images"


def test_what_names_no_module_is_refused(tiny_pipe: Pipe, make_module: Make, tmp_path: Path) -> None:
    refused(tiny_pipe, [[7]], "adapters holds 7; give adapters, names of module files, or None")
    with pytest.raises(FileNotFoundError), steer(tiny_pipe, "woman.safetensors"):
        pytest.fail("there is no such file")
    refused(tiny_pipe, "gender", r"path is 'gender', which stands for 2 modules \(woman, man\); name one")
    Adapter(Header("woman", "a woman", "a person", method="sld-weak")).save(tmp_path / "sld.safetensors")
    refused(tiny_pipe, tmp_path / "sld.safetensors", "is a file of method 'sld-weak', and modules alone may be named")


@pytest.mark.filterwarnings("ignore:module of")
def test_modules_of_several_shapes_are_added_up(tiny_pipe: Pipe, make_module: Make) -> None:
    wide, small, flat = (make_module(str(n), seed=n, shape=(64, n, n)) for n in (4, 2, 1))
    together = wide.delta + resized(small.delta, 4) + flat.delta
    one = ConceptModule.of(together, torch.zeros_like(together), wide.header)
    with steer(tiny_pipe, [[wide, small, flat], small, None]):
        found = draw(tiny_pipe, 3)
    with steer(tiny_pipe, [one, small, None]):
        torch.testing.assert_close(draw(tiny_pipe, 3), found, atol=1e-4, rtol=0)
    assert torch.equal(found[2], draw(tiny_pipe, 3)[2])


# --- warnings ---


def test_another_spatial_size_is_resized_with_one_warning(tiny_pipe: Pipe, make_module: Make) -> None:
    small = make_module(shape=(64, 2, 2))
    with pytest.warns(UserWarning, match=r"module of \(2, 2\) is resized to the bottleneck \(4, 4\)") as caught, steer(tiny_pipe, small):
        out = draw(tiny_pipe, 2, steps=3)
    assert len(caught) == 1, "once, not at every step"
    with steer(tiny_pipe, ConceptModule.of(resized(small.ram, 4), resized(small.sam, 4), small.header)):
        assert torch.allclose(draw(tiny_pipe, 2, steps=3), out, atol=1e-5)


def test_another_image_size_is_steered_with_a_warning(tiny_pipe: Pipe, make_module: Make) -> None:
    start = torch.randn(1, 4, 12, 20, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match=r"resized to the bottleneck \(6, 10\) of this image size"), steer(tiny_pipe, make_module()):
        out = tiny_pipe("a doctor", height=24, width=40, latents=start, num_inference_steps=1, output_type="latent").images
    assert out.shape == (1, 4, 12, 20)


def test_another_base_model_is_a_warning(tiny_pipe: Pipe, make_module: Make) -> None:
    config, weights = config_digest(tiny_pipe.unet), weights_digest(tiny_pipe.unet)
    other_config = make_module(base_model="someone/sd", base_digest="other", base_weights=weights)
    with (
        pytest.warns(UserWarning, match="'woman' was trained on a UNet of another configuration .'someone/sd'"),
        steer(tiny_pipe, other_config),
    ):
        draw(tiny_pipe)
    other_weights = make_module(base_model="someone/sd", base_digest=config, base_weights="other")
    with pytest.warns(UserWarning, match="'woman' was trained on other weights .'someone/sd'"), steer(tiny_pipe, other_weights):
        draw(tiny_pipe)


def test_a_module_of_this_model_gives_no_warning(tiny_pipe: Pipe, make_module: Make) -> None:
    fits = make_module(base_digest=config_digest(tiny_pipe.unet), base_weights=weights_digest(tiny_pipe.unet))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with steer(tiny_pipe, fits):
            pass


def test_a_call_that_began_in_another_thread_is_left_alone(tiny_pipe: Pipe, make_module: Make) -> None:
    plain = draw(tiny_pipe)
    outer = steer(tiny_pipe, make_module())
    handle = tiny_pipe.unet.conv_in.register_forward_hook(lambda *_: outer.__enter__() and None)
    result: list[Tensor] = []
    thread = threading.Thread(target=lambda: result.append(draw(tiny_pipe, steps=1)))
    thread.start()
    thread.join()
    handle.remove()
    outer.__exit__(None, None, None)
    assert torch.equal(result[0], draw(tiny_pipe, steps=1))
    assert torch.equal(draw(tiny_pipe), plain)


def test_one_pipeline_in_two_threads_is_refused(tiny_pipe: Pipe, make_module: Make) -> None:
    found: list[BaseException] = []

    def second() -> None:
        try:
            with steer(tiny_pipe, make_module()):
                pass
        except ValueError as error:
            found.append(error)

    with steer(tiny_pipe, make_module()):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "in another thread" in str(found[0])
    second()
    assert len(found) == 1


def test_a_thread_inside_of_the_block_is_steered(tiny_pipe: Pipe, make_module: Make) -> None:
    with steer(tiny_pipe, make_module()):
        expected, found = draw(tiny_pipe), []
        thread = threading.Thread(target=lambda: found.append(draw(tiny_pipe)))
        thread.start()
        thread.join()
    assert torch.equal(found[0], expected)


def test_a_module_of_one_number_a_channel_is_added_everywhere_without_a_warning(tiny_pipe: Pipe, make_module: Make) -> None:
    flat = make_module(shape=(64, 1, 1))
    wide = ConceptModule.of(flat.ram.expand(64, 4, 4).clone(), flat.sam.expand(64, 4, 4).clone(), flat.header)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with steer(tiny_pipe, flat):
            out = draw(tiny_pipe)
    with steer(tiny_pipe, wide):
        assert torch.equal(draw(tiny_pipe), out)
