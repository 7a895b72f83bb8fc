"""Reads module files as docs/module-format.md describes them, without the library. Never a pickle."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

FORMAT = "respodiff-1"
SITE = "mid_block"
FORMS = ("constant", "channel")
TIMESTEPS = (0, 1000)
MOST_BYTES = 2**28
"""Size of a file, checked before its tensors are read."""

DEFAULTS: dict[str, Any] = {"attribute": "", "kind": "fairness", "negative": "", "method": "respodiff", "train": {}, "timesteps": [0, 1000]}
DIGESTED = ("concept", "target", "neutral", "form", *DEFAULTS)
"""Fields that the digest covers, beside the scale."""
OTHERS = ("format", "scale", "digest", "site", "base_model", "base_digest", "base_weights", "base_precision", "resolution", "h_norm")
KNOWN = {*DIGESTED, *OTHERS, "verdict", "library"}


@dataclass(frozen=True, eq=False)
class Module:
    """RAM and SAM of one concept.

    Attributes:
        ram, sam: float32 tensors (C, H, W) or (C, 1, 1) on the CPU, at scale 1.
        scale: factor on both.
        timesteps: (low, high): the module acts at timesteps from low to below high, 999 being the noisiest.
        base_model: name of the model that it was trained on; empty if unknown.
    """

    name: str
    ram: Tensor = field(repr=False)
    sam: Tensor = field(repr=False)
    scale: float = 1.0
    timesteps: tuple[int, int] = TIMESTEPS
    base_model: str = ""

    def delta(self, factor: float) -> Tensor:
        """What is added to h at ``factor`` times the scale, (C, H, W) or (C, 1, 1)."""
        weight = self.scale * factor
        return self.ram * weight + self.sam * weight


def read_module(path: str | Path) -> Module:
    """The module that a file holds. ValueError, one line, for a file that is none, is damaged, or cannot act in ComfyUI."""
    path = Path(path)
    name = f"module file {path.name!r}"
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise ValueError(f"{name} has {size:,} bytes; allowed: up to {MOST_BYTES:,}; choose a module file")
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("respodiff")
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{name} cannot be read ({error}); copy or train it again") from error
    if text is None:
        raise ValueError(f"{name} has no respodiff header; train a module with respodiff, or convert one with: respodiff convert")
    try:
        header = _header(text)
        _check_tensors(header["form"], tensors)
        if (own := _digest(header, tensors)) != header["digest"]:
            raise ValueError(f"digest is {header['digest']}, the content has {own}; copy the file again")
        low, high = header["timesteps"]
        if not all(type(t) is int for t in (low, high)) or not TIMESTEPS[0] <= low < high <= TIMESTEPS[1]:
            raise ValueError(f"timesteps is {header['timesteps']}; allowed: [low, high] with 0 <= low < high <= 1000")
        if not math.isfinite(scale := float(header["scale"])):
            raise ValueError(f"scale is {scale}; allowed: any finite number")
    except KeyError as error:
        raise ValueError(f"{name} has a header without {error}; copy or train it again") from error
    except (TypeError, RecursionError) as error:
        raise ValueError(f"{name} has a broken header ({error}); copy or train it again") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return Module(str(header["concept"]), tensors["ram.r"], tensors["sam.r"], scale, (low, high), str(header.get("base_model", "")))


def _header(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise TypeError("it is no object")
    if found.get("format") != FORMAT:
        raise ValueError(f"format is {found.get('format')!r}; allowed: {FORMAT!r}; update these nodes")
    if found.pop("checksum", None) != (own := _sha(json.dumps(found, sort_keys=True).encode())):
        raise ValueError(f"the header is damaged: its content has checksum {own}; copy the file again")
    if unknown := found.keys() - KNOWN:
        logging.warning(f"respodiff: header keys {sorted(unknown)} are unknown to these nodes and ignored; update them")
    header: dict[str, Any] = {**DEFAULTS, "site": SITE, "scale": 1.0, "form": "", **found}
    if header["form"] not in FORMS:
        raise ValueError(f"form is {header['form']!r}; allowed in ComfyUI: {', '.join(FORMS)}; steer it with respodiff itself")
    if header["site"] != SITE:
        raise ValueError(f"site is {header['site']!r}; allowed in ComfyUI: {SITE!r}; steer it with respodiff itself")
    return header


def _check_tensors(form: str, tensors: dict[str, Tensor]) -> None:
    found = {k: (tuple(t.shape), t.dtype) for k, t in tensors.items()}
    shapes = {shape for shape, _ in found.values()}
    if found.keys() != {"ram.r", "sam.r"} or {kind for _, kind in found.values()} != {torch.float32} or len(shapes) != 1:
        raise ValueError(f"tensors are {found}; allowed: float32 tensors ram.r and sam.r of equal shapes")
    shape = shapes.pop()
    if len(shape) != 3 or 0 in shape or (form == "channel" and shape[1:] != (1, 1)):
        raise ValueError(f"ram.r of form {form!r} has shape {shape}; allowed: (C, H, W), for channel (C, 1, 1)")
    if not all(torch.isfinite(t).all() for t in tensors.values()):
        raise ValueError("the tensors hold NaN or infinite values; train again with a smaller learning rate")


def _digest(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    about = {**{k: header[k] for k in DIGESTED}, "scale": float(header["scale"])}
    lines = [json.dumps(about, sort_keys=True)]
    lines += [f"{k} {_sha(str(tuple(t.shape)).encode() + t.numpy().astype('<f4').tobytes())}" for k, t in sorted(tensors.items())]
    return _sha("\n".join(lines).encode())


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
