"""Provides what methods share that learn from images: decoding latents, and checked calls of the classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from respodiff.concepts.concept import Concept
from respodiff.methods.base import Classify
from respodiff.training.config import Rules


def decoded(pipe: Any, z: Tensor) -> Tensor:
    """Images (N, 3, H, W), about [0, 1] and not clamped, of latents (N, C, h, w); differentiable."""
    vae, c = pipe.vae, pipe.vae.config
    z = z.to(vae.dtype)
    if c.get("latents_mean") and c.get("latents_std"):
        mean, std = (torch.tensor(c[k], device=z.device, dtype=z.dtype).view(1, -1, 1, 1) for k in ("latents_mean", "latents_std"))
        z = z * std / c.scaling_factor + mean
    else:
        z = z / c.scaling_factor + (c.get("shift_factor") or 0.0)
    images: Tensor = vae.decode(z).sample / 2 + 0.5
    return images.float()


def alternatives(concept: Concept) -> tuple[str, ...]:
    """Prompts of all alternatives, the concept's own first. ValueError for a concept that has no others."""
    if not concept.opposites:
        raise ValueError(
            f"concept {concept.name!r} has no alternatives, and a distribution needs them; give a known concept, or --opposite TEXT"
        )
    return (concept.target, *concept.opposites)


def classified(classify: Classify, images: Tensor, classes: int) -> Tensor:
    """Logits (N, K) of images (N, 3, H, W), float32. ValueError for a classifier that gives something else."""
    logits = classify(images)
    if not isinstance(logits, Tensor) or logits.shape != (len(images), classes):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"classify gave {shape} for {len(images)} images; allowed: logits of shape ({len(images)}, {classes})")
    return logits.float()


SUBJECTS: Rules = {
    "subjects": (
        lambda v: isinstance(v, tuple) and bool(v) and all(isinstance(s, str) and s.strip() for s in v),
        "one text or more, such as ('doctor', 'nurse')",
    ),
    "draw": (lambda v: "{}" in v, "a text with {} where the subject goes"),
}
"""Rules of the settings that say what images are of."""
