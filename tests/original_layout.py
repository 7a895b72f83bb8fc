"""Writes a Stable Diffusion pipeline as one file in the layout of the original code, which A1111 and ComfyUI read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
VAE_PART = {
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "conv_norm_out": "norm_out",
}


def save(pipe: Any, file: Path) -> Path:
    """The file, with the tensors of UNet, VAE and text encoder."""
    tensors = {f"model.diffusion_model.{new}": pipe.unet.get_parameter(old) for old, new in _names(pipe.unet, _unet_places(pipe.unet))}
    tensors |= {f"first_stage_model.{new}": pipe.vae.get_parameter(old) for old, new in _names(pipe.vae, _vae_places(pipe.vae))}
    for name, value in tensors.items():
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name):  # convolutions of one pixel there
            tensors[name] = value[..., None, None]
    for name, value in pipe.text_encoder.state_dict().items():
        tensors[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, file)
    return file


def _names(model: Any, places: dict[str, str]) -> Iterator[tuple[str, str]]:
    for name, _ in model.named_parameters():
        start = max((old for old in places if name.startswith(old + ".")), key=len)
        rest = name.removeprefix(start)
        own = UNET_RESNET if "resnets" in start else {}
        parts = own if hasattr(model, "mid_block") else VAE_PART
        for old, new in parts.items():
            rest = re.sub(rf"\.{re.escape(old)}\.", f".{new}.", rest)
        yield name, places[start] + rest


def _unet_places(unet: Any) -> dict[str, str]:
    """Start of a name -> start of its name in the original layout."""
    n = unet.config.layers_per_block
    out = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0"}
    out |= {"conv_norm_out": "out.0", "conv_out": "out.2", "mid_block.attentions.0": "middle_block.1"}
    out |= {"mid_block.resnets.0": "middle_block.0", "mid_block.resnets.1": "middle_block.2"}
    for i in range(len(unet.down_blocks)):
        for j in range(n + 1):
            at = 1 + i * (n + 1) + j
            out |= {f"down_blocks.{i}.resnets.{j}": f"input_blocks.{at}.0", f"down_blocks.{i}.attentions.{j}": f"input_blocks.{at}.1"}
            out |= {f"up_blocks.{i}.resnets.{j}": f"output_blocks.{at - 1}.0", f"up_blocks.{i}.attentions.{j}": f"output_blocks.{at - 1}.1"}
        out[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{(i + 1) * (n + 1)}.0.op"
        behind = 2 if hasattr(unet.up_blocks[i], "attentions") else 1
        out[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{i * (n + 1) + n}.{behind}.conv"
    return out


def _vae_places(vae: Any) -> dict[str, str]:
    out, last = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}, len(vae.config.block_out_channels) - 1
    for side, blocks in (("encoder", "down"), ("decoder", "up")):
        out |= {f"{side}.{name}": f"{side}.{name}" for name in ("conv_in", "conv_out")} | {f"{side}.conv_norm_out": f"{side}.norm_out"}
        out |= {f"{side}.mid_block.resnets.{j}": f"{side}.mid.block_{j + 1}" for j in (0, 1)}
        out[f"{side}.mid_block.attentions.0"] = f"{side}.mid.attn_1"
        for i in range(last + 1):
            there = f"{side}.{blocks}.{i if blocks == 'down' else last - i}"
            out |= {f"{side}.{blocks}_blocks.{i}.resnets.{j}": f"{there}.block.{j}" for j in range(3)}
            out[f"{side}.{blocks}_blocks.{i}.{blocks}samplers.0.conv"] = f"{there}.{blocks}sample.conv"
    return out
