"""Models in 4 and 8 bits: they draw nearly as in float32, train, and say what they were."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.drawing import apart, draw, module
from tests.tiny_models import SIZE, flux, sd
from torch import nn

from method_tools import VIOLENCE, WOMAN
from respodiff import TrainConfig, fit, steer
from respodiff.methods.lora import layers, relative_norm, start
from respodiff.methods.registry import get_method
from respodiff.methods.weight_edits import WeightEditAdapter
from respodiff.pipelines.identity import config_digest, precision, weights_digest
from respodiff.pipelines.loading import load_pipeline
from respodiff.pipelines.quantization import weight_of
from respodiff.pipelines.registry import backbone
from respodiff.steering.adapter import header_of
from respodiff.steering.fuse import save_unet

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*MatMul8bitLt", "ignore:_check_is_size", "ignore:.*reaches a projection"),
    pytest.mark.skipif(not find_spec("bitsandbytes"), reason="bitsandbytes is not installed: pip install 'respodiff[quant]'"),
]

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"))]
ERROR = {"nf4": (0.03, 0.3), "int8": (1e-4, 0.03)}
"""Least and most relative difference of a weight, and of a latent."""
FEW: dict[str, Any] = {
    "height": SIZE,
    "width": SIZE,
    "iterations": 2,
    "batch": 1,
    "steps": 2,
    "rollouts": 1,
    "rollout_batch": 1,
    "refresh_every": 1,
}


@pytest.fixture(params=[sd, flux], ids=["unet", "transformer"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    request.param().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_a_quantised_model_draws_and_trains(quantize: str, device: str, folder: Path) -> None:
    plain, pipe = (load_pipeline(folder, device=device, quantize=kind) for kind in ("", quantize))
    model, (least, most) = backbone(pipe), ERROR[quantize]
    assert {type(m).__name__ for m in model.modules() if isinstance(m, nn.Linear)} == {
        "Linear4bit" if quantize == "nf4" else "Linear8bitLt"
    }
    if t5 := getattr(pipe, "text_encoder_2", None):
        found = {name.rpartition(".")[2]: type(m).__name__ for name, m in t5.named_modules() if isinstance(m, nn.Linear)}
        assert found["q"] != "Linear" == found["wo"], "which T5 keeps in float32"
    for name, layer in layers(backbone(plain)).items():
        assert least < apart_by_norm(weight_of(layers(model)[name]), layer.weight) < most
    before = draw(pipe)
    assert torch.isfinite(before).all() and least / 10 < apart_by_norm(before, draw(plain)) < most
    assert precision(model).startswith(quantize) and weights_digest(model) == ""
    assert config_digest(model) == config_digest(backbone(plain))
    for made in (fit(pipe, WOMAN, TrainConfig(**FEW)), get_method("slider").fit(pipe, WOMAN, slider())):
        assert made.header.base_precision.startswith(quantize)
        with steer(pipe, made):
            assert apart(draw(pipe), before) > 1e-6
    assert torch.equal(draw(pipe), before), "training leaves it as it was"


def slider() -> Any:
    return get_method("slider").settings(lr=0.05, **FEW)


def apart_by_norm(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_memory_and_gradients_of_a_layer(quantize: str, folder: Path) -> None:
    plain, pipe = (load_pipeline(folder, quantize=kind) for kind in ("", quantize))
    name, float_layer = next(iter(layers(backbone(plain)).items()))
    layer, x = layers(backbone(pipe))[name], torch.randn(2, 3, float_layer.in_features)
    assert layer.weight.nbytes == float_layer.weight.nbytes // {"nf4": 8, "int8": 4}[quantize]
    with torch.no_grad():
        first = layer(x)
    (g,) = torch.autograd.grad(layer(y := x.clone().requires_grad_()).square().sum(), y)
    with torch.no_grad():
        assert torch.equal(layer(x), first) and apart_by_norm(g, 2 * first @ weight_of(layer)) < 0.01


def test_relative_norm_is_that_of_the_weights(folder: Path) -> None:
    plain, pipe = (load_pipeline(folder, quantize=kind) for kind in ("", "nf4"))
    values = {k: v + 0.1 for k, v in start(backbone(plain), 2, "all", 0).items()}
    found, wanted = (relative_norm(backbone(p), values, 1.0) for p in (pipe, plain))
    assert found == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("name", ["esd-x", "uce"])
def test_changes_of_weights_are_refused(name: str, tmp_path: Path) -> None:
    sd().save_pretrained(tmp_path)
    pipe = load_pipeline(tmp_path, quantize="int8")
    with pytest.raises(ValueError, match="the model is quantised"):
        get_method(name).fit(pipe, VIOLENCE)
    weight = backbone(pipe).mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight
    made = WeightEditAdapter(
        header_of(pipe, name, VIOLENCE, get_method(name).settings()),
        {"mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight": torch.ones(weight.shape)},
    )
    with pytest.raises(ValueError, match="the model is quantised"), steer(pipe, made):
        draw(pipe)


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_a_quantised_unet_is_not_written(quantize: str, tmp_path: Path) -> None:
    sd().save_pretrained(tmp_path / "model")
    pipe = load_pipeline(tmp_path / "model", quantize=quantize)
    with pytest.raises(ValueError, match="the UNet is quantised"):
        save_unet(pipe, [module(pipe).channels()], tmp_path / "fused")
    assert not (tmp_path / "fused").exists()
