"""Loads diffusers pipelines, and identifies models by digests. What is known of each class is in `respodiff.pipelines.registry`."""

from __future__ import annotations

import hashlib
import json
import re
from importlib.resources import files
from pathlib import Path
from textwrap import shorten
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline

from respodiff._bars import without_bars
from respodiff.pipelines.registry import backbone, spec_of
from respodiff.pipelines.schedulers import check_scheduler, use_scheduler

EMBEDDED_SAMPLING = (8, 3.0)
"""Steps and guidance scale of the embedded model."""


def embedded_dir(part: str) -> Path:
    """Folder of the shipped ``pipeline`` or ``judge``, or the file ``world.json``."""
    return Path(str(files("respodiff"))) / "embedded" / part


def load_pipeline(
    source: str | Path = "embedded",
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    scheduler: str = "",
    safety_checker: bool = True,
) -> Any:
    """A plain diffusers pipeline from ``"embedded"``, a local folder (never touches the network) or a hub id, with ``@REVISION`` for one commit.

    Args:
        scheduler: one of `respodiff.pipelines.schedulers.SCHEDULERS`; empty for the pipeline's own.
        safety_checker: whether one that the pipeline has stays on. It blacks images out, which cannot be measured then.

    Raises:
        ValueError: it cannot be had, is of a class that steering does not support, or cannot take the scheduler.
    """
    check_scheduler(scheduler)
    folder = embedded_dir("pipeline") if str(source) == "embedded" else Path(source).expanduser()
    local, given = folder.is_dir(), repr(str(source))
    name, _, revision = (str(folder), "", "") if local else str(source).partition("@")
    if folder.is_file():
        raise ValueError(
            f"model {given} is a single file; make a folder of it once: "
            f"StableDiffusionPipeline.from_single_file({given}).save_pretrained(DIR), and give that folder"
        )
    if not local and (folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1):
        raise ValueError(f"model folder {given} does not exist; give 'embedded', a folder with model_index.json, or a hub id OWNER/NAME")
    if local:
        check_folder(folder)
    try:  # low_cpu_mem_usage needs accelerate, which is not a dependency; said outright, diffusers does not warn
        with without_bars(diffusers, *[transformers] * local):  # those of a download stay
            pipe = DiffusionPipeline.from_pretrained(
                name, revision=revision or None, local_files_only=local, use_safetensors=True, low_cpu_mem_usage=False
            )
    except (OSError, ValueError, AttributeError, ImportError, KeyError) as error:  # the last three: a model_index.json of no known class
        reason = shorten((str(error).strip().splitlines() or [type(error).__name__])[0], 200, placeholder=" ...")
        absent = "" if local else ", which is no folder here,"
        raise ValueError(
            f"model {given}{absent} cannot be loaded: {reason} - give 'embedded', a folder with model_index.json, or a hub id (needs network)"
        ) from error
    spec_of(pipe)
    if scheduler:
        use_scheduler(pipe, scheduler)
    if not safety_checker and getattr(pipe, "safety_checker", None) is not None:
        pipe.register_modules(safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    if device == "cpu" and spec_of(pipe).model == "unet":
        # Same values, other strides: convolutions on the CPU are about 1.4 times as fast.
        backbone(pipe).to(memory_format=torch.channels_last)
    return pipe.to(device) if dtype == torch.float32 else pipe.to(device, dtype)


def check_folder(folder: Path) -> None:
    """ValueError for a diffusers folder that lacks a part, or has its weights as variants or pickles alone."""
    has = f"model folder {str(folder)!r} has"
    once = f"save it once: DiffusionPipeline.from_pretrained({str(folder)!r}, {{}}).save_pretrained(DIR), and give that folder"
    try:
        parts = json.loads((folder / "model_index.json").read_text(encoding="utf-8")).items()
    except FileNotFoundError:
        raise ValueError(f"{has} no model_index.json; give the folder that a pipeline was saved in") from None
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{has} a broken model_index.json ({error}); copy it again") from error
    for name in (k for k, v in parts if isinstance(v, list) and v[0] is not None):
        files = [file.name for file in (folder / name).glob("*")]
        weights = [file for file in files if re.fullmatch(r"((diffusion_)?pytorch_)?model.*\.(safetensors|bin)", file)]
        readable = [file for file in weights if file.endswith(".safetensors")]
        if not files:
            raise ValueError(f"{has} no {name!r}, which its model_index.json names; copy it again")
        if weights and not readable:
            raise ValueError(f"{has} {name!r} as a pickle ({weights[0]}); if you trust it, {once.format('use_safetensors=False')}")
        if readable and all(file.count(".") > 1 for file in readable):
            variant = min(file.split(".")[-2].partition("-")[0] for file in readable)
            raise ValueError(f"{has} {name!r} as the variant {variant!r} alone, which is not read; {once.format(f'variant={variant!r}')}")


def config_digest(unet: Any) -> str:
    """Digest of the UNet's configuration: what must agree for a module to fit."""
    config = {k: v for k, v in dict(unet.config).items() if not k.startswith("_")}
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:16]


def weights_digest(model: Any) -> str:
    """Digest of a model's weights, from about 64 values of every parameter in float16; a LoRA beside the model does not count.

    Empty for bfloat16, which rounds beyond recognition, and for models that are offloaded to the meta device.
    """
    if model.device.type == "meta" or model.dtype == torch.bfloat16:
        return ""
    digest = hashlib.sha256()
    for name, p in model.named_parameters():
        if ".lora_" in name:
            continue
        flat = p.detach().flatten()
        name = name.removeprefix("_orig_mod.").replace(".base_layer.", ".")
        digest.update(name.encode() + flat[:: max(1, len(flat) // 64)].to("cpu", torch.float16).numpy().tobytes())
    return digest.hexdigest()[:16]


def sampling_settings(pipe: Any, steps: int | None = None, guidance: float | None = None) -> tuple[int, float]:
    """(steps, guidance) as given, else the model's own, which for most models are those of the pipeline's class."""
    own = EMBEDDED_SAMPLING if model_name(pipe) == "embedded" else (spec_of(pipe).steps, spec_of(pipe).guidance)
    return own[0] if steps is None else steps, own[1] if guidance is None else guidance


def model_name(pipe: Any) -> str:
    """Where the pipeline was loaded from: "embedded", ``ID@COMMIT`` of the hub, or the last part of a folder's path."""
    source = str(getattr(pipe, "name_or_path", "") or pipe.config.get("_name_or_path", ""))
    if Path(source) == embedded_dir("pipeline"):
        return "embedded"
    if not source or Path(source).is_absolute() or Path(source).is_dir():
        return Path(source).resolve().name if source else ""
    commit = re.search(r"snapshots[/\\]([0-9a-f]{40})\b", str(backbone(pipe).config.get("_name_or_path", "")))
    return f"{source}@{commit[1]}" if commit else source
