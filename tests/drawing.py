"""A call of any tiny pipeline: the image arguments that its class wants, and a seed."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from PIL import Image
from tests.tiny_models import SIZE

from respodiff.pipelines.registry import spec_of

GUIDANCE = 4.0
STRENGTH = 0.8


def input_images(pipe: Any, height: int = SIZE, width: int = SIZE) -> dict[str, Any]:
    """The image arguments that this class wants, and nothing for text-to-image ones."""
    generator = torch.Generator().manual_seed(8)
    noise = (torch.rand(3, height, width, 3, generator=generator) * 255).to(torch.uint8).numpy()
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (0, 0, width // 2, height))
    given = {"image": Image.fromarray(noise[0]), "mask_image": mask, "control_image": Image.fromarray(noise[1])}
    return {name: given[name] for name in spec_of(pipe).images}


def draw(pipe: Any, prompt: Any = "a doctor", *, seed: int = 0, steps: int = 2, images: int = 1, **changes: Any) -> torch.Tensor:
    """Final latents of a call of a tiny pipeline."""
    size = {"height": changes.pop("height", SIZE), "width": changes.pop("width", SIZE)}
    name, images_ = type(pipe).__name__, input_images(pipe, **size)
    edits = bool(images_) and "Pix2Pix" not in name and "ControlNetPipeline" not in name  # starts from an image that is partly noised
    arguments: dict[str, Any] = {"guidance_scale": GUIDANCE, **images_}
    if "height" in inspect.signature(type(pipe).__call__).parameters:
        arguments |= size
    if edits:
        arguments["strength"] = STRENGTH
    generator = torch.Generator().manual_seed(seed)
    arguments |= {"num_inference_steps": steps + edits, "num_images_per_prompt": images, "generator": generator, "output_type": "latent"}
    found: torch.Tensor = pipe(prompt, **{**arguments, **changes}).images
    return found
