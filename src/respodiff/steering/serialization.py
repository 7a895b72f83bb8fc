"""Files of ours: safetensors with a JSON header that says what the tensors steer, what they were trained on and how. Never a pickle."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized
from torch import Tensor

from respodiff.concepts.concept import Concept

FORMAT = "respodiff-1"
HEADER_KEY = "respodiff"


@dataclass(frozen=True)
class Header:
    """What a module file says of itself. ``base_digest`` is that of the UNet's config, ``base_weights`` of its weights; ``method`` is the name
    in `respodiff.methods.registry` that made it. ``kind`` is ``fairness`` (drawn by a policy), ``safety`` or ``attribute`` (added to every image)."""

    concept: str
    target: str
    neutral: str
    negative: str = ""
    kind: str = "fairness"
    attribute: str = ""
    base_model: str = ""
    base_digest: str = ""
    base_weights: str = ""
    site: str = "mid_block"
    resolution: tuple[int, int] = (0, 0)
    train: Mapping[str, Any] = field(default_factory=dict)
    library: str = ""
    method: str = "respodiff"
    format: str = FORMAT

    @classmethod
    def of(cls, concept: Concept, **more: Any) -> Header:
        """The header of a concept's module."""
        names = {"target", "neutral", "negative", "kind", "attribute"}
        return cls(concept.name, **{name: getattr(concept, name) for name in names}, **more)


def tensor_digest(*tensors: Tensor) -> str:
    """First 16 hex digits of the sha256 of shapes and float32 bytes."""
    digest = hashlib.sha256()
    for t in tensors:
        digest.update(str(tuple(t.shape)).encode())
        digest.update(t.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file of ours. FileNotFoundError or ValueError, one line, for what is none or is damaged."""
    if path.is_dir():
        raise ValueError(f"module file {str(path)!r} is a folder; give the .safetensors file itself")
    if not path.is_file():
        raise FileNotFoundError(
            f"module file {str(path)!r} does not exist; train one with: respodiff train --concept NAME --out {path.name}"
        )
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(HEADER_KEY)
            tensors = {k: file.get_tensor(k) for k in file.keys()} if text is not None else {}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"module file {str(path)!r} is truncated or not a safetensors file ({error}); copy or train it again") from error
    if text is None:
        raise ValueError(f"module file {str(path)!r} is a safetensors file of something else: no respodiff header with tensors ram and sam")
    try:
        return tensors, dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise ValueError(f"module file {str(path)!r} has a broken header ({error}); copy or train it again") from error


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], header: Header, digest: str, **more: Any) -> Path:
    """Write a file of ours atomically, with ``more`` in its header; raises OSError with one clear line if the folder cannot be written."""
    path = Path(path)
    values = {k: getattr(header, k) for k in header.__dataclass_fields__}
    text = json.dumps({**values, "train": dict(header.train), "digest": digest, **more})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        copies = {k: v.clone().contiguous() for k, v in tensors.items()}  # the format refuses shared memory
        temporary.write_bytes(serialized(copies, metadata={HEADER_KEY: text}))  # save_file would make it 0600 whatever the umask
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True) if temporary.parent.is_dir() else None
        raise OSError(f"module file {str(path)!r} cannot be written ({error}); choose a folder that is writable") from error
    return path


def read_header(path: Path, header: dict[str, Any], wanted: str) -> Header:
    """The header of a file of format ``wanted``, checked; keys of newer versions are a warning. ValueError names file and fault."""
    if header.get("format") != wanted:
        raise ValueError(f"module file {str(path)!r} has format {header.get('format')!r}; this version reads {wanted!r}: update respodiff")
    if unknown := set(header) - set(Header.__dataclass_fields__) - {"digest", "form"}:
        warnings.warn(f"{path.name}: header keys {sorted(unknown)} are unknown to this version and ignored; update respodiff", stacklevel=3)
    if missing := {"concept", "target", "neutral"} - set(header):
        raise ValueError(f"module file {str(path)!r} has a header without {sorted(missing)[0]!r}; copy or train it again")
    known = {k: v for k, v in header.items() if k in Header.__dataclass_fields__}
    for key, value in known.items():
        kind, what = {"train": (dict, "an object"), "resolution": (list, "a list")}.get(key, (str, "a text"))
        if not isinstance(value, kind):
            raise ValueError(f"module file {str(path)!r} has a header with {key} = {value!r}; allowed: {what}; copy or train it again")
    known["resolution"] = tuple(known.get("resolution", (0, 0)))
    return Header(**known)


def refuse_damage(path: Path, said: object, found: str) -> None:
    """ValueError if a file's header says another digest than its tensors have."""
    if said != found:
        raise ValueError(f"module file {str(path)!r} is damaged: its header says digest {said}, its tensors have {found}; copy it again")
