"""LoRA files: what is written acts in diffusers as here, and what other programs write acts here as in diffusers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.drawing import apart, draw
from tests.tiny_models import TINY_PIPELINES, sd, sdxl
from torch import Tensor, nn

from method_tools import VIOLENCE, WOMAN, close, latents, noise, state, strong, unchanged
from respodiff.methods.lora import LowRankAdapter, layers
from respodiff.methods.lora_files import from_lora, is_lora, to_peft
from respodiff.methods.registry import get_method, load
from respodiff.pipelines.dry_run import skeleton
from respodiff.pipelines.identity import config_digest
from respodiff.pipelines.registry import PIPELINES, backbone
from respodiff.steering.adapter import header_of
from respodiff.steering.steer import steer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning")]

READ = [name for name, spec in PIPELINES.items() if not spec.images and name not in ("PixArtSigmaPipeline", "HunyuanDiTPipeline")]
"""Classes for which diffusers reads LoRAs."""
LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
"""A linear layer of the tiny UNet, 32 to 32."""


def slider(pipe: Any, **changes: Any) -> LowRankAdapter:
    """A random slider, of two ranks."""
    generator, tensors = torch.Generator().manual_seed(0), dict[str, Tensor]()
    for i, (name, layer) in enumerate(layers(backbone(pipe)).items()):
        rank = 3 + i % 2
        tensors[f"{name}.a"] = torch.randn(rank, layer.in_features, generator=generator)
        tensors[f"{name}.b"] = torch.randn(layer.out_features, rank, generator=generator) * 0.2
    return LowRankAdapter(header_of(pipe, "slider", WOMAN, get_method("slider").settings(**changes)), tensors)


def steered(pipe: Any, adapter: LowRankAdapter) -> Tensor:
    with steer(pipe, adapter):
        return draw(pipe)


def test_a_lora_beside_a_weight_edit_acts_in_a_mixed_batch_as_alone() -> None:
    pipe = strong(sd())
    edit, made = get_method("uce").fit(pipe, VIOLENCE), slider(pipe)
    z, prompts = noise(pipe, 2), ["a person in violence"] * 2
    for both in ([made, edit], [edit, made]):
        mixed = latents(pipe, prompts, [both, None], start=z)
        alone, without = (latents(pipe, prompts[:1], [entry], start=z[:1]) for entry in (both, edit))
        assert close(mixed[0], alone[0], 1e-3) and not close(alone, without, 1e-2)


@pytest.mark.parametrize("cls", READ)
def test_a_slider_acts_in_diffusers_as_here_and_comes_back(cls: str, tmp_path: Path) -> None:
    pipe = TINY_PIPELINES[cls]()
    made, before, plain = slider(pipe, rank=4, alpha=2.0).scale(0.7), state(pipe) if hasattr(pipe, "unet") else {}, draw(pipe)
    file, here = to_peft(made, tmp_path / "x.safetensors"), steered(pipe, made)
    back = from_lora(pipe, file, VIOLENCE)
    assert not before or unchanged(before, state(pipe))
    assert load(back.save(tmp_path / "s.safetensors")).digest == back.digest and back.name == "violence" and back.method == "slider"
    assert back.header.base_digest == made.header.base_digest and back.settings == {"converted": {"file": "x.safetensors"}}
    assert back.tensors.keys() == made.tensors.keys() and apart(steered(pipe, back), here) < 1e-5
    assert apart(steered(pipe, back.scale(0.5)), steered(pipe, made.scale(0.5))) < 1e-5
    pipe.load_lora_weights(tmp_path, weight_name=file.name)
    assert apart(draw(pipe), here) < 1e-5 < 1e-3 < apart(plain, here)


def test_names_and_ranks_of_the_file(tmp_path: Path) -> None:
    file = to_peft(get_method("slider").fit(pipe := sd(), WOMAN, tiny()), tmp_path / "x.safetensors")
    with safe_open(file, "pt") as found:
        keys = set(found.keys())
        assert found.get_tensor(f"unet.{LAYER}.lora_A.weight").shape == (4, 32)
    assert keys == {f"unet.{name}.lora_{part}.weight" for name in layers(pipe.unet) for part in "AB"} and is_lora(file)


def tiny() -> Any:
    return get_method("slider").settings(iterations=1, batch=1, steps=2, rollouts=1, rollout_batch=1, lr=0.05)


def kohya(pipe: Any) -> dict[str, Tensor]:
    """As kohya's scripts write it: linear layers and convolutions, alpha beside them."""
    out = dict[str, Tensor]()
    for name, layer in pipe.unet.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and ("attentions" in name or "conv1" in name):
            key, rank = f"lora_unet_{name.replace('.', '_')}", 2 if "proj" in name else 4
            down = (rank, *layer.weight.shape[1:])
            out |= {f"{key}.lora_down.weight": torch.randn(down), f"{key}.alpha": torch.tensor(2.0)}
            out[f"{key}.lora_up.weight"] = torch.randn(len(layer.weight), rank, *(1,) * (len(down) - 2)) * 0.1
    return out


def older(pipe: Any) -> dict[str, Tensor]:
    """As diffusers wrote it before peft."""
    found = [(name, layer) for name, layer in pipe.unet.named_modules() if name.endswith(("to_q", "to_v"))]
    down = {f"unet.{name}.lora.down.weight": torch.randn(3, layer.in_features) for name, layer in found}
    return down | {f"unet.{name}.lora.up.weight": torch.randn(layer.out_features, 3) * 0.1 for name, layer in found}


@pytest.mark.parametrize("layout", [kohya, older])
@pytest.mark.parametrize("make", [sd, sdxl])
def test_files_of_other_programs_act_as_in_diffusers(
    make: Callable[[], Any], layout: Callable[[Any], dict[str, Tensor]], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    pipe = make()
    save_file(layout(pipe), file := tmp_path / "lora.safetensors")
    made, plain = from_lora(pipe, file, WOMAN), draw(pipe)
    here, half = steered(pipe, made), steered(pipe, made.scale(0.5))
    with steer(pipe, [made, None, made.scale(0.5)]):
        mixed = draw(pipe, images=3)
    assert apart(mixed[:1], here) < 1e-5
    pipe.load_lora_weights(tmp_path, weight_name=file.name, adapter_name="x")
    assert apart(draw(pipe), here) < 1e-5 < 1e-3 < apart(plain, here)
    pipe.set_adapters(["x"], [0.5])
    assert apart(draw(pipe), half) < 1e-5


def test_alpha_by_hand(tmp_path: Path) -> None:
    pipe = sd()
    save_file(tensors := kohya(pipe), file := tmp_path / "lora.safetensors")
    made, key = from_lora(pipe, file, WOMAN), f"lora_unet_{LAYER.replace('.', '_')}"
    assert torch.allclose(made.tensors[f"{LAYER}.b"], 2.0 / 4 * tensors[f"{key}.lora_up.weight"])
    assert made.tensors["mid_block.resnets.0.conv1.a"].shape == (4, 32, 3, 3)
    tensors[f"{key}.alpha"] = torch.tensor(1.0)  # which diffusers does not find again
    save_file(tensors, file)
    with pytest.raises(ValueError, match="alpha"):
        from_lora(pipe, file, WOMAN)


A, B = torch.ones(2, 32), torch.ones(32, 2)
ODD: dict[str, tuple[dict[str, Tensor], str]] = {
    "text encoder": ({"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": A}, "changes a text encoder"),
    "text encoder of peft": ({"text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": A}, "changes a text encoder"),
    "DoRA": ({f"lora_unet_{LAYER.replace('.', '_')}.dora_scale": A}, "dora_scale"),
    "DoRA of peft": ({f"unet.{LAYER}.lora_magnitude_vector.weight": A}, "lora_magnitude_vector"),
    "bias": ({f"unet.{LAYER}.lora_B.bias": A}, "lora_B.bias"),
    "norm": ({"unet.norm.weight": A}, "unet.norm.weight"),
    "another layer": ({"unet.x.lora_A.weight": A, "unet.x.lora_B.weight": B}, "x.lora_A.weight"),
}


@pytest.mark.parametrize("odd", ODD)
def test_what_a_slider_cannot_hold_is_refused(odd: str, tmp_path: Path) -> None:
    more, said = ODD[odd]
    tensors = {f"unet.{LAYER}.lora_A.weight": A, f"unet.{LAYER}.lora_B.weight": B} | more
    save_file({key: value.clone() for key, value in tensors.items()}, file := tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=said) as error:
        from_lora(sd(), file, WOMAN)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "tensors",
    [
        {f"unet.{LAYER}.lora_A.weight": A[:, :16], f"unet.{LAYER}.lora_B.weight": B},
        {f"unet.{LAYER}.lora_A.weight": A},
        {"transformer.x.lora_A.weight": A, "transformer.x.lora_B.weight": B},
        {f"{LAYER}.lora_A.weight": A, f"{LAYER}.lora_B.weight": B},
        {"lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": A},
    ],
    ids=["size", "half", "transformer", "no prefix", "LoHa"],
)
def test_a_file_for_another_model_is_refused(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    save_file({key: value.clone().contiguous() for key, value in tensors.items()}, file := tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="give a LoRA") as error:
        from_lora(sd(), file, WOMAN)
    assert "\n" not in str(error.value)


def test_classes_without_lora_and_other_adapters_are_refused(tmp_path: Path) -> None:
    pipe = TINY_PIPELINES["PixArtSigmaPipeline"]()
    file = to_peft(slider(pipe), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="diffusers has no LoRA for this class"):
        from_lora(pipe, file, WOMAN)
    with pytest.raises(ValueError, match="no low-rank change"):
        to_peft(get_method("negative").fit(sd(), VIOLENCE), tmp_path / "y.safetensors")
    with pytest.raises(ValueError, match="was not made by respodiff"):
        to_peft(slider(sd()), file)


def test_configurations_of_a_folder_are_enough(tmp_path: Path) -> None:
    (pipe := sd()).save_pretrained(tmp_path / "model")
    file = to_peft(slider(pipe), tmp_path / "x.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = from_lora(skeleton(tmp_path / "model"), file, WOMAN)
    assert made.header.base_digest == config_digest(pipe.unet) and made.header.base_model == "model"
    assert made.check(pipe) == [] and apart(steered(pipe, made), steered(pipe, slider(pipe))) < 1e-5


def test_a_slider_trained_beside_a_lora_is_of_the_same_layers(tmp_path: Path) -> None:
    plain, pipe, made = sd(), sd(), slider(sd(), rank=4, alpha=2.0)
    pipe.load_lora_weights(tmp_path, weight_name=to_peft(made, tmp_path / "x.safetensors").name)
    assert layers(pipe.unet).keys() == layers(plain.unet).keys()
    both = steered(pipe, made)
    pipe.unload_lora_weights()
    assert apart(steered(pipe, made.scale(2.0)), both) < 1e-5
