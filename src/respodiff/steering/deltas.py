"""What is added to h of the images of one call: constants of all images stacked once, and what depends on h or the timestep beside them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from respodiff.pipelines.bottleneck import channels_first
from respodiff.steering.module import ConceptModule
from respodiff.steering.parameterisations import Values, delta

Row = ConceptModule | None | Sequence[ConceptModule]
"""What one image gets: a module, nothing, or several modules whose deltas are added."""


def modules_of(row: Row) -> list[ConceptModule]:
    """The modules of one image."""
    return [row] if isinstance(row, ConceptModule) else list(row or ())


@dataclass(frozen=True)
class Moving:
    """A module whose delta is not constant, and the images that have it, once each time they have it."""

    values: Values
    images: tuple[int, ...]


class Deltas:
    """What the images of a call get. ``stacked`` (B or 1, C, H, W) are sums of constants; one row of one image counts for all.

    Args:
        rows: one entry per image. scale: factor on all of it.

    Raises:
        ValueError: modules of one call have several shapes.
    """

    def __init__(self, rows: Sequence[Row], scale: float = 1.0) -> None:
        found = [modules_of(row) for row in rows]
        if len(shapes := {m.shape for row in found for m in row}) > 1:
            one = next((row for row in found if len({m.shape for m in row}) > 1), None)
            what = f"modules of one image have shapes {[m.shape for m in one]}" if one else f"modules have shapes {sorted(shapes)}"
            raise ValueError(f"{what}; resize them to one with ConceptModule.resize")
        given = shapes if scale else set()
        stacked = [self._constant(row, shapes) for row in found] if given else []
        self.stacked = torch.stack(stacked) * scale if stacked else None
        distinct = {id(m): m for row in found for m in row if m.moves} if given else {}
        self.moving = [
            Moving(m.values * scale, tuple(i for i, row in enumerate(found) for other in row if other is m)) for m in distinct.values()
        ]
        self._cache: dict[tuple[Any, ...], Tensor] = {}
        self._resized: set[tuple[int, int]] = set()  # sizes that were warned of

    @staticmethod
    def _constant(row: Sequence[ConceptModule], shapes: set[tuple[int, int, int]]) -> Tensor:
        constants = [m.delta for m in row if not m.moves]
        return torch.stack(constants).sum(0) if constants else torch.zeros(*shapes)

    @property
    def reads_h(self) -> bool:
        """Whether h must be known to say what is added to it."""
        return any(m.values.a is not None for m in self.moving)

    def at(self, size: tuple[int, int], h: Tensor, t: Tensor) -> Tensor | None:
        """What is added (B or 1, C, H, W) at the size of h's bottleneck, in float32 where it is not constant; None for nothing.

        Args:
            h: (B, C, H, W) or (B, N, C) of the images; its dtype and device alone count where nothing reads it. t: (B,), (1,) or ().
        """
        if self.stacked is None:
            return None
        out = self._fitted("stacked", self.stacked, size, h.device, h.dtype)
        if not self.moving:
            return out
        spread = channels_first(h).shape[2:] if self.reads_h else out.shape[2:]
        full = out.float().expand(len(h), -1, *spread).clone()
        for i, m in enumerate(self.moving):
            a, b = (None if v is None else v.to(h.device) for v in (m.values.a, m.values.b))
            values = Values(self._fitted(f"moving {i}", m.values.r, size, h.device, torch.float32), a, b)
            for images in [slice(None)] * len(m.images) if len(self.stacked) == 1 else [slice(j, j + 1) for j in m.images]:
                full[images] += delta(values, h[images], t[images] if t.numel() > 1 else t)
        return full

    def clear(self) -> None:
        """Forget what was put on devices."""
        self._cache.clear()

    def _fitted(self, name: str, r: Tensor, size: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Tensor:
        """r (K, C, H, W) at a size, on a device, in a dtype, made once each; float32 stays the master copy."""
        key = (name, size, device, dtype)
        if key not in self._cache:
            if r.shape[2:] not in (size, (1, 1)):
                if size not in self._resized:
                    warnings.warn(
                        f"module of {tuple(r.shape[2:])} is resized to the bottleneck {size} of this image size; check its effect",
                        stacklevel=2,
                    )
                self._resized.add(size)
                r = interpolate(r, size, mode="bilinear", antialias=True)
            self._cache[key] = r.to(device, dtype)
        return self._cache[key]
