"""What is added to h of the images of one call: the modules of all images, stacked once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from respodiff.steering.module import ConceptModule
from respodiff.steering.serialization import TIMESTEPS

Row = ConceptModule | None | Sequence[ConceptModule]
"""What one image gets: a module, nothing, or several modules whose deltas are added."""


def modules_of(row: Row) -> list[ConceptModule]:
    """The modules of one image."""
    return [row] if isinstance(row, ConceptModule) else list(row or ())


class Deltas:
    """What the images of a call get.

    Args:
        rows: one entry per image. scale: factor on all of it.

    Attributes:
        stacked: window of timesteps -> sums (B or 1, C, H, W) of the modules that act in it; one row of one image counts for all.

    Raises:
        ValueError: modules of one call have several shapes.
    """

    def __init__(self, rows: Sequence[Row], scale: float = 1.0) -> None:
        found = [modules_of(row) for row in rows]
        if len(shapes := {m.shape for row in found for m in row}) > 1:
            one = next((row for row in found if len({m.shape for m in row}) > 1), None)
            what = f"modules of one image have shapes {[m.shape for m in one]}" if one else f"modules have shapes {sorted(shapes)}"
            raise ValueError(f"{what}; resize them to one with ConceptModule.resize")
        self.stacked: dict[tuple[int, int], Tensor] = {}
        for window in sorted({m.header.timesteps for row in found for m in row}) if scale else ():
            acting = [[m.delta for m in row if m.header.timesteps == window] for row in found]
            sums = [torch.stack(deltas).sum(0) if deltas else torch.zeros(*shapes) for deltas in acting]
            self.stacked[window] = torch.stack(sums) * scale
        self._cache: dict[tuple[Any, ...], Tensor] = {}
        self._resized: set[tuple[int, int]] = set()  # sizes that were warned of

    @property
    def reads_timesteps(self) -> bool:
        """Whether a module acts at some timesteps alone."""
        return any(window != TIMESTEPS for window in self.stacked)

    def at(self, size: tuple[int, int], h: Tensor, t: Tensor) -> Tensor | None:
        """What is added (B or 1, C, H, W) at the size of h's bottleneck; None for nothing.

        Args:
            h: of the images; its dtype and device count. t: timesteps (B,), (1,) or () of the images, read where a module has a window.
        """
        out = None
        for window, r in self.stacked.items():
            part = self._fitted(window, r, size, h.device, h.dtype)
            if window != TIMESTEPS:
                part = part * ((window[0] <= t) & (t < window[1])).view(-1, 1, 1, 1).to(part)
            out = part if out is None else out + part
        return out

    def clear(self) -> None:
        """Forget what was put on devices."""
        self._cache.clear()

    def _fitted(self, window: tuple[int, int], r: Tensor, size: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Tensor:
        """r (B or 1, C, H, W) at a size, on a device, in a dtype, made once each; float32 stays the master copy."""
        key = (window, size, device, dtype)
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
