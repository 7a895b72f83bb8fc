"""Provides initial noises, which follow from (run seed, prompt id, repeat) alone, and the shapes of latents."""

from __future__ import annotations

from math import lcm, sqrt
from typing import Any

import torch
from torch import Tensor

from respodiff.data.records import noise_seed
from respodiff.pipelines.registry import backbone, spec_of

Size = tuple[int, int]
"""(height, width) of an image in pixels."""


def noise(pipe: Any, seed: int, prompt_id: str, repeat: int, size: Size | None = None) -> Tensor:
    """Start latent (1, C, H, W) of one image, float32 on the CPU; ``size`` None is the model's own."""
    return torch.randn(1, *latent_shape(pipe, *(size or ())), generator=noise_generator(seed, prompt_id, repeat))


def to_pipeline_format(pipe: Any, latents: Tensor) -> Tensor:
    """Latents (B, C, H, W) as the pipeline takes them."""
    latents = latents.to(pipe._execution_device, backbone(pipe).dtype)  # an offloaded model is on another device until it is called
    return pack(latents, 2) if spec_of(pipe).packs == 2 else latents


def noise_generator(seed: int, stream: str, repeat: int) -> torch.Generator:
    """Random numbers of one image: ``stream`` is its prompt's id, or another name for other numbers."""
    return torch.Generator().manual_seed(noise_seed(seed, stream, repeat))


def latent_shape(pipe: Any, height: int = 0, width: int = 0) -> tuple[int, int, int]:
    """Shape (C, H, W) of a latent of an image of that size in pixels; 0: the size the model was trained at."""
    config, spec = backbone(pipe).config, spec_of(pipe)
    size: Any = getattr(config, "sample_size", None) or getattr(pipe, "default_sample_size", 0) or spec.side // pipe.vae_scale_factor
    default = (size, size) if isinstance(size, int) else tuple(size)
    scale, even = pixels_of_latent(pipe), 2 if spec.model == "transformer" and spec.packs != 1 else 1
    step = lcm(scale * even, spec.multiple)
    for name, pixels in (("height", height), ("width", width)):
        if pixels % step:
            raise ValueError(f"{name} is {pixels} pixels; allowed for this model: multiples of {step}, or 0 for its own size")
    h, w = height // scale or default[0] // spec.latent_pixels, width // scale or default[1] // spec.latent_pixels
    if spec.area and (h, w) != (drawn := _of_area(h, w, default, step // scale)):
        sides = " x ".join(str(side * scale) for side in drawn)
        raise ValueError(
            f"height x width is {h * scale} x {w * scale}, which {type(pipe).__name__} draws as {sides} pixels; give such a size"
        )
    channels = config.in_channels // spec.packs**2 if spec.packs else pipe.vae.config.latent_channels
    return int(channels), int(h), int(w)


def _of_area(height: int, width: int, own: tuple[int, ...], step: int) -> tuple[int, int]:
    """The sides, in multiples of ``step``, of an image that has the shape of ``height`` x ``width`` and the area of ``own``."""
    scale = sqrt(own[0] * own[1] / (height * width))
    return int(height * scale // step * step), int(width * scale // step * step)


def pixels_of_latent(pipe: Any) -> int:
    """Pixels of an image that one of the latent is wide."""
    return int(pipe.vae_scale_factor) * spec_of(pipe).latent_pixels


def pack(z: Tensor, side: int) -> Tensor:
    """Latents (B, C, H, W) as tokens (B, H W / side^2, side^2 C), squares of that ``side``."""
    b, c, h, w = z.shape
    return z.reshape(b, c, h // side, side, w // side, side).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // side**2, side**2 * c)


def unpack(tokens: Tensor, side: int, height: int, width: int) -> Tensor:
    """What `pack` made of latents (B, C, ``height``, ``width``) as such latents."""
    b, _, d = tokens.shape
    c, h, w = d // side**2, height // side, width // side
    return tokens.reshape(b, h, w, c, side, side).permute(0, 3, 1, 4, 2, 5).reshape(b, c, height, width)
