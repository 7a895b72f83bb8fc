"""Provides calls of tiny pipelines, random modules for them, and comparisons of what they draw."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import ClassifierFreeGuidance, ModularPipeline
from PIL import Image
from tests.tiny_models import SIZE
from torch import Tensor

from respodiff.pipelines.bottleneck import site_module, site_shape, stream
from respodiff.pipelines.denoiser import encode_prompts, join
from respodiff.pipelines.registry import backbone, call_arguments, site_of, spec_of
from respodiff.steering.module import ConceptModule
from respodiff.steering.serialization import Header

GUIDANCE = 4.0
STRENGTH = 0.8


def input_images(pipe: Any, height: int = SIZE, width: int = SIZE) -> dict[str, Any]:
    """The image arguments that this class wants, and nothing for text-to-image ones."""
    generator = torch.Generator().manual_seed(8)
    noise = (torch.rand(3, height, width, 3, generator=generator) * 255).to(torch.uint8).numpy()
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (0, 0, width // 2, height))
    given = {"image": Image.fromarray(noise[0]), "mask_image": mask, "control_image": Image.fromarray(noise[1]), "control_mask": mask}
    return {name: given[name] for name in spec_of(pipe).images}


def draw(pipe: Any, prompt: Any = "a doctor", *, seed: int = 0, steps: int = 2, images: int = 1, **changes: Any) -> torch.Tensor:
    """Final latents of a call of a tiny pipeline."""
    size = {"height": changes.pop("height", SIZE), "width": changes.pop("width", SIZE)}
    images_ = input_images(pipe, **size)
    named = inspect.signature(type(pipe).__call__).parameters
    edits = bool(images_) and "strength" in named  # starts from an image that is partly noised
    prompts = [prompt] if isinstance(prompt, str) else prompt
    guidance = changes.pop("guidance_scale", GUIDANCE)
    arguments: dict[str, Any] = {**call_arguments(pipe, prompts, guidance), **images_}
    if "height" in named or isinstance(pipe, ModularPipeline):
        arguments |= size
    if edits:
        arguments["strength"] = STRENGTH
    if "intermediate_timesteps" in named:
        arguments["intermediate_timesteps"] = None  # that of SANA Sprint is for two steps
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # some encode the control image with it
    arguments |= {"num_inference_steps": steps + edits, "num_images_per_prompt": images, "generator": generator, "output_type": "latent"}
    if isinstance(pipe, ModularPipeline):
        pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale=arguments.pop("guidance_scale")))
        of_blocks: torch.Tensor = pipe(**{**arguments, **changes}, output="latents")
        return of_blocks
    found: torch.Tensor = pipe(**{**arguments, **changes}).images
    return found


def module(pipe: Any, seed: int = 1, shape: tuple[int, int, int] | None = None, scale: float = 1.0) -> ConceptModule:
    """A random module for a pipeline."""
    model = backbone(pipe)
    site = site_of(pipe)
    shape = shape or site_shape(model, site=site)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) * scale
    return ConceptModule.of(values, values * 0.25, Header(f"concept-{seed}", "a woman", "a person", site=site))


def oblong(pipe: Any) -> dict[str, int]:
    """A small size that is no square."""
    if spec_of(pipe).area:
        return {"height": SIZE // 2, "width": SIZE * 2}
    return {"height": 48, "width": 64} if spec_of(pipe).multiple == 1 else {"height": 64, "width": 96}


def contexts(pipe: Any, prompts: Sequence[str]) -> Tensor:
    """Text embeddings (N, T, D) of prompts."""
    return join(encode_prompts(pipe, prompts))["encoder_hidden_states"]


def apart(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return ((a.float() - b.float()).abs().max() / a.float().abs().max().clamp(min=1)).item()


def same(a: Tensor, b: Tensor, what: str) -> None:
    assert torch.equal(a, b), f"{what}: {apart(a, b):.1e} apart"


def close(a: Tensor, b: Tensor, what: str, within: float = 1e-5) -> float:
    assert torch.isfinite(a).all() and torch.isfinite(b).all(), f"{what}: not finite"
    assert apart(a, b) <= within, f"{what}: {apart(a, b):.1e} apart"
    return apart(a, b)


@contextmanager
def seen(pipe: Any) -> Iterator[list[tuple[Tensor, dict[str, Any]]]]:
    """h of every call behind whatever steers it, with the arguments of the call."""
    model, found, calls = backbone(pipe), [], []
    names = tuple(inspect.signature(model.forward).parameters)
    first = model.register_forward_pre_hook(lambda _m, a, k: calls.append({**dict(zip(names, a, strict=False)), **k}), with_kwargs=True)
    site = site_of(pipe)
    last = site_module(model, site).register_forward_hook(lambda _m, _a, out: found.append((stream(out, site).clone(), calls[-1])))
    try:
        yield found
    finally:
        first.remove()
        last.remove()
