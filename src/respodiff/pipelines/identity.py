"""Tells models apart: digests of configurations, weights, LoRAs and whole pipelines, and what a model computes in."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch


def config_digest(unet: Any) -> str:
    """Digest of the UNet's configuration: what must agree for a module to fit."""
    config = {k: v for k, v in dict(unet.config).items() if not k.startswith("_") and k != "quantization_config"}
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:16]


def weights_digest(model: Any) -> str:
    """Digest of a model's weights, from about 64 values of every parameter in float16; a LoRA beside the model does not count.

    Empty for bfloat16 and quantised weights, which round beyond recognition, and for models that are offloaded to the meta device.
    """
    if model.device.type == "meta" or precision(model) not in ("float32", "float16"):
        return ""
    digest = hashlib.sha256()
    for name, p in model.named_parameters():
        if ".lora_" in name:
            continue
        flat = p.detach().flatten()
        name = name.removeprefix("_orig_mod.").replace(".base_layer.", ".")
        digest.update(name.encode() + flat[:: max(1, len(flat) // 64)].to("cpu", torch.float16).numpy().tobytes())
    return digest.hexdigest()[:16]


def pipeline_digest(pipe: Any) -> str:
    """Digest of the parameters of all parts of a pipeline, about 64 values of each, in any dtype, and of its scheduler.

    It tells two pipelines of one dtype apart; `weights_digest` finds the same weights again in another dtype. LoRAs count, their scales not;
    nor do buffers, tokenizers and configurations. Of parts on the meta device, where they were loaded from counts instead.
    """
    digest = hashlib.sha256()
    for name, part in sorted(pipe.components.items()):
        if isinstance(part, torch.nn.Module):
            for key, p in part.named_parameters():
                flat = p.detach().flatten()
                few = flat[:: max(1, len(flat) // 64)]
                values = str(pipe.name_or_path).encode() if p.device.type == "meta" else _values(few)
                digest.update(f"{name}.{key.removeprefix('_orig_mod.')}".encode() + values)
        elif name == "scheduler":
            own = {k: v for k, v in dict(part.config).items() if not k.startswith("_")} | {"class": type(part).__name__}
            digest.update(json.dumps(own, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def _values(few: torch.Tensor) -> bytes:
    """Numbers as float32, which is the same for a part that was in another float type for a while; the bytes of quantised ones."""
    few = few.to(torch.float32) if few.is_floating_point() else few.contiguous().view(torch.uint8)
    return few.cpu().numpy().tobytes()


def precision(model: Any) -> str:
    """What a model computes in: float32, bfloat16, float16, or with quantised linear layers such as "nf4, bfloat16"."""
    dtype = next((p.dtype for p in model.parameters() if p.dtype in (torch.bfloat16, torch.float16)), torch.float32)
    name, quantized = str(dtype).removeprefix("torch."), model.config.get("quantization_config")
    if quantized is None:
        return name
    kind = quantized.quantization_method() if hasattr(quantized, "quantization_method") else getattr(quantized, "quant_method", "quantised")
    return f"{ {'llm_int8': 'int8'}.get(kind, kind) }, {name}".strip()


def lora_digest(model: Any) -> str:
    """Digest of the LoRAs beside a model's weights, their scales included; empty without one."""
    digest, found = hashlib.sha256(), False
    for name, module in model.named_modules():
        if scales := getattr(module, "scaling", None) if hasattr(module, "lora_A") else None:
            active, found = {key: scales[key] for key in sorted(module.active_adapters) if key in scales}, True
            digest.update(f"{name} {active}".encode())
    for name, p in model.named_parameters():
        if ".lora_" in name:
            digest.update(name.encode() + p.detach().to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:16] if found else ""
