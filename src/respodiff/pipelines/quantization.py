"""Quantises the linear layers of a model that is on the CPU by bitsandbytes; on a GPU diffusers does it while it loads."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn


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
