"""Where a picture starts: its noise follows from (run seed, prompt id, repeat) alone, or from the data set's own seed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from respodiff.adapters import adapter, backbone
from respodiff.config import GenerateConfig
from respodiff.denoiser import latent_shape, pack
from respodiff.jobs import Job, Size
from respodiff.records import noise_seed


def start(pipe: Any, config: GenerateConfig, job: Job) -> tuple[Tensor, torch.Generator]:
    """Start latent of a picture, and the generator for schedulers that draw noise at every step (ancestral ones, DDPM)."""
    if job.own_seed is None:
        latent = noise(pipe, config.seed, job.prompt.id, job.repeat, job.size)
        return latent, _generator(config.seed, f"{job.prompt.id}/steps", job.repeat)
    generator = torch.Generator("cpu").manual_seed((job.own_seed + job.repeat) % (1 << 64))
    return torch.randn(_latent_shape(pipe, job.size), generator=generator), generator


def noise(pipe: Any, seed: int, prompt_id: str, repeat: int, size: Size | None = None) -> Tensor:
    """Start latent (1, C, H, W) of one picture, float32 on the CPU, from these three and the latent's shape alone.

    ``size`` is (height, width) in pixels; None takes the model's own.
    """
    return torch.randn(_latent_shape(pipe, size), generator=_generator(seed, prompt_id, repeat))


def _latent_shape(pipe: Any, size: Size | None) -> tuple[int, int, int, int]:
    return 1, *latent_shape(pipe, *(size or (0, 0)))


def as_taken(pipe: Any, latents: Tensor) -> Tensor:
    """Latents (B, C, H, W) as the pipeline takes them."""
    latents = latents.to(backbone(pipe).device, backbone(pipe).dtype)
    return pack(latents) if adapter(pipe).family == "flux" else latents


def _generator(seed: int, stream: str, repeat: int) -> torch.Generator:
    return torch.Generator().manual_seed(noise_seed(seed, stream, repeat))
