"""What the tests of methods share: tiny pipelines, latents of a call, and what must be as before."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from tests.tiny_models import sd, sdxl
from torch import Tensor

from respodiff.concepts.concept import Concept
from respodiff.pipelines.registry import backbone
from respodiff.steering.steer import steer

WOMAN = Concept("woman", "a woman", "a person", opposites=("a man",), attribute="gender")
MAN = Concept("man", "a man", "a person", opposites=("a woman",), attribute="gender")
VIOLENCE = Concept("violence", "a scene", "a scene", "violence", "safety", preserve=("a person",))
MAKE = {"sd": sd, "sdxl": sdxl}


def strong(pipe: Any) -> Any:
    """The pipeline with text embeddings that matter: random weights are too small to tell prompts apart."""
    torch.manual_seed(9)
    for name in ("text_encoder", "text_encoder_2"):
        if encoder := getattr(pipe, name, None):
            for p in encoder.parameters():
                p.data.mul_(1.5)
    for module in backbone(pipe).modules():
        if hasattr(module, "to_k"):
            for layer in (module.to_q, module.to_k, module.to_v, module.to_out[0]):
                layer.weight.data.mul_(3.0)
    return pipe


def noise(pipe: Any, n: int, seed: int = 0) -> Tensor:
    side = backbone(pipe).config.sample_size
    return torch.randn(n, 4, side, side, generator=torch.Generator().manual_seed(seed))


def latents(
    pipe: Any,
    prompts: Sequence[str],
    entries: Any = None,
    *,
    steps: int = 3,
    guidance: float = 3.0,
    start: Tensor | None = None,
    **more: Any,
) -> Tensor:
    """Latents (B, C, H, W) of a call; ``entries`` None calls the pipeline as it is."""
    z = noise(pipe, len(prompts)) if start is None else start
    with nullcontext() if entries is None else steer(pipe, entries):
        found: Tensor = pipe(
            list(prompts), latents=z, num_inference_steps=steps, guidance_scale=guidance, output_type="latent", return_dict=True, **more
        ).images
    return found


def state(pipe: Any) -> dict[str, Any]:
    """Everything of a model that a method could leave changed: bits, parameter objects, hooks, attributes of modules."""
    model = backbone(pipe)
    out: dict[str, Any] = {k: v.clone() for k, v in model.state_dict().items()}
    out["objects"] = [id(p) for p in model.parameters()]
    out["hooks"] = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    out["own"] = [sorted(m.__dict__) for m in model.modules()]
    out["grads"] = [p.requires_grad for p in model.parameters()]
    return out


def unchanged(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return before.keys() == after.keys() and all(
        torch.equal(before[k], after[k]) if isinstance(before[k], Tensor) else before[k] == after[k] for k in before
    )


def close(a: Tensor, b: Tensor, atol: float = 1e-4) -> bool:
    return bool(torch.allclose(a, b, atol=atol))
