"""Provides the file format of adapters: safetensors with a JSON header that says what was trained, on which model and how. Never a pickle.

docs/module-format.md describes it for writers that do not use this library.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from safetensors import SafetensorError, safe_open

from respodiff.concepts.concept import Concept, Kind
from respodiff.data.places import check_out, new_file
from respodiff.data.untrusted import read_json, shortened
from respodiff.steering.shipped import shipped, shipped_attributes

if TYPE_CHECKING:  # `respodiff inspect` reads files without torch
    from torch import Tensor

FORMAT = "respodiff-1"
HEADER_KEY = "respodiff"
KINDS = (*get_args(Kind), "attribute")
TIMESTEPS = (0, 1000)
"""All timesteps of every model that is steered."""


@dataclass(frozen=True)
class Header:
    """What an adapter file says of itself.

    Attributes:
        concept, target, neutral, negative, attribute: name, prompts and attribute of the concept.
        kind: ``fairness`` (given to images by a policy), ``safety``, or ``attribute`` (made of all alternatives; given to every image).
        base_model, base_digest, base_weights: name of the model, digest of its configuration, digest of its weights.
        base_precision: what it computed in (`respodiff.pipelines.identity.precision`), such as float32 or "nf4, bfloat16"; empty if unknown.
        site: where a module acts, with commas between several; empty for adapters that are no modules. form: name in `respodiff.steering.forms.FORMS`, or empty.
        resolution: (height, width) in pixels that it was trained at.
        timesteps: (low, high): a module acts at timesteps from low to below high, 999 being the noisiest.
        h_norm: mean norm of h during training, of one position for one number a channel; 0 if it is unknown.
        verdict: effect, projection and relative norm at the end of training (`respodiff.training.diagnostics.with_verdict`); empty if unknown.
        train: all settings that it was made with. library: version that made it. method: name in `respodiff.methods.registry.names`.
    """

    concept: str
    target: str
    neutral: str
    negative: str = ""
    kind: str = "fairness"
    attribute: str = ""
    base_model: str = ""
    base_digest: str = ""
    base_weights: str = ""
    base_precision: str = ""
    site: str = "mid_block"
    form: str = ""
    resolution: tuple[int, int] = (0, 0)
    timesteps: tuple[int, int] = TIMESTEPS
    h_norm: float = 0.0
    verdict: Mapping[str, float] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    library: str = ""
    method: str = "respodiff"
    format: str = FORMAT

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind = {self.kind!r}; allowed: {', '.join(KINDS)}")

    @classmethod
    def of(cls, concept: Concept, **more: Any) -> Header:
        """The header of a concept's adapter."""
        names = ("target", "neutral", "negative", "kind", "attribute")
        return cls(concept.name, **{name: getattr(concept, name) for name in names}, **more)


class Stored(NamedTuple):
    """What a file holds: its tensors are float32, of torch or numpy; the digest is the one that was written."""

    header: Header
    tensors: dict[str, Any]
    scale: float
    digest: object


def tensor_digest(*tensors: Tensor | np.ndarray[Any, Any]) -> str:
    """First 16 hex digits of the SHA-256 of shapes and float32 bytes."""
    digest = hashlib.sha256()
    for t in tensors:
        array = t if isinstance(t, np.ndarray) else t.detach().cpu().float().numpy()
        digest.update(str(tuple(t.shape)).encode() + np.ascontiguousarray(array, np.float32).tobytes())
    return digest.hexdigest()[:16]


def digest_of(header: Header, tensors: Mapping[str, Any], scale: float) -> str:
    """First 16 hex digits of the SHA-256 of all that an image depends on: method, prompts, form, window, settings, scale and tensors."""
    names = ("method", "concept", "target", "neutral", "negative", "kind", "attribute", "form", "timesteps")
    about = {**{name: getattr(header, name) for name in names}, "train": dict(header.train), "scale": float(scale)}
    text = json.dumps(about, sort_keys=True, default=str)
    parts = [f"{name} {tensor_digest(tensors[name])}" for name in sorted(tensors)]
    return hashlib.sha256("\n".join([text, *parts]).encode()).hexdigest()[:16]


def checksum(values: Mapping[str, Any]) -> str:
    """First 16 hex digits of the SHA-256 of a file's header; its digest, and so its tensors, included."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def read_header(path: str | Path) -> Header:
    """The header of an adapter file, without its tensors. Raises as `read_file`."""
    return _read(Path(path), "np", whole=False).header


def read_file(path: str | Path, framework: Literal["pt", "np"] = "pt") -> Stored:
    """What an adapter file holds, its tensors of torch or, without importing torch, of numpy.

    Raises:
        FileNotFoundError, ValueError: one line that names the file and what is wrong with it.
    """
    found = _read(Path(path), framework)
    if (digest := digest_of(found.header, found.tensors, found.scale)) != found.digest:
        raise ValueError(
            f"adapter file {str(path)!r} is damaged: its header says digest {found.digest}, its content has {digest}; copy it again"
        )
    return found


def _read(path: Path, framework: str, whole: bool = True) -> Stored:
    name = f"adapter file {str(path)!r}"
    if path.is_dir():
        raise ValueError(f"{name} is a folder; give the .safetensors file itself")
    if not path.is_file():
        known = f"shipped for the embedded model, by name: {', '.join([*shipped(), *shipped_attributes()])}"
        raise FileNotFoundError(f"{name} does not exist; train one with: respodiff train --concept NAME --out {path.name}; {known}")
    try:
        with safe_open(path, framework) as file:
            text = (file.metadata() or {}).get(HEADER_KEY)
            kinds = {file.get_slice(k).get_dtype() for k in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError, TypeError) as error:
        raise ValueError(f"{name} is truncated or not a safetensors file ({error}); copy or train it again") from error
    if text is None:
        raise ValueError(f"{name} is a safetensors file of something else: it has no respodiff header")
    try:
        found = dict(read_json(text))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} has a broken header ({error}); copy or train it again") from error
    header = _header(name, found)
    if other := kinds - {"F32"}:
        raise ValueError(f"{name} has tensors of type {min(other)}; allowed: F32; train it again")
    if (size := path.stat().st_size) > (most := MOST_BYTES[bool(header.form)]):
        raise ValueError(f"{name} has {size:,} bytes; allowed: up to {most:,} for its method {header.method!r}; train it again")
    tensors = {}
    if whole:
        with safe_open(path, framework) as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    return Stored(header, tensors, float(found.get("scale", 1.0)), found.get("digest"))


MOST_BYTES = {True: 2**28, False: 12 * 2**30}
"""Size of an adapter file, checked before its tensors are read: of modules, and of others, which may hold the weights of SDXL's UNet."""


TYPES: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(("train", "verdict"), (dict, "an object")),
    "resolution": (list, "a list"),
    "timesteps": (list, "a list"),
    "h_norm": (int | float, "a number"),
    "scale": (int | float, "a number"),
}
"""Type of every value of a header that is no text."""
BESIDE = {"scale", "digest"}
"""What a file's header holds beside the fields of `Header`."""


def _header(name: str, found: dict[str, Any]) -> Header:
    if found.get("format") != FORMAT:
        raise ValueError(f"{name} has format {found.get('format')!r}; this version reads {FORMAT!r}: update respodiff")
    if (given := found.pop("checksum", None)) != (own := checksum(found)):
        raise ValueError(f"{name} is damaged: its header says checksum {given}, its content has {own}; copy or train it again")
    names = {f.name for f in fields(Header)}
    if unknown := set(found) - names - BESIDE:
        warnings.warn(f"{name}: header keys {sorted(unknown)} are unknown to this version and ignored; update respodiff", stacklevel=5)
    if missing := {"concept", "target", "neutral"} - set(found):
        raise ValueError(f"{name} has a header without {sorted(missing)[0]!r}; copy or train it again")
    for key in sorted(found.keys() - unknown):
        kind, what = TYPES.get(key, (str, "a text"))
        if not isinstance(found[key], kind) or (what == "a number" and not abs(found[key]) < 1e300):
            value = shortened(repr(found[key]))
            raise ValueError(f"{name} has a header with {key} = {value}; allowed: {what}; copy or train it again")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items() if k in names}
    try:
        return Header(**values)
    except ValueError as error:
        raise ValueError(f"{name} has a header with {error}; copy or train it again") from error


def write_file(path: str | Path, header: Header, tensors: Mapping[str, Tensor], scale: float, *, force: bool = False) -> Path:
    """Writes an adapter file atomically. Raises as `respodiff.steering.adapter.Adapter.save`."""
    from safetensors.torch import save as serialized

    check_out(path, read_header, force=force)
    values = {f.name: getattr(header, f.name) for f in fields(header)} | {"train": dict(header.train), "scale": float(scale)}
    values |= {"verdict": dict(header.verdict), "digest": digest_of(header, tensors, scale)}
    text = json.dumps(values | {"checksum": checksum(values)})
    copies = {k: v.float().clone().contiguous() for k, v in tensors.items()}  # the format refuses shared memory
    with new_file(path, "adapter file") as temporary:
        temporary.write_bytes(serialized(copies, metadata={HEADER_KEY: text}))  # save_file would make it 0600 whatever the umask
    return Path(path)


def check_scale(scale: float) -> None:
    """ValueError for a scale that is not a finite number."""
    if not math.isfinite(scale):
        raise ValueError(f"scale is {scale}; allowed: any finite number")
