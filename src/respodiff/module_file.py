"""A concept module: RAM and SAM of one concept, and the file that holds them.

One ``.safetensors`` file: tensors ``ram`` and ``sam`` of shape (C, H, W), and a JSON header that says what they steer, what they were
trained on and how. Never a pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized
from torch import Tensor
from torch.nn.functional import interpolate

from respodiff.concepts import Concept

FORMAT = "respodiff-1"
HEADER_KEY = "respodiff"


@dataclass(frozen=True)
class Header:
    """What a module file says of itself. ``base_digest`` is that of the UNet's config, ``base_weights`` of its weights; ``method`` is the name
    in `respodiff.methods` that made it. ``kind`` is ``fairness`` (drawn by a policy), ``safety`` or ``attribute`` (added to every picture)."""

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


@dataclass(frozen=True, eq=False)
class ConceptModule:
    """RAM and SAM (C, H, W) float32 on the CPU, with their header. Immutable: every operation gives a new module."""

    ram: Tensor
    sam: Tensor
    header: Header

    def __post_init__(self) -> None:
        for name, t in (("ram", self.ram), ("sam", self.sam)):
            if t.ndim != 3:
                raise ValueError(f"{name} has shape {tuple(t.shape)}; allowed: three dimensions (C, H, W)")
            if not torch.isfinite(t).all():
                raise ValueError(f"{name} holds NaN or infinite values; train again with a smaller learning rate")
        if self.ram.shape != self.sam.shape:
            raise ValueError(f"ram has shape {tuple(self.ram.shape)}, but sam {tuple(self.sam.shape)}; they must be equal")

    @property
    def delta(self) -> Tensor:
        """r + s, what is added to h (paper, inference)."""
        return self.ram + self.sam

    @property
    def shape(self) -> tuple[int, int, int]:
        c, h, w = self.ram.shape
        return c, h, w

    @property
    def name(self) -> str:
        return self.header.concept

    @property
    def digest(self) -> str:
        return tensor_digest(self.ram, self.sam)

    def scale(self, strength: float) -> ConceptModule:
        """Both tensors times ``strength`` (any finite number; 0 does nothing, negative steers the other way)."""
        if not -float("inf") < strength < float("inf"):
            raise ValueError(f"strength is {strength}; allowed: any finite number")
        return replace(self, ram=self.ram * strength, sam=self.sam * strength)

    def without_sam(self) -> ConceptModule:
        """RAM alone (the paper's first ablation)."""
        return replace(self, sam=torch.zeros_like(self.sam))

    def __add__(self, other: ConceptModule) -> ConceptModule:
        """Sum of two modules of one site and shape, as the paper combines safety concepts."""
        if not isinstance(other, ConceptModule):
            return NotImplemented
        _same("shape", self.name, self.shape, other.name, other.shape)
        _same("site", self.name, self.header.site, other.name, other.header.site)
        _same("base model config", self.name, self.header.base_digest, other.name, other.header.base_digest)
        both = {k: (getattr(self.header, k), getattr(other.header, k)) for k in ("concept", "target", "neutral", "negative")}
        names: dict[str, Any] = {k: " + ".join(v for v in values if v) for k, values in both.items()}
        kind = "fairness" if "fairness" in (self.header.kind, other.header.kind) else "safety"
        attribute = self.header.attribute if self.header.attribute == other.header.attribute else ""
        return ConceptModule(self.ram + other.ram, self.sam + other.sam, replace(self.header, **names, kind=kind, attribute=attribute))

    def resize(self, height: int, width: int) -> ConceptModule:
        """Bilinear resample of both tensors to (C, height, width) of another latent size. Quality there is not what was trained."""
        if height < 1 or width < 1:
            raise ValueError(f"size is {height} x {width}; allowed: at least 1 x 1")
        if (height, width) == self.shape[1:]:
            return self
        ram, sam = (interpolate(t[None], (height, width), mode="bilinear", antialias=True)[0] for t in (self.ram, self.sam))
        return replace(self, ram=ram, sam=sam)

    def channels(self) -> ConceptModule:
        """Both tensors' mean over positions, (C, 1, 1): fits every picture size and transformers' sites, and can be fused."""
        ram, sam = (t.mean((1, 2), keepdim=True) for t in (self.ram, self.sam))
        return replace(self, ram=ram, sam=sam)

    def save(self, path: str | Path) -> Path:
        """Write the file atomically; raises OSError with one clear line if the folder cannot be written."""
        return write_tensors(path, {"ram": self.ram, "sam": self.sam}, self.header, self.digest)


def _same(what: str, name_a: str, a: object, name_b: str, b: object) -> None:
    if a != b:
        raise ValueError(f"{what} differs: {name_a!r} has {a}, {name_b!r} has {b}; only modules of one site can be added")


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


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], header: Header, digest: str) -> Path:
    """Write a file of ours atomically; raises OSError with one clear line if the folder cannot be written."""
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
        kind, what = {"train": (dict, "an object"), "resolution": (list, "a list")}.get(key, (str, "a text"))
        if not isinstance(value, kind):
            raise ValueError(f"module file {str(path)!r} has a header with {key} = {value!r}; allowed: {what}; copy or train it again")
    known["resolution"] = tuple(known.get("resolution", (0, 0)))
    return Header(**known)


def load(path: str | Path) -> ConceptModule:
    """Read a module file. Raises FileNotFoundError or ValueError with one line that names the file and what is wrong with it."""
    path = Path(path)
    tensors, header = read_tensors(path)
    made_by = header.get("method", "respodiff")
    if set(tensors) != {"ram", "sam"} and made_by != "respodiff":
        raise ValueError(
            f"module file {str(path)!r} is of method {made_by!r}, not a module of RAM and SAM; read it with respodiff.methods.load"
        )
    if set(tensors) != {"ram", "sam"}:
        raise ValueError(f"module file {str(path)!r} is a safetensors file of something else: no respodiff header with tensors ram and sam")
    known = read_header(path, header, FORMAT)
    try:
        module = ConceptModule(tensors["ram"].float(), tensors["sam"].float(), known)
    except (ValueError, TypeError) as error:
        raise ValueError(f"module file {str(path)!r} does not hold a module: {error}") from error
    refuse_damage(path, header.get("digest"), module.digest)
    return module


def refuse_damage(path: Path, said: object, found: str) -> None:
    """ValueError if a file's header says another digest than its tensors have."""
    if said != found:
        raise ValueError(f"module file {str(path)!r} is damaged: its header says digest {said}, its tensors have {found}; copy it again")
