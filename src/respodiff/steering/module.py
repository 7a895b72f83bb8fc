"""A concept module: RAM and SAM of one concept, in one of the forms of `respodiff.steering.parameterisations`, and the file that holds them.

One ``.safetensors`` file: tensors ``ram`` and ``sam`` of shape (C, H, W), of form ``binned`` (K, C, H, W); of form ``lowrank`` the maps
``ram_a``, ``ram_b`` and, where SAM was trained, ``sam_a``, ``sam_b`` of shape (C, k) beside them; and a JSON header that names the form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from respodiff.steering.parameterisations import FORMS, Values, form_of
from respodiff.steering.serialization import (
    FORMAT,
    HEADER_KEY,
    Header,
    read_header,
    read_tensors,
    refuse_damage,
    tensor_digest,
    write_tensors,
)

__all__ = ["FORMAT", "HEADER_KEY", "ConceptModule", "Header", "load", "tensor_digest"]

RELEASE_BINS = 20
"""Most parts of the timesteps for a release; more where a module's own bins ask for it."""
MAPS = ("ram_a", "ram_b", "sam_a", "sam_b")


@dataclass(frozen=True, eq=False)
class ConceptModule:
    """RAM and SAM float32 on the CPU, with their header. Immutable: every operation gives a new module.

    Attributes:
        ram, sam: (C, H, W), or one of them per time bin: (K, C, H, W).
        maps: A and B (C, k) of RAM and SAM by the names in `MAPS`; empty for every form but ``lowrank``.
    """

    ram: Tensor
    sam: Tensor
    header: Header
    maps: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, t in (("ram", self.ram), ("sam", self.sam)):
            if t.ndim != 3 and not (t.ndim == 4 and len(t) > 1):
                raise ValueError(
                    f"{name} has shape {tuple(t.shape)}; allowed: three dimensions (C, H, W), or four (K, C, H, W) with 2 or more time bins"
                )
        if self.ram.shape != self.sam.shape:
            raise ValueError(f"ram has shape {tuple(self.ram.shape)}, but sam {tuple(self.sam.shape)}; they must be equal")
        for name, t in self.maps.items():
            other = self.maps.get(f"{name[:-1]}{'b' if name[-1] == 'a' else 'a'}")
            if name not in MAPS or t.ndim != 2 or len(t) != self.shape[0] or other is None or other.shape != t.shape:
                raise ValueError(
                    f"map {name!r} has shape {tuple(t.shape)}; allowed: {', '.join(MAPS)}, a and b of one shape ({self.shape[0]}, k)"
                )
        for name, t in (("ram", self.ram), ("sam", self.sam), *self.maps.items()):
            if not torch.isfinite(t).all():
                raise ValueError(f"{name} holds NaN or infinite values; train again with a smaller learning rate")

    @property
    def delta(self) -> Tensor:
        """r + s: what is added to h (paper, inference); of each time bin, and of form ``lowrank`` the part that does not read h."""
        return self.ram + self.sam

    @property
    def values(self) -> Values:
        """All that is added to h, for `respodiff.steering.parameterisations.delta`."""
        return self.part("ram") + self.part("sam")

    def part(self, name: str) -> Values:
        """``ram`` or ``sam`` alone."""
        r: Tensor = getattr(self, name)
        return Values(r if r.ndim == 4 else r[None], self.maps.get(f"{name}_a"), self.maps.get(f"{name}_b"))

    @property
    def form(self) -> str:
        """Name in `respodiff.steering.parameterisations.FORMS`, as its tensors say."""
        return form_of(self.values)

    @property
    def moves(self) -> bool:
        """Whether what is added depends on h or on the timestep."""
        return self.ram.ndim == 4 or bool(self.maps)

    @property
    def shape(self) -> tuple[int, int, int]:
        c, h, w = self.ram.shape[-3:]
        return c, h, w

    @property
    def name(self) -> str:
        return self.header.concept

    @property
    def digest(self) -> str:
        return tensor_digest(self.ram, self.sam, *(self.maps[k] for k in MAPS if k in self.maps))

    def scale(self, factor: float) -> ConceptModule:
        """What is added, times ``factor`` (any finite number; 0 does nothing, negative steers the other way)."""
        if not -float("inf") < factor < float("inf"):
            raise ValueError(f"scale is {factor}; allowed: any finite number")
        maps = {k: t * factor if k.endswith("_a") else t for k, t in self.maps.items()}
        return replace(self, ram=self.ram * factor, sam=self.sam * factor, maps=maps)

    def released(self, share: float) -> ConceptModule:
        """The same, but nothing at the last ``share`` of the timesteps, at the clean end: the model finishes the image by itself.

        What an image shows is decided early (the editing interval of Asyrp, arXiv 2210.10960). The result is of form ``binned``, in as few
        parts as the share asks for, to a twentieth.

        Raises:
            ValueError: for a share below 0, or of 1 and more, and for form ``lowrank``, whose map has no bins.
        """
        if not 0 <= share < 1:
            raise ValueError(f"release is {share}; allowed: 0 (steer every step) to below 1")
        if share == 0:
            return self
        if self.maps:
            raise ValueError(
                f"module {self.name!r} is of form 'lowrank', which reads h at every step; release one of another form, or none"
            )
        count = len(self.part("ram").r)
        parts = next((k for k in range(1, RELEASE_BINS) if abs(share * k - round(share * k)) < 1e-9), RELEASE_BINS)
        bins = math.lcm(count, parts)
        ram, sam = (self.part(name).r.repeat_interleave(bins // count, 0) for name in ("ram", "sam"))
        gone = min(bins - 1, round(share * bins))
        for r in (ram, sam):
            r[:gone] = 0
        return replace(self, ram=ram, sam=sam)

    def without_sam(self) -> ConceptModule:
        """RAM alone (the paper's first ablation)."""
        return replace(self, sam=torch.zeros_like(self.sam), maps={k: t for k, t in self.maps.items() if k.startswith("ram")})

    def __add__(self, other: ConceptModule) -> ConceptModule:
        """Sum of two modules of one site and shape, as the paper combines safety concepts; of any two forms."""
        if not isinstance(other, ConceptModule):
            return NotImplemented
        _same("shape", self.name, self.shape, other.name, other.shape)
        _same("site", self.name, self.header.site, other.name, other.header.site)
        _same("base model config", self.name, self.header.base_digest, other.name, other.header.base_digest)
        if self.ram.ndim == other.ram.ndim == 4:
            _same("number of time bins", self.name, len(self.ram), other.name, len(other.ram))
        both = {k: (getattr(self.header, k), getattr(other.header, k)) for k in ("concept", "target", "neutral", "negative")}
        names: dict[str, Any] = {k: " + ".join(v for v in values if v) for k, values in both.items()}
        kind = "fairness" if "fairness" in (self.header.kind, other.header.kind) else "safety"
        attribute = self.header.attribute if self.header.attribute == other.header.attribute else ""
        ram, sam = (self.part(name) + other.part(name) for name in ("ram", "sam"))
        return built(ram, sam, replace(self.header, **names, kind=kind, attribute=attribute))

    def resize(self, height: int, width: int) -> ConceptModule:
        """Bilinear resample of both tensors to (C, height, width) of another latent size. Quality there is not what was trained."""
        if height < 1 or width < 1:
            raise ValueError(f"size is {height} x {width}; allowed: at least 1 x 1")
        if (height, width) == self.shape[1:]:
            return self
        parts = (self.part(name) for name in ("ram", "sam"))
        ram, sam = (replace(v, r=interpolate(v.r, (height, width), mode="bilinear", antialias=True)) for v in parts)
        return built(ram, sam, self.header)

    def channels(self) -> ConceptModule:
        """Both tensors' mean over positions, (C, 1, 1): fits every image size and transformers' sites; a constant can then be fused."""
        ram, sam = (t.mean((-2, -1), keepdim=True) for t in (self.ram, self.sam))
        return replace(self, ram=ram, sam=sam)

    def save(self, path: str | Path) -> Path:
        """Write the file atomically; raises OSError with one clear line if the folder cannot be written."""
        return write_tensors(path, {"ram": self.ram, "sam": self.sam, **self.maps}, self.header, self.digest, form=self.form)


def _same(what: str, name_a: str, a: object, name_b: str, b: object) -> None:
    if a != b:
        raise ValueError(f"{what} differs: {name_a!r} has {a}, {name_b!r} has {b}; only modules of one site can be added")


def built(ram: Values, sam: Values, header: Header) -> ConceptModule:
    """The module of RAM's and SAM's values."""
    r, s = (v.r if len(v.r) > 1 else v.r[0] for v in (ram, sam))
    maps = {f"{name}_{k}": t for name, v in (("ram", ram), ("sam", sam)) for k, t in v.named.items() if k != "r"}
    return ConceptModule(r, s, header, maps)


def load(path: str | Path) -> ConceptModule:
    """Read a module file. Raises FileNotFoundError or ValueError with one line that names the file and what is wrong with it."""
    path = Path(path)
    tensors, header = read_tensors(path)
    made_by = header.get("method", "respodiff")
    ours = {"ram", "sam"} <= set(tensors) <= {"ram", "sam", *MAPS}
    if not ours and made_by != "respodiff":
        raise ValueError(
            f"module file {str(path)!r} is of method {made_by!r}, not a module of RAM and SAM; read it with respodiff.methods.base.load"
        )
    if not ours:
        raise ValueError(f"module file {str(path)!r} is a safetensors file of something else: no respodiff header with tensors ram and sam")
    known = read_header(path, header, FORMAT)
    try:
        tensors = {k: t.float() for k, t in tensors.items()}
        module = ConceptModule(tensors.pop("ram"), tensors.pop("sam"), known, tensors)
    except (ValueError, TypeError) as error:
        raise ValueError(f"module file {str(path)!r} does not hold a module: {error}") from error
    refuse_damage(path, header.get("digest"), module.digest)
    if (form := header.get("form", module.form)) != module.form:  # files of earlier versions name none
        what = "its tensors are of form " + repr(module.form) if str(form) in FORMS else "this version knows " + ", ".join(FORMS)
        raise ValueError(f"module file {str(path)!r} names form {form!r}, but {what}; update respodiff, or train it again")
    return module
