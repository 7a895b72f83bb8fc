"""The autoencoder: 128 x 128 images to latents of 16 x 16 and back, by absolute, squared and edge differences with a little KL."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

KL = 1e-4


class AutoencoderTask:
    """Batches and losses.

    Args:
        pixels: uint8 (N, 3, 128, 128). fast: bfloat16; not the same bits from one machine to another.
    """

    def __init__(self, network: Any, pixels: torch.Tensor, batch: int, fast: bool = False) -> None:
        self.network, self.pixels, self.batch, self.fast = network, pixels, batch, fast
        self.device = next(network.parameters()).device

    def __call__(self, generator: torch.Generator) -> torch.Tensor:
        """``mean|d| + .5 mean d^2 + .5 mean|edges of d| + 1e-4 KL`` with d the difference of image and reconstruction in [-1, 1]."""
        chosen = torch.randint(len(self.pixels), (self.batch,), generator=generator)
        x = moved(unit(self.pixels[chosen].to(self.device)), *_move(generator, 12))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.fast):
            posterior = self.network.encode(x).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(x.device)
            y = self.network.decode(posterior.mean + posterior.std * noise).sample
        d = y.float() - x
        edges = (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()
        loss: torch.Tensor = d.abs().mean() + 0.5 * d.pow(2).mean() + 0.5 * edges
        kl: torch.Tensor = posterior.kl().mean() / posterior.mean[0].numel()
        return loss + KL * kl


def unit(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 as float in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def moved(x: torch.Tensor, flip: bool, dx: int, dy: int) -> torch.Tensor:
    """Mirrored, and shifted on white."""
    far = max(abs(dx), abs(dy))
    x = x.flip(-1) if flip else x
    if not far:
        return x
    h, w = x.shape[-2:]
    return F.pad(x, (far,) * 4, value=1.0)[..., far + dy : far + dy + h, far + dx : far + dx + w]


def _move(generator: torch.Generator, far: int) -> tuple[bool, int, int]:
    flip, dx, dy = (int(v) for v in torch.randint(0, 2 * far + 1, (3,), generator=generator))
    return flip % 2 == 1, dx - far, dy - far


@torch.no_grad()
def latents_of(network: Any, pixels: torch.Tensor, variants: int) -> torch.Tensor:
    """Latents (variants, N, C, 16, 16) in half precision: plain, mirrored, and shifted a little."""
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(0)
    moves = [(False, 0, 0), (True, 0, 0), *(_move(generator, 6) for _ in range(variants))][:variants]
    found = []
    for move in moves:
        parts = [network.encode(moved(unit(p.to(device)), *move)).latent_dist.mode().half() for p in pixels.split(64)]
        found.append(torch.cat(parts))
    return torch.stack(found)


@torch.no_grad()
def psnr(network: Any, pixels: torch.Tensor) -> float:
    """Peak signal-to-noise ratio of reconstructions in decibel, over all pixels of all images."""
    device = next(network.parameters()).device
    squares = [
        (network.decode(network.encode(x).latent_dist.mode()).sample.clamp(-1, 1) - x).pow(2).mean((1, 2, 3))
        for x in (unit(p.to(device)) for p in pixels.split(64))
    ]
    return 10 * math.log10(4 / torch.cat(squares).mean().item())
