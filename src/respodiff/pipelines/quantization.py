"""Quantises the linear layers of a model by bitsandbytes: on a GPU diffusers does it while it loads, on the CPU it is done here afterwards."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from respodiff.pipelines.registry import backbone, spec_of


def check_quantization(quantize: str, device: str, more: Mapping[str, Any]) -> None:
    """ValueError where bitsandbytes cannot run."""
    if not find_spec("bitsandbytes"):
        raise ValueError(f"quantize is {quantize!r}, which needs bitsandbytes: pip install 'respodiff[quant]'")
    if device != "cpu" and not device.startswith("cuda"):
        raise ValueError(f"quantize is {quantize!r}, which needs a CUDA GPU or the CPU, and the device is {device}; leave it out")
    if device == "cpu" and more.get("device_map"):
        raise ValueError(f"quantize is {quantize!r} on the CPU, beside a device_map; give the device, or leave quantize out")


def _parts(model: str, index: Mapping[str, Any]) -> list[str]:
    """The steered model, and a T5, which is the larger one of some."""
    return [model, *(name for name, value in index.items() if isinstance(value, list) and value[-1] == "T5EncoderModel")]


def quantization_config(quantize: str, dtype: torch.dtype, model: str, index: Mapping[str, Any]) -> Any:
    """What diffusers is told: linear layers in 4 or 8 bits, products in ``dtype``."""
    from diffusers.quantizers import PipelineQuantizationConfig

    return PipelineQuantizationConfig(*_bitsandbytes(quantize, dtype), _parts(model, index))


def _bitsandbytes(quantize: str, dtype: torch.dtype) -> tuple[str, dict[str, Any]]:
    """Name and arguments of diffusers' configuration of bitsandbytes."""
    if quantize == "int8":
        return "bitsandbytes_8bit", {"load_in_8bit": True}
    return "bitsandbytes_4bit", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}


def quantize_pipeline(pipe: Any, quantize: str, dtype: torch.dtype, index: Mapping[str, Any]) -> None:
    """The same for a loaded pipeline on the CPU, where diffusers refuses it; its configuration says so."""
    import diffusers

    for part in map(partial(getattr, pipe), _parts(spec_of(pipe).model, index)):
        quantize_on_cpu(part, quantize, dtype)
    config = diffusers.BitsAndBytesConfig(**_bitsandbytes(quantize, dtype)[1])
    backbone(pipe).register_to_config(quantization_config=config)


def quantize_on_cpu(model: nn.Module, kind: str, dtype: torch.dtype) -> None:
    """Puts a layer of bitsandbytes in the place of every linear layer, one after the other; products are in ``dtype``.

    ``kind`` is ``nf4`` (blocks of 64 weights with a scale each) or ``int8`` (rows). Layers that the model's class keeps in float32 stay.
    """
    import bitsandbytes as bnb

    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # it tells of casts at every call
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, layer in [*model.named_modules()]:
        if type(layer) is not nn.Linear or kept & {*name.split(".")}:
            continue
        new: Any
        weight, size = layer.weight.detach(), (layer.in_features, layer.out_features, layer.bias is not None)
        with torch.device("meta"):
            if kind == "int8":
                new = bnb.nn.Linear8bitLt(*size, has_fp16_weights=False)
            else:
                new = bnb.nn.Linear4bit(*size, compute_dtype=dtype, quant_type="nf4", compress_statistics=False)
        if kind == "int8":
            new.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        else:
            new.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=False)
            new.support_avx512bf16_for_cpu = False  # else calls without gradients pack the weights so that later ones have none
        new.bias = layer.bias
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, new.to("cpu").train(layer.training))


def weight_of(layer: nn.Linear) -> Tensor:
    """W (out, in) of a linear layer; of a quantised one what it multiplies by."""
    if layer.weight.is_floating_point():
        return layer.weight
    dtype = torch.float32 if layer.bias is None else layer.bias.dtype  # bitsandbytes would cast the bias itself
    with torch.no_grad():
        eye = torch.eye(layer.in_features, device=layer.weight.device, dtype=dtype)
        found: Tensor = (layer(eye) - layer(torch.zeros_like(eye[:1]))).T
    return found


def quantised(model: nn.Module) -> str:
    """What is said of a model with quantised weights by what changes weights; empty for others."""
    if all(p.is_floating_point() for p in model.parameters()):
        return ""
    return "the model is quantised, and a change of its weights would be lost in 4 or 8 bits; load it without --quantize (quantize='')"
