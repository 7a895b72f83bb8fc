from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from respodiff.pipelines.bottleneck import Decoder, add_to_rows, run_with_decoder, shifted, site_module, site_shape
from respodiff.pipelines.registry import Site

H = (64, 4, 4)


def inputs(rows: int = 3, size: tuple[int, int] = (8, 8)) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(rows, 4, *size, generator=generator)
    return z, torch.tensor([10, 500, 900])[:rows], torch.randn(rows, 7, 16, generator=generator)


def forward(unet: UNet2DConditionModel, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
    with torch.no_grad():
        return unet(z, t, encoder_hidden_states=context).sample


def predict(unet: UNet2DConditionModel, z: Tensor, t: Tensor, context: Tensor, shift: Tensor | None = None) -> tuple[Tensor, Tensor, Any]:
    delta = torch.zeros(1, 1, 1, 1) if shift is None else shift
    return run_with_decoder(unet, lambda: unet(z, t, encoder_hidden_states=context).sample, lambda h: delta.expand(-1, h.shape[1], -1, -1))


def random_shift(rows: int = 1, seed: int = 9) -> Tensor:
    return torch.randn(rows, *H, generator=torch.Generator().manual_seed(seed)) * 3


def hooks(unet: nn.Module) -> list[str]:
    return [n for n, m in unet.named_modules() if m._forward_hooks or m._forward_pre_hooks]


# --- where it is ---


def fake_unet(sample_size: Any, levels: int) -> Any:
    unet = nn.Module()
    unet.mid_block = nn.Identity()
    unet.config = SimpleNamespace(sample_size=sample_size, block_out_channels=(320, 640, 1280, 1280)[:levels])
    return unet


@pytest.mark.parametrize(
    ("sample_size", "levels", "asked", "shape"),
    [
        (64, 4, (), (1280, 8, 8)),  # Stable Diffusion 1.x at 512
        (96, 4, (), (1280, 12, 12)),  # Stable Diffusion 2.x at 768
        ((64, 96), 4, (), (1280, 8, 12)),
        (64, 4, (72, 40), (1280, 9, 5)),
        (64, 4, (65, 1), (1280, 9, 1)),
        (16, 3, (), (1280, 4, 4)),
        (64, 1, (), (320, 64, 64)),
    ],
)
def test_site_shape_of_known_configurations(sample_size: Any, levels: int, asked: tuple[int, ...], shape: tuple[int, ...]) -> None:
    assert site_shape(fake_unet(sample_size, levels), *asked) == shape


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (9, 12), (1, 2)])
def test_site_shape_is_what_the_model_really_has(tiny_unet: UNet2DConditionModel, size: tuple[int, int]) -> None:
    z, t, context = inputs(1, size)
    with torch.no_grad():
        _, h, _ = predict(tiny_unet, z, t, context)
    assert tuple(h.shape[1:]) == site_shape(tiny_unet, *size)


def test_the_embedded_model_has_the_shape_that_is_told(embedded: Any) -> None:
    assert site_shape(embedded.unet) == (256, 4, 4)


def test_a_model_without_a_mid_block_is_refused(tiny_unet: UNet2DConditionModel) -> None:
    with pytest.raises(ValueError, match="Linear has no 'mid_block'; steering needs a UNet"):
        site_module(nn.Linear(2, 2))
    tiny_unet.mid_block = None
    with pytest.raises(ValueError, match="UNet2DConditionModel has no 'mid_block'"):
        site_shape(tiny_unet)


# --- rows ---


def test_other_rows_keep_their_bits_and_the_input_is_not_written_to() -> None:
    h = torch.randn(4, *H)
    before = h.clone()
    delta = random_shift(2)
    out = add_to_rows(h, delta, slice(2, 4))
    assert torch.equal(h, before)
    assert torch.equal(out[:2], before[:2])
    assert torch.equal(out[2:], before[2:] + delta)


def test_one_delta_serves_all_rows_and_takes_the_dtype_of_h() -> None:
    h = torch.randn(3, *H).to(torch.bfloat16)
    delta = random_shift()
    out = add_to_rows(h, delta, slice(None))
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, h + delta.to(torch.bfloat16))


def test_memory_format_is_kept() -> None:
    h = torch.randn(2, *H).to(memory_format=torch.channels_last)
    assert add_to_rows(h, random_shift(), slice(None)).is_contiguous(memory_format=torch.channels_last)


def test_a_delta_of_another_shape_names_both() -> None:
    with pytest.raises(ValueError, match=r"module shape is \(64, 2, 2\), but the bottleneck of this call is \(64, 4, 4\)"):
        add_to_rows(torch.zeros(2, *H), torch.zeros(1, 64, 2, 2), slice(None))


# --- the hook ---


def test_a_zero_delta_equals_no_hook(tiny_unet: UNet2DConditionModel) -> None:
    plain = forward(tiny_unet, *inputs())
    with shifted(tiny_unet, lambda h: (torch.zeros(1, *H), slice(None))):
        assert torch.equal(forward(tiny_unet, *inputs()), plain)


def test_only_the_told_rows_change(tiny_unet: UNet2DConditionModel) -> None:
    plain = forward(tiny_unet, *inputs())
    with shifted(tiny_unet, lambda h: (random_shift(2), slice(1, 3))):
        out = forward(tiny_unet, *inputs())
    assert torch.equal(out[0], plain[0])
    assert (out[1:] - plain[1:]).abs().amax((1, 2, 3)).min() > 1e-3


def test_the_model_is_as_before_after_exit(tiny_unet: UNet2DConditionModel) -> None:
    plain, keys = forward(tiny_unet, *inputs()), list(tiny_unet.state_dict())
    with shifted(tiny_unet, lambda h: (random_shift(), slice(None))):
        assert list(tiny_unet.state_dict()) == keys
        assert hooks(tiny_unet) == ["mid_block"]
        forward(tiny_unet, *inputs())
    assert hooks(tiny_unet) == []
    assert list(tiny_unet.state_dict()) == keys
    assert torch.equal(forward(tiny_unet, *inputs()), plain)


def test_the_hook_goes_also_after_an_exception(tiny_unet: UNet2DConditionModel) -> None:
    def fail(h: Tensor) -> tuple[Tensor, slice]:
        raise KeyError("inside the hook")

    with pytest.raises(KeyError), shifted(tiny_unet, fail):
        forward(tiny_unet, *inputs())
    assert hooks(tiny_unet) == []


# --- prediction and decoder ---


def test_predict_without_a_shift_is_the_model_itself(tiny_unet: UNet2DConditionModel) -> None:
    with torch.no_grad():
        prediction, h, decode = predict(tiny_unet, *inputs())
    assert torch.equal(prediction, forward(tiny_unet, *inputs()))
    assert hooks(tiny_unet) == []
    with torch.no_grad():
        assert torch.allclose(decode(h), prediction, atol=1e-6)


@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_decoder_of_a_moved_h_equals_a_hooked_forward(tiny_unet: UNet2DConditionModel, size: tuple[int, int]) -> None:
    z, t, context = inputs(size=size)
    delta = torch.randn(1, *site_shape(tiny_unet, *size), generator=torch.Generator().manual_seed(2)) * 3
    with torch.no_grad():
        plain, h, decode = predict(tiny_unet, z, t, context)
        with shifted(tiny_unet, lambda _: (delta, slice(None))):
            hooked = tiny_unet(z, t, encoder_hidden_states=context).sample
        moved, again, decode_again = predict(tiny_unet, z, t, context, delta)
        assert torch.allclose(decode(h + delta), hooked, atol=1e-6)
        assert torch.equal(moved, hooked)
        assert torch.equal(again, h), "h is the bottleneck before the shift"
        assert torch.allclose(decode_again(again), plain, atol=1e-6)
    assert (hooked - plain).abs().max() > 1e-3


def test_a_decoder_can_be_run_many_times(tiny_unet: UNet2DConditionModel) -> None:
    with torch.no_grad():
        _, h, decode = predict(tiny_unet, *inputs())
        first = decode(h)
        decode(h + random_shift())
        assert torch.equal(decode(h), first)


def test_decoders_of_several_calls_are_joined_and_rows_of_them_picked(tiny_unet: UNet2DConditionModel) -> None:
    z, t, context = inputs()
    with torch.no_grad():
        whole, _, decode = predict(tiny_unet, z, t, context)
        parts = [predict(tiny_unet, z[i], t[i], context[i])[2] for i in (slice(0, 1), slice(1, 3))]
        joined = Decoder.join(parts)  # type: ignore[arg-type]
        assert torch.allclose(joined(joined.h), whole, atol=1e-5) and joined.nbytes == sum(d.nbytes for d in parts)  # type: ignore[attr-defined]
        two = joined.rows(torch.tensor([2, 0]))
        assert torch.allclose(two(two.h), whole[[2, 0]], atol=1e-5) and not torch.allclose(whole[0], whole[2], atol=1e-2)
        assert isinstance(decode, Decoder) and decode.nbytes == joined.nbytes > 3 * 4 * two.h[0].numel()


def test_the_gradient_reaches_the_shift_alone(tiny_unet: UNet2DConditionModel) -> None:
    shift = random_shift().requires_grad_()
    prediction, h, decode = predict(tiny_unet, *inputs(), shift)
    assert not h.requires_grad, "the encoder must build no graph"
    (prediction.pow(2).mean() + decode(h + shift).pow(2).mean()).backward()
    assert shift.grad is not None and shift.grad.abs().max() > 0
    assert all(p.grad is None for p in tiny_unet.parameters())


def test_predict_removes_its_hooks_after_an_exception(tiny_unet: UNet2DConditionModel) -> None:
    with pytest.raises(ValueError, match="module shape"):
        predict(tiny_unet, *inputs(), torch.zeros(1, 64, 2, 2))
    assert hooks(tiny_unet) == []


def test_predict_works_on_another_number_of_levels(make_unet: Callable[..., UNet2DConditionModel]) -> None:
    unet = make_unet(
        block_out_channels=(8, 16, 32),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    with torch.no_grad():
        prediction, h, decode = predict(unet, *inputs())
        assert tuple(h.shape[1:]) == site_shape(unet) == (32, 2, 2)
        assert torch.allclose(decode(h), prediction, atol=1e-6)


# --- other sites ---


@pytest.mark.parametrize("size", [(8, 8), (16, 12), (10, 14)])
@pytest.mark.parametrize("levels", [2, 3])
def test_every_block_has_the_shape_that_is_told(levels: int, size: tuple[int, int], make_unet: Callable[..., UNet2DConditionModel]) -> None:
    down, up = ("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",), ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1)
    unet = make_unet(block_out_channels=(8, 16, 32)[:levels], down_block_types=down, up_block_types=up)
    found: dict[str, tuple[int, ...]] = {}
    for site in (*(f"{k}_blocks.{i}" for k in ("down", "up") for i in range(levels)), "mid_block"):
        unet.get_submodule(site).register_forward_hook(
            lambda _m, _a, out, site=site: found.update({site: tuple((out if isinstance(out, Tensor) else out[0]).shape[1:])})
        )
    forward(unet, *inputs(1, size))
    assert len(found) == 2 * levels + 1 and all(site_shape(unet, *size, site=site) == shape for site, shape in found.items())


@pytest.mark.parametrize(("site", "reruns"), [("up_blocks.0", True), ("up_blocks.1", True), ("down_blocks.0", False)])
def test_the_decoder_of_another_block(tiny_unet: UNet2DConditionModel, site: str, reruns: bool) -> None:
    at = Site(site)
    at.stream = 0
    z, t, context = inputs()
    delta = torch.randn(1, *site_shape(tiny_unet, site=site), generator=torch.Generator().manual_seed(2)) * 3

    def run() -> Tensor:
        return tiny_unet(z, t, encoder_hidden_states=context).sample

    def by_hand(_m: nn.Module, _a: Any, out: Any) -> Any:
        return out + delta if isinstance(out, Tensor) else (out[0] + delta, out[1])

    with torch.no_grad():
        plain = run()
        with tiny_unet.get_submodule(site).register_forward_hook(by_hand):
            moved = run()
        prediction, h, decode = run_with_decoder(tiny_unet, run, lambda _: delta, at)
        assert torch.equal(prediction, moved) and not torch.allclose(plain, moved, atol=1e-3)
        assert torch.allclose(decode(h + delta), moved, atol=1e-5) and torch.allclose(decode(h), plain, atol=1e-5)
    assert isinstance(decode, Decoder) == reruns and hooks(tiny_unet) == []
