"""Provides what the nodes calculate: the offset that is added to h, the output of a UNet's middle block, and the concepts of a batch."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .module_file import TIMESTEPS, Module

Patch = Callable[[Tensor, Sequence[int], Tensor], Tensor]
"""(h, rows, sigmas) -> h.

h (R, C, H, W) holds a block of B images for each entry of ``rows`` (ComfyUI's ``cond_or_uncond``): 0 is conditional, 1 unconditional.
``sigmas`` (B,) or (1,) are those of the images.
"""


def make_patch(modules: Sequence[Module], scale: float, window: tuple[int, int], timestep: Callable[[Tensor], Tensor]) -> Patch:
    """The function that adds ``scale * (r + s)`` to h of the conditional rows, as `respodiff.steer` does.

    Args:
        modules: one for all images, or one per image.
        window: (low, high): timesteps that the modules' own windows are narrowed to.
        timestep: sigmas (B,) -> timesteps (B,), 0 to below 1000; called if a window leaves timesteps out.

    Raises:
        ValueError: for a window that leaves a module no timestep, or modules of several numbers of channels; (at the call) for rows that
            cannot be told apart, another number of images than of modules, or another number of channels.
    """
    if not math.isfinite(scale):
        raise ValueError(f"scale is {scale}; allowed: any finite number")
    windows = [(max(m.timesteps[0], window[0]), min(m.timesteps[1], window[1])) for m in modules]
    for module, (low, high) in zip(modules, windows, strict=True):
        if low >= high:
            raise ValueError(
                f"end {window[0]} to start {window[1]} leaves module {module.name!r} no timestep; allowed: end < start, "
                f"and some of its own timesteps, {module.timesteps[0]} to below {module.timesteps[1]}"
            )
    if len(channels := {len(m.ram) for m in modules}) != 1:
        raise ValueError(f"the modules have {sorted(channels)} channels; give modules of one model")
    (count,) = channels
    lows, highs = torch.tensor(windows).T[..., None, None, None]
    always = set(windows) == {TIMESTEPS}
    cache: dict[tuple[object, ...], Tensor] = {}

    def offsets(h: Tensor) -> Tensor:
        """(1 or B, C, H, W) at the size, on the device and in the dtype of h; float32 stays the master copy."""
        size = tuple(h.shape[2:])
        key = (size, h.device, h.dtype)
        if key not in cache:
            made = {id(m): _fitted(m, scale, size).to(h.device, h.dtype) for m in modules}
            cache[key] = torch.stack([made[id(m)] for m in modules])
        return cache[key]

    def patch(h: Tensor, rows: Sequence[int], sigmas: Tensor) -> Tensor:
        if not rows or not set(rows) <= {0, 1} or len(h) % len(rows):
            raise ValueError(
                f"cond_or_uncond is {list(rows)} for {len(h)} rows, so which rows are conditional is unknown; "
                "use a sampler with one positive and one negative prompt"
            )
        if h.shape[1] != count:
            raise ValueError(f"h has {h.shape[1]} channels, module {modules[0].name!r} has {count}; train one for this model")
        images = len(h) // len(rows)
        if len(modules) not in (1, images):
            raise ValueError(
                f"the schedule has {len(modules)} images, the batch {images}; connect the latent that is sampled to both nodes"
            )
        added = offsets(h)
        if not always:
            t = timestep(sigmas).view(-1, 1, 1, 1)
            added = added * ((lows.to(t.device) <= t) & (t < highs.to(t.device))).to(added)
        out = h.clone()
        for i, kind in enumerate(rows):
            if kind == 0:
                out[i * images : (i + 1) * images] += added
        return out

    return patch


def _fitted(module: Module, scale: float, size: tuple[int, ...]) -> Tensor:
    """scale * (r + s) at a size (H, W), (C, H, W)."""
    delta = module.delta(scale)
    if delta.shape[1:] == (1, 1):
        return delta.expand(-1, *size)
    if delta.shape[1:] == size:
        return delta
    logging.warning(
        f"respodiff: module {module.name!r} of {tuple(delta.shape[1:])} is resized to {size} of this image size; check its effect"
    )
    return interpolate(delta[None], size, mode="bilinear", antialias=True)[0]


def drawn(proportions: Sequence[float], images: int, draw: str, seed: int) -> list[int]:
    """Index of the concept of each image.

    Args:
        proportions: weight of each concept, 0 or more.
        draw: ``exact`` keeps every count within one image of its share, in random order; ``random`` draws each image on its own.
    """
    if not all(math.isfinite(p) and p >= 0 for p in proportions) or not sum(proportions) > 0:
        raise ValueError(f"proportions is {list(proportions)}; allowed: numbers of 0 or more, not all 0")
    rng, concepts = random.Random(seed), range(len(proportions))
    if draw == "random":
        return rng.choices(concepts, proportions, k=images)
    start, total, at = rng.random(), sum(proportions), 0.0
    bounds = [0]
    for p in proportions:  # systematic sampling: the mean count over seeds is the share
        at += p
        bounds.append(math.floor(at / total * images + start))
    out = [i for i in concepts for _ in range(bounds[i + 1] - bounds[i])]
    rng.shuffle(out)
    return out
