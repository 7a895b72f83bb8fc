"""Sampling loops written out by hand over the raw models: no pipeline, no hook, nothing of the library. What steering is checked against.

A shift (C, H, W) is added behind the mid block (or the middle transformer block) of the conditional rows, as the paper says, by running the
parts of the model one after the other.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import LCMScheduler
from tests.drawing import GUIDANCE, STRENGTH, draw, input_images
from tests.tiny_models import SIZE
from torch import Tensor
from torch.nn.functional import interpolate


def raw_unet(u: Any, x: Tensor, t: Tensor, context: Tensor, shift: Tensor, **more: Any) -> Tensor:
    """One forward of a UNet, part by part; ``shift`` (R, C, H, W) is added to h. more: pooled, time_ids, timestep_cond, down, mid."""
    emb = u.time_embedding(u.time_proj(t.expand(len(x))).to(x.dtype), more.get("timestep_cond"))
    if "pooled" in more:
        ids = u.add_time_proj(more["time_ids"].flatten()).reshape(len(x), -1)
        emb = emb + u.add_embedding(torch.cat([more["pooled"], ids.to(x.dtype)], -1))
    h = u.conv_in(x)
    skips = [h]
    for block in u.down_blocks:
        attends = {"encoder_hidden_states": context} if getattr(block, "has_cross_attention", False) else {}
        h, found = block(hidden_states=h, temb=emb, **attends)
        skips += found
    h = u.mid_block(h, emb, encoder_hidden_states=context) + shift
    if "down" in more:
        skips = [a + b for a, b in zip(skips, more["down"], strict=True)]
        h = h + more["mid"]
    for block in u.up_blocks:
        k = len(block.resnets)
        taken, skips = tuple(skips[-k:]), skips[:-k]
        attends = {"encoder_hidden_states": context} if getattr(block, "has_cross_attention", False) else {}
        size = skips[-1].shape[2:] if skips else None
        h = block(hidden_states=h, temb=emb, res_hidden_states_tuple=taken, upsample_size=size, **attends)
    out: Tensor = u.conv_out(u.conv_act(u.conv_norm_out(h)))
    return out


def _clip(encoder: Any, tokenizer: Any, prompt: str) -> Any:
    ids = tokenizer([prompt], padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt").input_ids
    return encoder(ids, output_hidden_states=True)


def conditions(pipe: Any, prompt: str, height: int, width: int) -> dict[str, Tensor]:
    """Embeddings of the prompt, one row. SDXL: second to last layer of both encoders, pooled output of the second, sizes."""
    first = _clip(pipe.text_encoder, pipe.tokenizer, prompt)
    if not hasattr(pipe, "text_encoder_2"):
        return {"context": first[0]}
    second = _clip(pipe.text_encoder_2, pipe.tokenizer_2, prompt)
    context = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
    sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
    return {"context": context, "pooled": second[0], "time_ids": sizes}


def nothing(pipe: Any, condition: Mapping[str, Tensor], height: int, width: int) -> dict[str, Tensor]:
    """The unconditional row: the empty prompt; for SDXL zeros."""
    if "pooled" not in condition:
        return conditions(pipe, "", height, width)
    return {**condition, "context": torch.zeros_like(condition["context"]), "pooled": torch.zeros_like(condition["pooled"])}


def _pixels(image: Any) -> Tensor:
    x = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
    return x.permute(2, 0, 1)[None] if x.ndim == 3 else x[None, None]


class Loop:
    """One image of one pipeline by hand. ``delta`` (C, H, W); the random numbers are drawn in the order in which the pipelines draw them."""

    def __init__(self, pipe: Any, delta: Tensor, prompt: str, steps: int, guidance: float, height: int, width: int) -> None:
        self.pipe, self.unet, self.scheduler, self.vae = pipe, pipe.unet, pipe.scheduler, pipe.vae
        self.delta, self.guidance, self.name = delta, guidance, type(pipe).__name__
        self.generator = torch.Generator().manual_seed(0)
        self.shape = (1, pipe.vae.config.latent_channels, height // pipe.vae_scale_factor, width // pipe.vae_scale_factor)
        self.images = input_images(pipe, height, width)
        self.embedded = self.unet.config.time_cond_proj_dim is not None
        cond = conditions(pipe, prompt, height, width)
        uncond = nothing(pipe, cond, height, width)
        guided = guidance > 1 and (not self.embedded or ("ControlNet" in self.name and len(self.images) > 1))
        self.rows = ["uncond", "cond"] if guided else ["cond"]
        if "Pix2Pix" in self.name and guided:
            self.rows = ["cond", "image", "uncond"]
        self.told = {k: torch.cat([cond[k] if r == "cond" else uncond[k] for r in self.rows]) for k in cond}
        self.shift = torch.stack([delta if r == "cond" else torch.zeros_like(delta) for r in self.rows])
        self.edits = bool(self.images) and "Pix2Pix" not in self.name and "ControlNetPipeline" not in self.name
        self.timesteps = self._timesteps(steps + self.edits)
        self._start()

    def _randn(self) -> Tensor:
        return torch.randn(self.shape, generator=self.generator)

    def _encode(self, x: Tensor) -> Tensor:
        z: Tensor = self.vae.encode(x).latent_dist.sample(self.generator) * self.vae.config.scaling_factor
        return z

    def _timesteps(self, steps: int) -> Tensor:
        if not self.edits:
            self.scheduler.set_timesteps(steps)
        elif isinstance(self.scheduler, LCMScheduler):
            self.scheduler.set_timesteps(steps, strength=STRENGTH)
        else:
            self.scheduler.set_timesteps(steps)
            skip = max(steps - min(int(steps * STRENGTH), steps), 0) * self.scheduler.order
            left: Tensor = self.scheduler.timesteps[skip:]
            return left
        found: Tensor = self.scheduler.timesteps
        return found

    def _start(self) -> None:
        """The first latent, and what the loop needs besides: mask, channels to append, image of the ControlNet."""
        self.extra, self.mask = None, None
        self.control = _pixels(self.images["control_image"]) if "control_image" in self.images else None
        if "ControlNetPipeline" in self.name:
            self.control = _pixels(self.images["image"])
        scale = inspect.signature(type(self.pipe).__call__).parameters.get("controlnet_conditioning_scale")
        self.scale = scale.default if scale else 1.0
        if "Pix2Pix" in self.name:
            z = self.vae.encode(_pixels(self.images["image"]) * 2 - 1).latent_dist.mode()
            self.extra = torch.cat([z if r != "uncond" else torch.zeros_like(z) for r in self.rows])
        if not self.edits:
            self.z = self._randn() * self.scheduler.init_noise_sigma
            return
        image = _pixels(self.images["image"]) * 2 - 1
        self.origin = self._encode(image)
        self.noise = self._randn()
        self.z = self.scheduler.add_noise(self.origin, self.noise, self.timesteps[:1])
        if "mask_image" in self.images:
            mask = (_pixels(self.images["mask_image"]) >= 0.5).float()
            self.mask = interpolate(mask, self.shape[2:])
            if self.unet.config.in_channels == 9:
                masked = self._encode(image * (mask < 0.5))
                self.extra = torch.cat([torch.cat([self.mask, masked], 1)] * len(self.rows))
                self.mask = None

    @torch.no_grad()
    def run(self) -> Tensor:
        """The final latent."""
        out: Tensor = self.z
        for i, t in enumerate(self.timesteps):
            e = self._guide(self._forward(t))
            kwargs = {"generator": self.generator} if "generator" in self.scheduler.step.__code__.co_varnames else {}
            step = self.scheduler.step(e, t, self.z, **kwargs)
            self.z = step.prev_sample
            out = step.denoised if isinstance(self.scheduler, LCMScheduler) and "Latent" in self.name else self.z
            if self.mask is not None:
                kept = self.origin
                if i < len(self.timesteps) - 1:
                    kept = self.scheduler.add_noise(self.origin, self.noise, self.timesteps[i + 1 : i + 2])
                self.z = out = (1 - self.mask) * kept + self.mask * self.z
        return out

    def _forward(self, t: Tensor) -> Tensor:
        n, told = len(self.rows), dict(self.told)
        x = self.scheduler.scale_model_input(torch.cat([self.z] * n), t)
        context = told.pop("context")
        if self.control is not None:
            added = {"added_cond_kwargs": {"text_embeds": told["pooled"], "time_ids": told["time_ids"]}} if "pooled" in told else {}
            down, mid = self.pipe.controlnet(x, t, context, torch.cat([self.control] * n), self.scale, return_dict=False, **added)
            told |= {"down": down, "mid": mid}
        if self.embedded:
            w = torch.full((1,), self.guidance - 1)
            told["timestep_cond"] = self.pipe.get_guidance_scale_embedding(w, self.unet.config.time_cond_proj_dim)
        if self.extra is not None:
            x = torch.cat([x, self.extra], 1)
        return raw_unet(self.unet, x, t, context, self.shift, **told)

    def _guide(self, e: Tensor) -> Tensor:
        w, parts = self.guidance, dict(zip(self.rows, e.chunk(len(self.rows)), strict=True))
        if len(parts) == 1:
            alone: Tensor = parts["cond"]
            return alone
        if "image" in parts:
            return parts["uncond"] + w * (parts["cond"] - parts["image"]) + 1.5 * (parts["image"] - parts["uncond"])
        return parts["uncond"] + w * (parts["cond"] - parts["uncond"])


def raw_latents(
    pipe: Any, delta: Tensor, prompt: str = "a doctor", *, steps: int = 2, guidance: float = GUIDANCE, height: int = SIZE, width: int = SIZE
) -> Tensor:
    """Final latents (1, C, H, W) of what `tests.tiny_models.draw` draws steered by ``delta``, by hand."""
    return Loop(pipe, delta, prompt, steps, guidance, height, width).run()


@torch.no_grad()
def raw_flow(pipe: Any, delta: Tensor, prompt: str = "a doctor", *, steps: int = 2, guidance: float = GUIDANCE) -> Tensor:
    """The same for the transformers (text to image, square): delta (D, 1, 1) on the image stream behind the middle block, every token."""
    model, scheduler, flux = pipe.transformer, pipe.scheduler, "Flux" in type(pipe).__name__
    side = SIZE // pipe.vae_scale_factor
    z = torch.randn(1, pipe.vae.config.latent_channels, side, side, generator=torch.Generator().manual_seed(0))
    shift = delta.flatten()
    if flux:
        z = z.reshape(1, -1, side // 2, 2, side // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(1, side * side // 4, -1)
        context, pooled, text_ids = pipe.encode_prompt(prompt, None)
        c = scheduler.config
        m = (c.max_shift - c.base_shift) / (c.max_image_seq_len - c.base_image_seq_len)
        mu = z.shape[1] * m + c.base_shift - m * c.base_image_seq_len
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
        grid = [[0, i, j] for i in range(side // 2) for j in range(side // 2)]
        rotary = model.pos_embed(torch.cat([text_ids, torch.tensor(grid, dtype=z.dtype)]))
    else:
        context, negative, pooled, negative_pooled = pipe.encode_prompt(prompt, None, None)
        context, pooled = torch.cat([negative, context]), torch.cat([negative_pooled, pooled])
        shift = torch.stack([torch.zeros_like(shift), shift])[:, None]
        scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        if flux:
            e = _flux(model, z, t, context, pooled, rotary, shift, guidance if model.config.guidance_embeds else None)
        else:
            uncond, cond = _sd3(model, torch.cat([z, z]), t.expand(2), context, pooled, shift).chunk(2)
            e = uncond + guidance * (cond - uncond)
        z = scheduler.step(e, t, z).prev_sample
    return z


def _sd3(model: Any, z: Tensor, t: Tensor, context: Tensor, pooled: Tensor, shift: Tensor) -> Tensor:
    x, temb, text = model.pos_embed(z), model.time_text_embed(t, pooled), model.context_embedder(context)
    for i, block in enumerate(model.transformer_blocks):
        text, x = block(hidden_states=x, encoder_hidden_states=text, temb=temb)
        if i == len(model.transformer_blocks) // 2:
            x = x + shift
    x = model.proj_out(model.norm_out(x, temb))
    h, w = z.shape[2] // 2, z.shape[3] // 2
    out: Tensor = x.reshape(len(z), h, w, 2, 2, -1).permute(0, 5, 1, 3, 2, 4).reshape(z.shape)
    return out


def _flux(model: Any, z: Tensor, t: Tensor, context: Tensor, pooled: Tensor, rotary: Any, shift: Tensor, guidance: float | None) -> Tensor:
    x, text, time = model.x_embedder(z), model.context_embedder(context), t.reshape(1).to(z.dtype)
    told = [] if guidance is None else [torch.tensor([guidance * 1000.0])]
    temb = model.time_text_embed(time, *told, pooled)
    for i, block in enumerate(model.transformer_blocks):
        text, x = block(hidden_states=x, encoder_hidden_states=text, temb=temb, image_rotary_emb=rotary)
        if i == len(model.transformer_blocks) - 1:
            x = x + shift
    for block in model.single_transformer_blocks:
        text, x = block(hidden_states=x, encoder_hidden_states=text, temb=temb, image_rotary_emb=rotary)
    out: Tensor = model.proj_out(model.norm_out(x, temb))
    return out


TWICE = ("Flux2Klein", "QwenImage", "Chroma", "CogView4", "Lumina2", "StableDiffusionXLModular")
"""Beginnings of classes that call their model once for each of two conditions."""


@torch.no_grad()
def patched(pipe: Any, delta: Tensor) -> Tensor:
    """Final latents of other classes: their own call, with the forward of the middle block replaced by one that adds the delta by hand.

    Guided rows are the second half of a call (Z-Image: the first), or every first of two calls. Of reference images no token is changed.
    """
    name = type(pipe).__name__
    model = pipe.unet if "Modular" in name else pipe.transformer
    lists = ("blocks", "double_stream_blocks", "layers", "transformer_blocks")
    blocks = next((getattr(model, name) for name in lists if hasattr(model, name)), None)
    own = SIZE // pipe.vae_scale_factor
    n = own * own // 4
    image = (
        slice(-n, None)
        if "Lumina" in name
        else slice(0, n)
        if name.startswith(("ZImage", "HiDream", "QwenImage", "Flux2"))
        else slice(None)
    )
    twin, first = name.startswith(("Chroma", "Flux", "HiDream")), name.startswith(("CogView", "HiDream"))
    block, calls = model.mid_block if blocks is None else blocks[-1 if twin else len(blocks) // 2], [0]
    forward = block.forward

    def shifted(*args: Any, **kwargs: Any) -> Any:
        found, calls[0] = forward(*args, **kwargs), calls[0] + 1
        parts = list(found) if isinstance(found, tuple) else [found]
        place = 0 if first or len(parts) == 1 else 1
        h, rows = parts[place].clone(), slice(0, 1) if len(parts[place]) == 1 or "ZImage" in name else slice(1, 2)
        if not name.startswith(TWICE) or calls[0] % 2:
            if h.ndim == 4:
                h[rows] += delta
            else:
                h[rows, image] += delta.flatten()
        parts[place] = h
        return tuple(parts) if isinstance(found, tuple) else parts[0]

    block.forward = shifted
    try:
        return draw(pipe)
    finally:
        del block.forward
