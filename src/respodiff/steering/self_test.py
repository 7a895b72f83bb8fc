"""A short self-test of steering on one pipeline: did anything change, only what should, and is all as before afterwards?"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from respodiff.pipelines.bottleneck import site_module, site_shape, stream
from respodiff.pipelines.latents import pixels_of_latent
from respodiff.pipelines.registry import backbone, call_arguments, site_of, spec_of
from respodiff.steering.module import ConceptModule
from respodiff.steering.serialization import Header
from respodiff.steering.steer import steer

SIDE = 16  # latent pixels: enough for every model, and quick


def examine(pipe: Any) -> dict[str, Any]:
    """What the table says of a pipeline, and the outcome of the self-test.

    Returns:
        supported, pipeline (class), site, shape (C, H, W) of a module at the model's own size, and checks: name -> {passed, detail}.

    Raises:
        respodiff.pipelines.registry.Unsupported: for a class that is not in the table.
    """
    site = site_of(pipe)
    shape = site_shape(backbone(pipe), site=site)
    checks = {name: {"passed": passed, "detail": detail} for name, passed, detail in _checks(pipe, site, shape[0])}
    return {"supported": True, "pipeline": type(pipe).__name__, "site": site, "shape": list(shape), "checks": checks}


def _checks(pipe: Any, site: str, channels: int) -> Iterator[tuple[str, bool, str]]:
    with _watched(pipe) as before:
        plain = sample_latents(pipe)
    if not before:
        yield "every step is steered", False, "the pipeline never reached the site"
        return
    # A random module of one number a channel, as large as h is on average.
    values = torch.randn(channels, 1, 1, generator=torch.Generator().manual_seed(0)) * before[0].float().std().cpu()
    module = ConceptModule.of(values, torch.zeros_like(values), Header("self-test", "", "", site=site))
    with steer(pipe, module.scale(0.0)):
        yield "a zero module changes no bit", torch.equal(sample_latents(pipe), plain), ""
    with steer(pipe, module), _watched(pipe) as calls:
        steered = sample_latents(pipe)
    change = ((steered - plain).abs().max() / plain.abs().max().clamp(min=1e-12)).item()
    yield "a module changes the image", change > 1e-4 and bool(torch.isfinite(steered).all()), f"largest change {change:.1%}"
    rows = [i for i in range(len(before[0])) if not torch.equal(before[0][i], calls[0][i])]
    passes = spec_of(pipe).passes if len(before[0]) > 1 else ("cond",)
    shown = f"row {', '.join(map(str, rows)) or 'none'} of {len(passes)} ({', '.join(passes)})"
    yield "conditional rows alone are shifted", rows == [i for i, name in enumerate(passes) if name == "cond"], shown
    yield "every step is steered", len(calls) == len(before), f"{len(calls)} of {len(before)} calls"
    yield "the pipeline is as before", torch.equal(sample_latents(pipe), plain), ""


def sample_latents(pipe: Any) -> Tensor:
    """Final latents of a small image in a few steps, always the same."""
    side = SIDE * pixels_of_latent(pipe)
    grey = torch.rand(side, side, 3, generator=torch.Generator().manual_seed(1))
    image = Image.fromarray((grey * 255).to(torch.uint8).numpy())
    mask = Image.new("L", (side, side), 255)
    images = {name: mask if "mask" in name else image for name in spec_of(pipe).images}
    wished: dict[str, Any] = {"height": side, "width": side, "strength": 0.8}
    more = {k: v for k, v in wished.items() if k in inspect.signature(type(pipe).__call__).parameters}
    more |= {"num_inference_steps": min(3, spec_of(pipe).steps), "output_type": "latent", **call_arguments(pipe, ["a doctor"], 5.0)}
    found: Tensor = pipe(**images, **more, generator=torch.Generator().manual_seed(0)).images
    return found.float()


@contextmanager
def _watched(pipe: Any) -> Iterator[list[Tensor]]:
    """h of every call, as what follows the site receives it."""
    calls: list[Tensor] = []
    site = site_of(pipe)
    handle = site_module(backbone(pipe), site).register_forward_hook(lambda _m, _a, out: calls.append(stream(out, site).detach().clone()))
    try:
        yield calls
    finally:
        handle.remove()
