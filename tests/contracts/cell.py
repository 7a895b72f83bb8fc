"""What the cells of docs/backbones.md share: outcomes, random modules, comparisons, the contract that holds in every cell."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tests.drawing import draw
from torch import Tensor

from respodiff import steer
from respodiff.concepts.concept import Concept
from respodiff.pipelines.bottleneck import site_module, site_shape, stream
from respodiff.pipelines.registry import backbone, spec_of
from respodiff.steering.module import ConceptModule
from respodiff.steering.serialization import Header

Maker = Callable[[], Any]
WOMAN = Concept("woman", "a woman", "a person", opposites=("a man",), attribute="gender")
TINY: dict[str, Any] = {"iterations": 2, "batch": 2, "steps": 3, "rollouts": 2, "rollout_batch": 2, "refresh_every": 2}


class Refused(Exception):
    """The library says no, and why."""


class Skipped(Exception):
    """This machine lacks what the cell needs."""


@contextmanager
def quietly() -> Iterator[None]:
    """Warnings are asked for where they matter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def module(pipe: Any, seed: int = 1, shape: tuple[int, int, int] | None = None, scale: float = 1.0) -> ConceptModule:
    """A random module for a pipeline."""
    model = backbone(pipe)
    site = spec_of(pipe).site(model)
    shape = shape or site_shape(model, site=site)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) * scale
    return ConceptModule.of(values, values * 0.25, Header(f"concept-{seed}", "a woman", "a person", site=site))


def apart(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return ((a.float() - b.float()).abs().max() / a.float().abs().max().clamp(min=1)).item()


def same(a: Tensor, b: Tensor, what: str) -> None:
    assert torch.equal(a, b), f"{what}: {apart(a, b):.1e} apart"


def close(a: Tensor, b: Tensor, what: str, within: float = 1e-5) -> float:
    assert torch.isfinite(a).all() and torch.isfinite(b).all(), f"{what}: not finite"
    assert apart(a, b) <= within, f"{what}: {apart(a, b):.1e} apart"
    return apart(a, b)


def contract(pipe: Any, within: float | None = None, **call: Any) -> Tensor:
    """What holds in every cell: a zero module changes no bit, a module has an effect, afterwards all is as before. Gives the image."""
    plain, m = draw(pipe, **call), module(pipe)
    same(plain, draw(pipe, **call), "the pipeline repeats itself")
    with steer(pipe, m.scale(0.0)):
        zero = draw(pipe, **call)
    same(zero, plain, "zero module")
    with steer(pipe, m):
        steered = draw(pipe, **call)
    assert torch.isfinite(steered).all() and apart(steered, plain) > (within or 1e-3), "the module has no effect"
    same(draw(pipe, **call), plain, "restored afterwards")
    return steered


@contextmanager
def seen(pipe: Any) -> Iterator[list[tuple[Tensor, dict[str, Any]]]]:
    """h of every call behind whatever steers it, with the arguments of the call."""
    model, found, calls = backbone(pipe), [], []
    names = ("sample", "timestep", "encoder_hidden_states")
    first = model.register_forward_pre_hook(lambda _m, a, k: calls.append({**dict(zip(names, a, strict=False)), **k}), with_kwargs=True)
    site = site_module(model, spec_of(pipe).site(model))
    last = site.register_forward_hook(lambda _m, _a, out: found.append((stream(out).clone(), calls[-1])))
    try:
        yield found
    finally:
        first.remove()
        last.remove()
