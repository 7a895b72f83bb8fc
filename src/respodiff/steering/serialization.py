"""Files of ours: safetensors with a JSON header that says what the tensors steer, what they were trained on and how. Never a pickle."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from respodiff.concepts.concept import Concept

if TYPE_CHECKING:  # `respodiff inspect` reads files without torch
    from torch import Tensor

FORMAT = "respodiff-1"
METHOD_FORMAT = "respodiff-method-1"
HEADER_KEY = "respodiff"
TIMESTEPS = (0, 1000)
"""All timesteps of every model that is steered."""


@dataclass(frozen=True)
class Header:
    """What a module file says of itself. ``base_digest`` is that of the UNet's config, ``base_weights`` of its weights; ``method`` is the name
    in `respodiff.methods.registry` that made it. ``kind`` is ``fairness`` (drawn by a policy), ``safety`` or ``attribute`` (added to every image).
    ``timesteps`` (low, high): the module acts at timesteps from low to below high, 999 being the noisiest; all by default.
    ``h_norm`` is the mean norm of h during training, of one position where RAM has one number a channel; 0 if it is unknown."""

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
    timesteps: tuple[int, int] = TIMESTEPS
    h_norm: float = 0.0
    train: Mapping[str, Any] = field(default_factory=dict)
    library: str = ""
    method: str = "respodiff"
    format: str = FORMAT

    @classmethod
    def of(cls, concept: Concept, **more: Any) -> Header:
        """The header of a concept's module."""
        names = {"target", "neutral", "negative", "kind", "attribute"}
        return cls(concept.name, **{name: getattr(concept, name) for name in names}, **more)


def tensor_digest(*tensors: Tensor | np.ndarray[Any, Any]) -> str:
    """First 16 hex digits of the sha256 of shapes and float32 bytes."""
    digest = hashlib.sha256()
    for t in tensors:
        array = t if isinstance(t, np.ndarray) else t.detach().cpu().float().numpy()
        digest.update(str(tuple(t.shape)).encode())
        digest.update(np.ascontiguousarray(array, np.float32).tobytes())
    return digest.hexdigest()[:16]


def module_digest(header: Header, ram: Any, sam: Any) -> str:
    """Digest of a concept module: its tensors, and its window of timesteps where there is one."""
    window = [np.array(header.timesteps)] if header.timesteps != TIMESTEPS else []
    return tensor_digest(ram, sam, *window)


def adapter_digest(header: Header, tensors: Mapping[str, Any]) -> str:
    """Digest of another method's adapter: method, prompts, settings and tensors, all that an image depends on."""
    told = {k: getattr(header, k) for k in ("method", "concept", "target", "neutral", "negative", "kind", "attribute")}
    text = json.dumps({**told, "train": dict(header.train)}, sort_keys=True, default=str)
    parts = [f"{k} {tensor_digest(tensors[k])}" for k in sorted(tensors)]
    return hashlib.sha256("\n".join([text, *parts]).encode()).hexdigest()[:16]


def read_tensors(path: Path, framework: str = "pt") -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors (torch, or numpy for framework "np") and header of a file of ours. FileNotFoundError or ValueError, one line, for what is none or is damaged."""
    if path.is_dir():
        raise ValueError(f"module file {str(path)!r} is a folder; give the .safetensors file itself")
    if not path.is_file():
        raise FileNotFoundError(
            f"module file {str(path)!r} does not exist; train one with: respodiff train --concept NAME --out {path.name}"
        )
    try:
        with safe_open(path, framework) as file:
            text = (file.metadata() or {}).get(HEADER_KEY)
            tensors = {k: file.get_tensor(k) for k in file.keys()} if text is not None else {}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError, TypeError) as error:
        raise ValueError(f"module file {str(path)!r} is truncated or not a safetensors file ({error}); copy or train it again") from error
    if text is None:
        raise ValueError(f"module file {str(path)!r} is a safetensors file of something else: no respodiff header with tensors ram and sam")
    try:
        return tensors, dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise ValueError(f"module file {str(path)!r} has a broken header ({error}); copy or train it again") from error


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], header: Header, digest: str) -> Path:
    """Write a file of ours atomically; raises OSError with one clear line if the folder cannot be written."""
    from safetensors.torch import save as serialized

    path = Path(path)
    values = {k: getattr(header, k) for k in header.__dataclass_fields__}
    text = json.dumps({**values, "train": dict(header.train), "digest": digest})
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


KINDS: dict[str, tuple[Any, str]] = {
    "train": (dict, "an object"),
    "resolution": (list, "a list"),
    "timesteps": (list, "a list"),
    "h_norm": (int | float, "a number"),
}
"""Type of every value of a header that is no text."""


def read_header(path: Path, header: dict[str, Any], wanted: str) -> Header:
    """The header of a file of format ``wanted``, checked; keys of newer versions are a warning. ValueError names file and fault."""
    if header.get("format") != wanted:
        raise ValueError(f"module file {str(path)!r} has format {header.get('format')!r}; this version reads {wanted!r}: update respodiff")
    if unknown := set(header) - set(Header.__dataclass_fields__) - {"digest"}:
        warnings.warn(f"{path.name}: header keys {sorted(unknown)} are unknown to this version and ignored; update respodiff", stacklevel=3)
    if missing := {"concept", "target", "neutral"} - set(header):
        raise ValueError(f"module file {str(path)!r} has a header without {sorted(missing)[0]!r}; copy or train it again")
    known = {k: v for k, v in header.items() if k in Header.__dataclass_fields__}
    for key, value in known.items():
        kind, what = KINDS.get(key, (str, "a text"))
        if not isinstance(value, kind):
            raise ValueError(f"module file {str(path)!r} has a header with {key} = {value!r}; allowed: {what}; copy or train it again")
    known |= {key: tuple(known[key]) for key in ("resolution", "timesteps") if key in known}
    return Header(**known)


def refuse_damage(path: Path, said: object, found: str) -> None:
    """ValueError if a file's header says another digest than its tensors have."""
    if said != found:
        raise ValueError(f"module file {str(path)!r} is damaged: its header says digest {said}, its tensors have {found}; copy it again")
