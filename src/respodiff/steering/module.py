"""A concept module: RAM and SAM of one concept, and the file that holds them.

One ``.safetensors`` file: tensors ``ram`` and ``sam`` of shape (C, H, W), or (C, 1, 1) for one number a channel, and a JSON header.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from respodiff.steering.serialization import (
    FORMAT,
    HEADER_KEY,
    TIMESTEPS,
    Header,
    module_digest,
    read_header,
    read_tensors,
    refuse_damage,
    tensor_digest,
    write_tensors,
)

__all__ = ["FORMAT", "HEADER_KEY", "ConceptModule", "Header", "load", "tensor_digest"]


@dataclass(frozen=True, eq=False)
class ConceptModule:
    """RAM and SAM, float32 on the CPU, with their header. Immutable: every operation gives a new module.

    Attributes:
        ram, sam: (C, H, W), or (C, 1, 1): the same at every position.
    """

    ram: Tensor
    sam: Tensor
    header: Header

    def __post_init__(self) -> None:
        for name, t in (("ram", self.ram), ("sam", self.sam)):
            if t.ndim != 3:
                raise ValueError(f"{name} has shape {tuple(t.shape)}; allowed: three dimensions (C, H, W)")
        if self.ram.shape != self.sam.shape:
            raise ValueError(f"ram has shape {tuple(self.ram.shape)}, but sam {tuple(self.sam.shape)}; they must be equal")
        window = self.header.timesteps
        whole = len(window) == 2 and all(isinstance(t, int) for t in window)
        if not whole or not 0 <= window[0] < window[1] <= TIMESTEPS[1]:
            raise ValueError(f"timesteps is {window}; allowed: (low, high), whole numbers with 0 <= low < high <= {TIMESTEPS[1]}")
        for name, t in (("ram", self.ram), ("sam", self.sam)):
            if not torch.isfinite(t).all():
                raise ValueError(f"{name} holds NaN or infinite values; train again with a smaller learning rate")

    @property
    def delta(self) -> Tensor:
        """r + s: what is added to h (paper, inference)."""
        return self.ram + self.sam

    @property
    def form(self) -> str:
        """``channel`` for one number a channel, else ``constant``."""
        return "channel" if self.shape[1:] == (1, 1) else "constant"

    @property
    def shape(self) -> tuple[int, int, int]:
        c, h, w = self.ram.shape
        return c, h, w

    @property
    def name(self) -> str:
        return self.header.concept

    @property
    def digest(self) -> str:
        """First 16 hex digits of the sha256 of the tensors, and of the window of timesteps where there is one."""
        return module_digest(self.header, self.ram, self.sam)

    @property
    def relative_norm(self) -> float | None:
        """|r + s| over the mean norm of h during training; None if that is unknown."""
        return self.delta.norm().item() / self.header.h_norm if self.header.h_norm else None

    def scale(self, factor: float) -> ConceptModule:
        """What is added, times ``factor`` (any finite number; 0 does nothing, negative steers the other way)."""
        if not -float("inf") < factor < float("inf"):
            raise ValueError(f"scale is {factor}; allowed: any finite number")
        return replace(self, ram=self.ram * factor, sam=self.sam * factor)

    def within(self, low: int, high: int) -> ConceptModule:
        """The same, but it acts at timesteps from ``low`` to below ``high`` alone (0 to 1000, 999 being the noisiest).

        What an image shows is decided early (the editing interval of Asyrp, arXiv 2210.10960): with ``within(400, 1000)`` the model
        finishes the image by itself. ValueError for a window that is empty or outside of 0 to 1000.
        """
        return replace(self, header=replace(self.header, timesteps=(low, high)))

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
        _same("window of timesteps", self.name, self.header.timesteps, other.name, other.header.timesteps)
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
        return self._with(ram, sam)

    def channels(self) -> ConceptModule:
        """Both tensors' mean over positions, (C, 1, 1): fits every image size and transformers' sites, and can be fused."""
        ram, sam = (t.mean((-2, -1), keepdim=True) for t in (self.ram, self.sam))
        return self._with(ram, sam)

    def _with(self, ram: Tensor, sam: Tensor) -> ConceptModule:
        """Tensors of other positions; the norm of h grows with the square root of their number."""
        spread = (ram[0].numel() / self.ram[0].numel()) ** 0.5
        return replace(self, ram=ram, sam=sam, header=replace(self.header, h_norm=self.header.h_norm * spread))

    def save(self, path: str | Path) -> Path:
        """Write the file atomically; raises OSError with one clear line if the folder cannot be written."""
        return write_tensors(path, {"ram": self.ram, "sam": self.sam}, self.header, self.digest)


def _same(what: str, name_a: str, a: object, name_b: str, b: object) -> None:
    if a != b:
        raise ValueError(f"{what} differs: {name_a!r} has {a}, {name_b!r} has {b}; only modules that agree in it can be added")


def load(path: str | Path) -> ConceptModule:
    """Read a module file. Raises FileNotFoundError or ValueError with one line that names the file and what is wrong with it."""
    path = Path(path)
    tensors, header = read_tensors(path)
    made_by = header.get("method", "respodiff")
    ours = set(tensors) == {"ram", "sam"}
    if not ours and made_by != "respodiff":
        raise ValueError(
            f"module file {str(path)!r} is of method {made_by!r}, not a module of RAM and SAM; read it with respodiff.methods.base.load"
        )
    if not ours:
        raise ValueError(f"module file {str(path)!r} is a safetensors file of something else: no respodiff header with tensors ram and sam")
    known = read_header(path, header, FORMAT)
    try:
        module = ConceptModule(tensors["ram"].float(), tensors["sam"].float(), known)
    except (ValueError, TypeError) as error:
        raise ValueError(f"module file {str(path)!r} does not hold a module: {error}") from error
    refuse_damage(path, header.get("digest"), module.digest)
    return module
