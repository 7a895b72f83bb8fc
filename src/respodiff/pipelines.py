"""Diffusers pipelines: load one, and what steering must know of it (which rows are conditional, how a prompt is encoded).

The table `PASSES` is the one place where a pipeline class is described; a pipeline that is not in it is refused, never guessed.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from torch import Tensor

log = logging.getLogger("respodiff")

PASSES: dict[str, tuple[str, ...]] = {"StableDiffusionPipeline": ("uncond", "cond")}
"""Row blocks of one UNet call with guidance on, in order. With guidance off there is the conditional block alone."""


def embedded_dir(part: str) -> Path:
    """Folder of the shipped ``pipeline`` or ``judge``, or the file ``world.json``."""
    return Path(str(files("respodiff.embedded"))) / part


def load_pipeline(source: str | Path = "embedded", *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """A plain diffusers pipeline from ``"embedded"``, a local folder (never touches the network) or a hub id.

    Raises ValueError with one line when it cannot be had or is of a class that steering does not support.
    """
    folder = embedded_dir("pipeline") if str(source) == "embedded" else Path(source).expanduser()
    local = folder.is_dir()
    if not local and (folder.is_absolute() or str(source).startswith((".", "~")) or str(source).count("/") > 1):
        raise ValueError(f"model folder {str(source)!r} does not exist; give 'embedded', a folder with model_index.json, or a hub id")
    name = str(folder) if local else str(source)
    try:
        # low_cpu_mem_usage needs accelerate, which is not a dependency; said outright, diffusers does not warn.
        pipe = DiffusionPipeline.from_pretrained(name, local_files_only=local, use_safetensors=True, low_cpu_mem_usage=False)
    except (OSError, ValueError, AttributeError, ImportError, KeyError) as error:  # the last three: a model_index.json of no known class
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(
            f"model {str(source)!r} cannot be loaded: {reason} - give 'embedded', a folder with model_index.json, or a hub id (needs network)"
        ) from error
    row_blocks(pipe)
    pipe.set_progress_bar_config(disable=True)
    if device == "cpu":
        # Same values, other strides: convolutions on the CPU are about 1.4 times as fast.
        pipe.unet.to(memory_format=torch.channels_last)
    return pipe.to(device) if dtype == torch.float32 else pipe.to(device, dtype)


def row_blocks(pipe: Any) -> tuple[str, ...]:
    """Row blocks of the pipeline's UNet calls; ValueError for a class that is not in the table."""
    for kind in type(pipe).__mro__:
        if kind.__name__ in PASSES:
            return PASSES[kind.__name__]
    raise ValueError(
        f"pipeline {type(pipe).__name__} is not supported; supported: {', '.join(PASSES)}; "
        "to add one, put the order of its row blocks into respodiff.pipelines.PASSES"
    )


def conditional_rows(pipe: Any, rows: int) -> slice:
    """Which rows of a UNet call of ``rows`` rows are conditional, as the pipeline itself says during the call."""
    passes = row_blocks(pipe) if _guided(pipe) else ("cond",)
    if rows % len(passes):
        raise ValueError(
            f"the UNet was called with {rows} rows, which is not a multiple of the {len(passes)} passes of {type(pipe).__name__}"
        )
    n = rows // len(passes)
    start = passes.index("cond") * n
    return slice(start, start + n)


def _guided(pipe: Any) -> bool:
    try:
        return bool(pipe.do_classifier_free_guidance)
    except AttributeError as error:
        raise ValueError(
            "the UNet was called outside of its pipeline, so which rows are conditional is unknown; call the pipeline"
        ) from error


@torch.no_grad()
def encode_prompts(pipe: Any, prompts: Sequence[str]) -> Tensor:
    """Text embeddings (N, T, D) of the prompts as the pipeline itself would make them; refuses what the tokenizer would cut off."""
    check_length(pipe, prompts)
    unique = list(dict.fromkeys(prompts))
    ids = pipe.tokenizer(unique, padding="max_length", max_length=pipe.tokenizer.model_max_length, return_tensors="pt").input_ids
    found = pipe.text_encoder(ids.to(pipe.text_encoder.device))[0]
    embedded: Tensor = found[[unique.index(p) for p in prompts]]
    return embedded


def check_length(pipe: Any, prompts: Sequence[str]) -> None:
    """ValueError if a prompt has more tokens than the tokenizer takes: its end would be dropped in silence."""
    limit = pipe.tokenizer.model_max_length
    for prompt in dict.fromkeys(prompts):
        n = len(pipe.tokenizer(prompt).input_ids)
        if n > limit:
            raise ValueError(f"prompt {prompt[:60]!r}... has {n} tokens; this model takes {limit}, start and end included: shorten it")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def config_digest(unet: Any) -> str:
    """Digest of the UNet's configuration: what must agree for a module to fit."""
    config = {k: v for k, v in dict(unet.config).items() if not k.startswith("_")}
    return _digest(json.dumps(config, sort_keys=True, default=str).encode())


def weights_digest(unet: Any) -> str:
    """Digest of the UNet's weights, from about 64 values spread over every parameter: cheap, and enough to tell two checkpoints of one
    architecture apart. Taken in float16, so that it is the same for a float16 copy; no sum, which would depend on threads and device. Empty where it cannot be told (bfloat16, or offloaded to the meta device)."""
    if unet.device.type == "meta" or unet.dtype == torch.bfloat16:
        return ""  # offloaded, or rounded beyond recognition
    digest = hashlib.sha256()
    for name, p in unet.named_parameters():
        flat = p.detach().flatten()
        digest.update(name.encode() + flat[:: max(1, len(flat) // 64)].to("cpu", torch.float16).numpy().tobytes())
    return digest.hexdigest()[:16]


def model_name(pipe: Any) -> str:
    """What the pipeline was loaded from: "embedded", a hub id, or the last part of a folder's name (no machine paths in files)."""
    source = str(getattr(pipe, "name_or_path", "") or pipe.config.get("_name_or_path", ""))
    if not source:
        return ""
    if Path(source) == embedded_dir("pipeline"):
        return "embedded"
    return Path(source).resolve().name if Path(source).is_absolute() or Path(source).is_dir() else source
