"""The denoiser: text encoder and UNet together, predicting the noise in latents of the planted world's images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor

from recipes.embedded_model.models import make_scheduler
from recipes.embedded_model.tokens import encode
from recipes.embedded_model.world import Caption

P_EMPTY = 0.1
SNR = 5.0
"""Signal-to-noise ratio above which a timestep counts less."""


class PairTask:
    """Batches of captions, latents and noises.

    Args:
        latents: (V, N, C, 16, 16), variants of every image. scale: that makes them of unit variance. captions: pairs of text and image.
    """

    def __init__(
        self, tokenizer: Any, latents: torch.Tensor, scale: float, captions: Sequence[Caption], batch: int, device: torch.device
    ) -> None:
        self.batch, self.scale, self.device = batch, scale, device
        self.latents = latents.to(device)
        self.texts = encode(tokenizer, [c.text for c in captions]).to(device)
        self.empty = encode(tokenizer, [""])[0].to(device)
        self.images = torch.tensor([c.image for c in captions], device=device)

    def drawn(self, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Token ids (B, 32), latents and noises (B, C, 16, 16) of a batch. One text in ten is left empty for guidance."""
        n = self.batch
        pair = torch.randint(len(self.images), (n,), generator=generator).to(self.device)
        variant = torch.randint(len(self.latents), (n,), generator=generator).to(self.device)
        silent = (torch.rand(n, generator=generator) < P_EMPTY).to(self.device)
        z = self.latents[variant, self.images[pair]].float() * self.scale
        return torch.where(silent[:, None], self.empty, self.texts[pair]), z, self._noise(z, generator)

    def _noise(self, z: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Drawn on the device from a seed of the one generator, so that a GPU does not wait for the CPU."""
        seed = int(torch.randint(2**31, (1,), generator=generator))
        return torch.empty_like(z).normal_(generator=torch.Generator(z.device).manual_seed(seed))


class DenoiserTask(PairTask):
    """Batches and losses.

    Args:
        network: with the parts ``unet`` and ``text``. fast: bfloat16 and a compiled UNet; not the same bits from one machine to another.
        skew: timesteps are ``T u^skew``, u even in [0, 1); 1 is evenly, 1/3 puts two thirds of them into the noisier third.
    """

    def __init__(
        self,
        network: Any,
        tokenizer: Any,
        latents: torch.Tensor,
        scale: float,
        captions: Sequence[Caption],
        batch: int,
        fast: bool = False,
        skew: float = 1.0,
    ) -> None:
        super().__init__(tokenizer, latents, scale, captions, batch, next(network.parameters()).device)
        self.network, self.fast, self.skew = network, fast, skew
        if fast:
            network["unet"].set_attn_processor(AttnProcessor())  # on CPUs its backward pass is faster than that of the fused one
        self.unet = torch.compile(network["unet"]) if fast else network["unet"]
        self.alphas = make_scheduler().alphas_cumprod.to(self.device)

    def __call__(self, generator: torch.Generator) -> torch.Tensor:
        """``mean min(SNR, 5) / SNR (noise - prediction)^2`` (Min-SNR, arXiv 2303.09556)."""
        t = (len(self.alphas) * torch.rand(self.batch, generator=generator, dtype=torch.float64) ** self.skew).long().to(self.device)
        ids, z, noise = self.drawn(generator)
        a = self.alphas[t].view(-1, 1, 1, 1)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.fast):
            states = self.network["text"](input_ids=ids)[0]
            predicted = self.unet(a.sqrt() * z + (1 - a).sqrt() * noise, t, states).sample
        weight = (SNR * (1 - a) / a).clamp(max=1)
        loss: torch.Tensor = (weight * (predicted.float() - noise).pow(2)).mean()
        return loss
