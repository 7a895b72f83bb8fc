"""Writes low-rank changes as a LoRA file of diffusers and peft, and reads LoRA files of other programs, by diffusers' own conversion of them.

A file holds ``unet.LAYER.lora_A.weight`` (rank, in) and ``unet.LAYER.lora_B.weight`` (out, rank), or ``transformer.LAYER...``. What
B A x is multiplied by is in B, so that every program applies it alike: alpha is the rank.
"""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import convert_unet_state_dict_to_peft
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized
from torch import Tensor, nn

from respodiff.concepts.concept import Concept
from respodiff.methods.lora import LowRankAdapter, fits
from respodiff.pipelines.loading import first_line
from respodiff.pipelines.registry import backbone, spec_of
from respodiff.steering.adapter import Adapter, header_of
from respodiff.steering.convert import write_bytes

METADATA = "lora_adapter_metadata"
"""Where diffusers keeps the arguments of peft's LoraConfig in a file."""
LOCAL = {"use_safetensors": True, "local_files_only": True}
UNET = ("down_blocks.", "mid_block.", "up_blocks.")
"""How layers of a UNet are named, and no transformer's."""


@dataclass(frozen=True)
class Converted:
    """What a header says of a file of another program in the place of settings."""

    converted: Mapping[str, str]


def to_peft(adapter: Adapter, path: str | Path, *, force: bool = False) -> Path:
    """Writes low-rank changes, at their scale, as a file for ``pipe.load_lora_weights``.

    ValueError for an adapter of other tensors, and unless ``force`` for a file that holds anything else.
    """
    if not isinstance(adapter, LowRankAdapter):
        raise ValueError(f"{adapter.method} {adapter.name!r} is no low-rank change of layers; give an adapter of method slider or fdf")
    names = sorted({key.rpartition(".")[0] for key in adapter.tensors})
    prefix = "unet" if any(name.startswith(UNET) for name in names) else "transformer"
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors[f"{prefix}.{name}.lora_A.weight"] = adapter.tensors[f"{name}.a"].contiguous()
        tensors[f"{prefix}.{name}.lora_B.weight"] = (adapter.factor * adapter.tensors[f"{name}.b"]).contiguous()
    ranks = {name: len(adapter.tensors[f"{name}.a"]) for name in names}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != usual}
    about = {"r": usual, "lora_alpha": usual, "rank_pattern": others, "alpha_pattern": others, "target_modules": names}
    metadata = {"format": "pt", METADATA: json.dumps({f"{prefix}.{key}": value for key, value in about.items()}, sort_keys=True)}
    write_bytes(path, serialized(tensors, metadata=metadata), force)
    return Path(path)


def is_lora(path: str | Path) -> bool:
    """Whether a file is safetensors with the names of a LoRA."""
    try:
        with safe_open(path, "np") as file:
            return any("lora" in key for key in file.keys())  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError):
        return False


def from_lora(pipe: Any, path: str | Path, concept: Concept) -> LowRankAdapter:
    """The slider that a LoRA file of another program is on a pipeline's model, whose weights are not read: alpha / rank is in its B.

    Args:
        path: a ``.safetensors`` file that ``pipe.load_lora_weights`` reads: of peft, older diffusers, kohya's scripts and others.
        concept: what the LoRA changes; the file does not say.

    Raises:
        ValueError: it changes a text encoder, holds more than A and B of layers, or is for another model.
    """
    path, spec, model = Path(path), spec_of(pipe), backbone(pipe)
    name = f"LoRA file {str(path)!r}"
    if not find_spec("peft"):
        raise ValueError(f"{name} needs peft to be read: pip install 'respodiff[lora]'")
    if not hasattr(type(pipe), "load_lora_weights"):
        raise ValueError(f"{name} cannot be read for {type(pipe).__name__}: diffusers has no LoRA for this class")
    with safe_open(path, "np") as file:
        keys = list(file.keys())
    if texts := [key for key in keys if re.match(r"lora_te\d*_|text_encoder", key)]:
        raise ValueError(
            f"{name} changes a text encoder ({texts[0]}), which a slider cannot: one text would be encoded for all images of a call"
        )
    if others := [key for key in keys if "dora" in key or not re.search("lora|alpha", key)]:
        raise ValueError(f"{name} holds {others[0]!r}, which is no part of a low-rank change; give a LoRA without it")
    with torch.device("meta"):
        shape = type(model).from_config({k: v for k, v in model.config.items() if k != "quantization_config"})
    given: dict[str, Tensor] = {}
    load, layers = shape.load_lora_adapter, dict(shape.named_modules())

    def record(state: dict[str, Tensor], **more: Any) -> None:
        own = {key.removeprefix(f"{spec.model}."): value for key, value in state.items() if key.startswith(f"{spec.model}.")}
        given.update(own if any("lora_A" in key for key in own) else convert_unet_state_dict_to_peft(own))
        if given and not _odd(given, layers):
            load(state, **{**more, "_pipeline": None})

    shape.load_lora_adapter = record
    shell = object.__new__(type(pipe))  # the loader asks a pipeline for its components alone
    vars(shell).update({spec.model: shape, "text_encoder": None, "text_encoder_2": None, "_internal_dict": {}})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # peft's, of an alpha that it would leave out
            shell.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="a", **LOCAL)
    except Exception as error:  # a file of another layout raises from many families
        raise ValueError(f"{name} cannot be read for this model: {first_line(error)} - give a LoRA for {type(pipe).__name__}") from error
    if not given or (odd := _odd(given, layers)):
        what = f"holds {odd!r}, which no layer of this model takes" if given else f"changes no layer of the {spec.model}"
        raise ValueError(f"{name} {what}; give a LoRA of layers alone for {type(pipe).__name__}")
    scales = {key: layer.scaling["a"] for key, layer in shape.named_modules() if "a" in getattr(layer, "lora_A", {})}
    tensors = {f"{key}.a": given[f"{key}.lora_A.weight"].float() for key in scales}
    tensors |= {f"{key}.b": scale * given[f"{key}.lora_B.weight"].float() for key, scale in scales.items()}
    about = {"base_weights": "", "base_precision": ""}  # the file does not say
    return LowRankAdapter(header_of(pipe, "slider", concept, Converted({"file": path.name}), **about), tensors)


def _odd(given: Mapping[str, Tensor], layers: Mapping[str, nn.Module]) -> str:
    """The first tensor that is no A or B of a layer of its size; empty if there is none."""
    for key in sorted(given):
        name = key.rpartition(".lora_")[0]
        a, b = (given.get(f"{name}.lora_{part}.weight") for part in "AB")
        if key[len(name) :] not in (".lora_A.weight", ".lora_B.weight") or a is None or b is None or not fits(layers.get(name), a, b):
            return key
    return ""
