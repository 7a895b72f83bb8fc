"""The transformer, its sampler and its loss: PixArt's blocks, flow matching, the text encoder as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from recipes.embedded_model.denoiser import PairTask
from recipes.embedded_model.tokens import LENGTH
from recipes.embedded_model.world import Caption

MOST = 15_000_000
SIDE = 16
TOLD = 1000
"""Timesteps of the scheduler: the model is told this times the share of noise."""
PADDED = 300
"""Tokens that PixArt's pipeline pads a prompt to."""


def make_transformer(latent: int, text: int, width: int, layers: int, heads: int, patch: int) -> PixArtTransformer2DModel:
    """Velocities of latents (B, `latent`, 16, 16), told of text states (B, T, `text`) by cross-attention.

    Raises:
        ValueError: the sizes do not go together, or make more than 15,000,000 numbers.
    """
    if width % (4 * heads):
        raise ValueError(f"[model] has width {width} and heads {heads}; allowed: a width that is a multiple of four times the heads")
    if SIDE % patch:
        raise ValueError(f"[model] has patch {patch}; allowed: a divisor of {SIDE}")
    made = PixArtTransformer2DModel(
        sample_size=SIDE,
        patch_size=patch,
        in_channels=latent,
        out_channels=latent,
        num_layers=layers,
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        cross_attention_dim=width,
        caption_channels=text,
    )
    torch.nn.init.zeros_(made.proj_out.weight)
    if made.num_parameters() > MOST:
        raise ValueError(f"[model] has {made.num_parameters():,} numbers; allowed: {MOST:,}; lower width or layers")
    return made


def make_scheduler() -> DPMSolverMultistepScheduler:
    """DPM++ 2M on flow matching: a latent at share s of noise is ``(1 - s) z + s noise``, the model is told 1000 s."""
    return DPMSolverMultistepScheduler(num_train_timesteps=TOLD, prediction_type="flow_prediction", use_flow_sigmas=True)


class FlowTask(PairTask):
    """Batches and losses.

    Args:
        network: the transformer. text: the text encoder, which stays as it is. fast: bfloat16 and a compiled transformer; not the same bits
            from one machine to another. Others as in `PairTask`.
    """

    def __init__(
        self,
        network: PixArtTransformer2DModel,
        text: CLIPTextModel,
        tokenizer: Any,
        latents: torch.Tensor,
        scale: float,
        captions: Sequence[Caption],
        batch: int,
        fast: bool = False,
    ) -> None:
        super().__init__(tokenizer, latents, scale, captions, batch, network.device)
        self.text, self.fast = text.to(self.device).requires_grad_(False).eval(), fast
        self.network = torch.compile(network) if fast else network

    def shares(self, generator: torch.Generator) -> torch.Tensor:
        """Shares of noise (B,); their log-odds are standard normal (arXiv 2403.03206)."""
        return torch.randn(self.batch, generator=generator).sigmoid().to(self.device)

    def __call__(self, generator: torch.Generator) -> torch.Tensor:
        """``mean (noise - z - prediction)^2``."""
        share = self.shares(generator)
        ids, z, noise = self.drawn(generator)
        s = share.view(-1, 1, 1, 1)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.fast):
            predicted = self.network((1 - s) * z + s * noise, timestep=TOLD * share, **told(self.text, ids)).sample
        loss: torch.Tensor = (predicted.float() - (noise - z)).pow(2).mean()
        return loss


@torch.no_grad()
def told(text: CLIPTextModel, ids: torch.Tensor) -> dict[str, Any]:
    """What the transformer is told of token ids (B, T), as PixArt's pipeline does it: states, and which of them are of the text."""
    end = (ids == text.config.eos_token_id).long()
    mask = (end.cumsum(1) == end).long()  # up to the first end token; those behind it fill the row
    states = text(input_ids=ids, attention_mask=mask)[0]
    sizes = {"resolution": None, "aspect_ratio": None}
    return {"encoder_hidden_states": states, "encoder_attention_mask": mask, "added_cond_kwargs": sizes}


def padded(text: CLIPTextModel) -> CLIPTextModel:
    """The same text encoder with room for the 300 tokens that PixArt's pipeline pads to; its mask hides those behind the 32nd."""
    made = CLIPTextModel(CLIPTextConfig.from_dict({**text.config.to_dict(), "max_position_embeddings": PADDED}))
    weights = text.state_dict()
    (name,) = (key for key in weights if key.endswith("position_embedding.weight"))
    more = PADDED - len(weights[name])
    made.load_state_dict(weights | {name: torch.cat([weights[name], weights[name][-1:].expand(more, -1)])})
    return made.eval()


def flops(network: PixArtTransformer2DModel, text: CLIPTextModel) -> int:
    """Floating-point operations of training on one image: three forward passes of the transformer, one of the text encoder."""
    z = torch.zeros(1, network.config.in_channels, SIDE, SIDE, device=network.device)
    ids, t = torch.ones(1, LENGTH, dtype=torch.long, device=network.device), torch.ones(1, device=network.device)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as of_text:
        known = told(text, ids)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as of_network:
        network(z, timestep=t, **known)
    return int(3 * of_network.get_total_flops() + of_text.get_total_flops())
