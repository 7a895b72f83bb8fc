"""Encodes prompts, and provides a pipeline's model as a function of latents, timestep and condition, the same for every family.

A condition is a dictionary of tensors, rows first: ``context`` (B, T, D), the prompt embeddings; ``pooled`` (B, P) of SDXL, SD3 and Flux;
``time_ids`` (B, 6) of SDXL. Latents are (B, C, H, W); Flux's packing into tokens happens inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from respodiff.pipelines.bottleneck import site_shape
from respodiff.pipelines.latents import latent_shape, pack
from respodiff.pipelines.registry import backbone, site_of, spec_of

Condition = Mapping[str, Tensor]


def repeat(condition: Condition, n: int) -> dict[str, Tensor]:
    """A condition of one row for n rows, without copies."""
    return {k: v.expand(n, *v.shape[1:]) for k, v in condition.items()}


def join(conditions: Sequence[Condition]) -> dict[str, Tensor]:
    """The rows of several conditions as one condition."""
    return {k: torch.cat([c[k] for c in conditions]) for k in conditions[0]}


def encode_prompts(pipe: Any, prompts: Sequence[str]) -> Tensor:
    """Text embeddings (N, T, D) of the prompts, as the pipeline makes them; ValueError for a prompt that would be cut off."""
    return encode_with_pooled(pipe, prompts)[0]


@torch.no_grad()
def encode_with_pooled(pipe: Any, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
    """Text embeddings (N, T, D), and pooled embeddings (N, P) for the families that have them. Errors as `encode_prompts`."""
    check_length(pipe, prompts)
    family, unique = spec_of(pipe).family, list(dict.fromkeys(prompts))
    order = [unique.index(p) for p in prompts]
    if family == "sd":
        ids = pipe.tokenizer(unique, padding="max_length", max_length=pipe.tokenizer.model_max_length, return_tensors="pt").input_ids
        return pipe.text_encoder(ids.to(pipe.text_encoder.device))[0][order], None
    device = pipe._execution_device
    if family == "flux":
        context, pooled, _ = pipe.encode_prompt(unique, None, device=device)
    else:
        second = {"prompt_2": None, **({"prompt_3": None} if family == "sd3" else {})}
        context, _, pooled, _ = pipe.encode_prompt(unique, **second, device=device, do_classifier_free_guidance=False)
    context, pooled = context[order], pooled[order]
    if family == "sdxl" and pipe.config.get("force_zeros_for_empty_prompt"):
        filled = torch.tensor([float(bool(p)) for p in prompts], device=context.device, dtype=context.dtype)
        context, pooled = context * filled[:, None, None], pooled * filled[:, None]
    return context, pooled


def check_length(pipe: Any, prompts: Sequence[str]) -> None:
    """ValueError if a prompt has more tokens than the tokenizer takes. Of several tokenizers the one that takes most decides."""
    tokenizers = [t for name in ("tokenizer", "tokenizer_2", "tokenizer_3") if (t := getattr(pipe, name, None)) is not None]
    tokenizer = max(tokenizers, key=lambda t: t.model_max_length)
    # T5 is read up to 256 tokens by SD3 and 512 by Flux; its own limit may be a number that stands for none.
    limit = min(tokenizer.model_max_length, {"sd3": 256, "flux": 512}.get(spec_of(pipe).family, 1 << 30))
    for prompt in dict.fromkeys(prompts):
        if (n := len(tokenizer(prompt).input_ids)) > limit:
            raise ValueError(f"prompt {prompt[:60]!r}... has {n} tokens; this model takes {limit}, start and end included: shorten it")


def is_offloaded(model: Any) -> bool:
    """Whether the weights are moved during each call, by accelerate or by group offloading of diffusers."""
    registries = (getattr(module, "_diffusers_hook", None) for module in model.modules())
    return hasattr(model, "_hf_hook") or any(r is not None and r.get_hook("group_offloading") is not None for r in registries)


class Denoiser:
    """The steered model of a pipeline at one image size.

    Attributes:
        model, site: the UNet or transformer and the name of its site. shape: (C, H, W) of a module for it.
        size: height and width of the image in pixels. latent: (C, H, W) of a latent.
        guides: whether classifier-free guidance is used, with scale ``guidance``; if not, that is embedded where the model takes one.
        forwards: evaluations of one sample so far.
    """

    def __init__(self, pipe: Any, height: int = 0, width: int = 0, guidance: float = 1.0) -> None:
        self.pipe, self.family = pipe, spec_of(pipe).family
        self.model, self.guidance, self.forwards = backbone(pipe), guidance, 0
        self.device: torch.device = self.model.device
        self.dtype: torch.dtype = self.model.dtype
        self.site = site_of(pipe)
        if is_offloaded(self.model):
            raise ValueError("the model is offloaded, which moves it during each call; train without offloading, and offload to generate")
        if "DeepCache" in getattr(self.model.forward, "__module__", ""):
            raise ValueError("DeepCache is enabled, which skips most of the model: disable it for training, and enable it to generate")
        config = self.model.config
        if self.family == "sd3" and config.in_channels != pipe.vae.config.latent_channels:
            raise ValueError(
                f"the transformer takes {config.in_channels} channels, mask included; train on the text-to-image checkpoint, steer this one"
            )
        self.latent = latent_shape(pipe, height, width)
        self.size = (self.latent[1] * pipe.vae_scale_factor, self.latent[2] * pipe.vae_scale_factor)
        self.shape = site_shape(self.model, *self.latent[1:], site=self.site)
        self.embeds_guidance = bool(getattr(config, "time_cond_proj_dim", None) or getattr(config, "guidance_embeds", False))
        self.guides = self.family != "flux" and not self.embeds_guidance
        self._extra = self._extra_channels() if spec_of(pipe).model == "unet" else None

    @cached_property
    def empty(self) -> Condition:
        """Condition of the empty prompt."""
        return self.encode([""])[0]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Conditions of one row each, on the model's device."""
        if not prompts:
            return []
        context, pooled = encode_with_pooled(self.pipe, prompts)
        found = {"context": context} if pooled is None else {"context": context, "pooled": pooled}
        if self.family == "sdxl":
            # Original size, crop from the corner, target size; refiners end in an aesthetic score.
            last = [6.0] if getattr(self.pipe.config, "requires_aesthetics_score", False) else [*self.size]
            found["time_ids"] = torch.tensor([[*self.size, 0, 0, *last]], dtype=torch.float32).expand(len(prompts), -1)
        found = {k: v.to(self.device, self.dtype) for k, v in found.items()}  # the pipelines cast time ids as well
        return [{k: v[i : i + 1] for k, v in found.items()} for i in range(len(prompts))]

    def __call__(self, z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Prediction (B, C, H, W) for latents z (B, C, H, W) at timesteps t (B,) or (), as the scheduler counts them."""
        self.forwards += len(z)
        if self.family == "flux":
            return self._flux(z, t, condition)
        more: dict[str, Any] = {"timestep": t, "encoder_hidden_states": condition["context"]}
        if self.family == "sd3":
            more |= {"timestep": t.expand(len(z)), "pooled_projections": condition["pooled"]}
        elif self.embeds_guidance:
            w = torch.full((len(z),), self.guidance - 1)
            embedded = self.pipe.get_guidance_scale_embedding(w, embedding_dim=self.model.config.time_cond_proj_dim)
            more["timestep_cond"] = embedded.to(z.device, z.dtype)
        if self.family == "sdxl":
            more["added_cond_kwargs"] = {"text_embeds": condition["pooled"], "time_ids": condition["time_ids"]}
        if self._extra is not None:
            z = torch.cat([z, self._extra.expand(len(z), -1, -1, -1)], 1)
        prediction: Tensor = self.model(z, **more, return_dict=False)[0]
        return prediction

    def sampler(self, steps: int) -> Any:
        """The scheduler of rollouts: DDIM (paper) whatever the pipeline's own is, LCM's for consistency models, Euler for flow matching.

        Where the pipeline has a solver of higher order, DDIM's timesteps are spaced as in the paper ("leading"), not as that solver wants them.
        """
        config = self.pipe.scheduler.config
        if self.family in ("sd3", "flux"):
            scheduler = FlowMatchEulerDiscreteScheduler.from_config(config, stochastic_sampling=False)
        elif getattr(self.model.config, "time_cond_proj_dim", None) or isinstance(self.pipe.scheduler, LCMScheduler):
            scheduler = LCMScheduler.from_config(config)
        else:
            solver = isinstance(self.pipe.scheduler, DPMSolverMultistepScheduler | UniPCMultistepScheduler)
            paper = {"timestep_spacing": "leading", "set_alpha_to_one": False} if solver else {}
            scheduler = DDIMScheduler.from_config(config, clip_sample=False, **paper)
        # Flux's pipelines give sigmas.
        more: dict[str, Any] = {"sigmas": [1 - i / steps for i in range(steps)]} if self.family == "flux" else {}
        if scheduler.config.get("use_dynamic_shifting"):
            # Linear in the number of tokens between the two sizes that the configuration names (Flux, SD 3.5).
            c = scheduler.config
            share = (self.latent[1] * self.latent[2] / 4 - c.base_image_seq_len) / (c.max_image_seq_len - c.base_image_seq_len)
            more["mu"] = c.base_shift + share * (c.max_shift - c.base_shift)
        scheduler.set_timesteps(steps, device=self.device, **more)
        return scheduler

    def _flux(self, z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        b, c, h, w = z.shape
        grid = torch.stack([torch.zeros(h // 2, w // 2), *torch.meshgrid(torch.arange(h // 2), torch.arange(w // 2), indexing="ij")], -1)
        prediction: Tensor = self.model(
            hidden_states=pack(z),
            timestep=(t.expand(b) / 1000).to(z.dtype),
            encoder_hidden_states=condition["context"],
            pooled_projections=condition["pooled"],
            img_ids=grid.reshape(-1, 3).to(z.device, z.dtype),
            txt_ids=z.new_zeros(condition["context"].shape[1], 3),
            guidance=z.new_full((b,), self.guidance, dtype=torch.float32) if self.embeds_guidance else None,
            return_dict=False,
        )[0]
        return prediction.reshape(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)

    @torch.no_grad()
    def _extra_channels(self) -> Tensor | None:
        """Channels (1, C, H, W) that inpainting and InstructPix2Pix append to a latent: everything masked over a blank image, no image."""
        extra = self.model.config.in_channels - self.latent[0]
        if not extra:
            return None
        if "mask_image" not in spec_of(self.pipe).images:
            return torch.zeros(1, extra, *self.latent[1:], device=self.device, dtype=self.dtype)
        blank = torch.zeros(1, 3, *self.size, device=self.pipe.vae.device, dtype=self.pipe.vae.dtype)
        masked = self.pipe.vae.encode(blank).latent_dist.mode() * self.pipe.vae.config.scaling_factor
        return torch.cat([torch.ones_like(masked[:, :1]), masked], 1).to(self.device, self.dtype)
