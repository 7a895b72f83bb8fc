from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tests.drawing import apart, close, draw, module, same, seen
from tests.tiny_models import sd, sd3

from respodiff.pipelines.bottleneck import shifted
from respodiff.steering.fuse import LDM_BIAS, channel_delta, energy_lost, fuse_checkpoint, fused, save_unet
from respodiff.steering.steer import steer


@pytest.fixture
def pipe() -> Any:
    return sd()


def test_a_fused_module_is_a_hook_on_every_row(pipe: Any) -> None:
    flat = module(pipe).channels()
    plain, weights = draw(pipe), {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    with shifted(pipe.unet, lambda h: (2 * flat.delta[None].expand(1, -1, *h.shape[2:]), slice(None))):
        by_hook = draw(pipe)
    with fused(pipe, [flat], scale=2.0):
        assert list(pipe.unet.state_dict()) == list(weights)
        fused_image = draw(pipe)
        assert len([h for m in pipe.unet.modules() for h in m._forward_hooks]) == 0
    close(fused_image, by_hook, "fused and hooked", 1e-5)
    assert all(torch.equal(v, weights[k]) for k, v in pipe.unet.state_dict().items())
    same(draw(pipe), plain, "afterwards")


def test_it_shifts_the_unconditional_rows_too_and_so_differs_from_steering(pipe: Any) -> None:
    flat = module(pipe).channels()
    with seen(pipe) as plain:
        draw(pipe, steps=1)
    with fused(pipe, [flat]), seen(pipe) as moved:
        draw(pipe, steps=1)
    assert torch.allclose(moved[0][0], plain[0][0] + flat.delta, atol=1e-5)
    with fused(pipe, [flat]):
        fused_image = draw(pipe)
    with steer(pipe, flat):
        assert apart(draw(pipe), fused_image) > 1e-3


def test_the_saved_unet_is_an_ordinary_one(pipe: Any, tmp_path: Path) -> None:
    flat = module(pipe).channels()
    save_unet(pipe, [flat, flat], tmp_path / "unet", scale=0.5)
    with fused(pipe, [flat]):
        expected = draw(pipe)
    pipe.unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet", low_cpu_mem_usage=False).eval()
    same(draw(pipe), expected, "loaded again")


def test_a_module_with_positions_is_refused_with_what_its_mean_loses(pipe: Any) -> None:
    m = module(pipe)
    whole = m.delta.square().sum()
    lost = 1 - (m.delta.mean((1, 2), keepdim=True).expand_as(m.delta).square().sum() / whole).item()
    assert energy_lost(m) == pytest.approx(lost, abs=1e-5) and energy_lost(m.channels()) == pytest.approx(0, abs=1e-6)
    with pytest.raises(
        ValueError, match=rf"has shape \(32, 4, 4\); only one number a channel can be fused.*--channel-mean.*loses {lost:.0%}"
    ):
        channel_delta([m])
    with pytest.raises(ValueError, match="no module to fuse"):
        channel_delta([])
    assert energy_lost(m.scale(0.0)) == 0.0


def test_transformers_and_other_sites_are_refused(pipe: Any) -> None:
    other = sd3()
    for place in (other, pipe):
        with pytest.raises(ValueError, match=r"acts at transformer_blocks\.1; fusing is for the mid block"), fused(place, [module(other)]):
            pass
    with pytest.raises(ValueError, match=r"was trained at site 'mid_block'"), fused(other, [module(pipe).channels()]):
        pass


def test_an_exception_gives_the_weights_back(pipe: Any) -> None:
    before = pipe.unet.mid_block.resnets[-1].conv2.bias.clone()
    with pytest.raises(KeyError), fused(pipe, [module(pipe).channels()]):
        raise KeyError
    assert torch.equal(pipe.unet.mid_block.resnets[-1].conv2.bias, before)


def test_a_single_file_checkpoint_gets_a_new_bias_and_nothing_else(pipe: Any, tmp_path: Path) -> None:
    tensors = {
        LDM_BIAS: torch.zeros(32, dtype=torch.float16),
        "cond_stage_model.x": torch.ones(3),
        "model.diffusion_model.y": torch.ones(2),
    }
    save_file(tensors, tmp_path / "sd.safetensors", metadata={"format": "pt"})
    flat = module(pipe).channels()
    found = load_file(fuse_checkpoint(tmp_path / "sd.safetensors", [flat], tmp_path / "out" / "fused.safetensors", scale=2.0))
    assert torch.equal(found.pop(LDM_BIAS), (2 * flat.delta.flatten()).half())
    assert all(torch.equal(v, tensors[k]) for k, v in found.items()) and len(found) == 2


def test_other_checkpoints_are_refused(pipe: Any, tmp_path: Path) -> None:
    flat = module(pipe).channels()
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    save_file({LDM_BIAS: torch.zeros(5)}, tmp_path / "narrow.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    for name, message in (
        ("other", "is not a checkpoint of Stable Diffusion 1.x, 2.x or XL"),
        ("narrow", "has 5 channels, the module 32"),
        ("broken", "truncated or not a safetensors file"),
    ):
        with pytest.raises(ValueError, match=message):
            fuse_checkpoint(tmp_path / f"{name}.safetensors", [flat], tmp_path / "out.safetensors")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        fuse_checkpoint(tmp_path / "absent.safetensors", [flat], tmp_path / "out.safetensors")


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 1e6])
def test_what_is_not_finite_is_not_written(pipe: Any, tmp_path: Path, scale: float) -> None:
    flat, narrow = module(pipe).channels(), tmp_path / "sd.safetensors"
    save_file({LDM_BIAS: torch.zeros(32, dtype=torch.float16)}, narrow)
    with pytest.raises(ValueError, match="scale"):
        fuse_checkpoint(narrow, [flat], tmp_path / "out.safetensors", scale=scale)
    pipe.unet.half()
    with pytest.raises(ValueError, match="scale"):
        save_unet(pipe, [flat], tmp_path / "out", scale=scale)
    assert [p.name for p in tmp_path.iterdir()] == ["sd.safetensors"]
