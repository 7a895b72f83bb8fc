"""What a method stores: tensors with a header, in one ``.safetensors`` file; and what fits which pipeline.

RespoDiff's and SDisc's adapter is a `ConceptModule` (a tensor at the bottleneck). Every other method has an `MethodAdapter`, which answers to
the same names, so that policies, run folders and scales need not tell them apart. Never a pickle.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from respodiff._version import __version__
from respodiff.concepts.concept import Concept
from respodiff.pipelines.loading import config_digest, model_name, weights_digest
from respodiff.pipelines.registry import backbone, spec_of
from respodiff.steering.module import ConceptModule
from respodiff.steering.serialization import METHOD_FORMAT, Header, adapter_digest, read_tensors, write_tensors


@dataclass(frozen=True, eq=False)
class MethodAdapter:
    """One concept (or attribute) as a method other than RespoDiff keeps it. Immutable.

    Attributes:
        header: method, concept, prompts, base model and its digests; ``train`` holds the settings.
        tensors: name -> float32 tensor on the CPU; empty for methods that need none.
        weight: scale that it is applied at, 1 as trained.
    """

    header: Header
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name, t in self.tensors.items():
            if not torch.isfinite(t).all():
                raise ValueError(f"tensor {name!r} holds NaN or infinite values; train again with a smaller learning rate")

    @property
    def name(self) -> str:
        """The concept's, or the attribute's."""
        return self.header.concept

    @property
    def method(self) -> str:
        """Key in `respodiff.methods.registry.NAMES`."""
        return self.header.method

    @property
    def settings(self) -> Mapping[str, Any]:
        """What it was made with."""
        return self.header.train

    @property
    def digest(self) -> str:
        """First 16 hex digits of the sha256 over method, prompts, settings and tensors: all that an image depends on."""
        return adapter_digest(self.header, self.tensors)

    def scale(self, factor: float) -> MethodAdapter:
        """The same, applied at ``factor`` times the scale (any finite number)."""
        if not math.isfinite(factor):
            raise ValueError(f"scale is {factor}; allowed: any finite number")
        return replace(self, weight=self.weight * factor)

    def save(self, path: str | Path) -> Path:
        """Write the file atomically; OSError with one clear line if the folder cannot be written."""
        return write_tensors(path, self.tensors, self.header, self.digest)


AnyAdapter = ConceptModule | MethodAdapter
"""What an image may get."""


def header_of(pipe: Any, method: str, concept: Concept, config: Any, **more: Any) -> Header:
    """The header of an adapter of a method that was made for a pipeline."""
    model, settings = backbone(pipe), json.loads(json.dumps(asdict(config)))
    base = {"base_model": model_name(pipe), "base_digest": config_digest(model), "base_weights": weights_digest(model), "site": ""}
    header = Header.of(concept, **base, library=__version__, method=method, format=METHOD_FORMAT, train=settings)
    return replace(header, **more)


def method_header(**more: Any) -> dict[str, Any]:
    """What a `respodiff.training.respodiff.Task` says of the header of an adapter."""
    return {"site": "", "format": METHOD_FORMAT, **more}


def is_method_adapter(path: str | Path) -> bool:
    """Whether a file is of a method that has an `MethodAdapter`; False for what cannot be read."""
    try:
        return bool(read_tensors(Path(path))[1].get("format") == METHOD_FORMAT)
    except (OSError, ValueError):
        return False


def require_unet(pipe: Any, method: str) -> None:
    """ValueError for a pipeline that the methods beside RespoDiff do not know: transformers, and embedded guidance."""
    if spec_of(pipe).model != "unet":
        raise ValueError(f"method {method!r} is for Stable Diffusion 1.x, 2.x and XL, not for {type(pipe).__name__}; use method respodiff")


def check_adapter_compatible(pipe: Any, adapter: MethodAdapter) -> list[str]:
    """Warnings about an adapter on a pipeline: other weights of the same configuration.

    Raises:
        ValueError: it has tensors that were made for a model of another configuration; names both sides.
    """
    require_unet(pipe, adapter.method)
    if not adapter.tensors:
        return []
    h, model = adapter.header, backbone(pipe)
    if h.base_digest and h.base_digest != (found := config_digest(model)):
        raise ValueError(
            f"{adapter.method} {adapter.name!r} was made for {h.base_model!r} (config {h.base_digest}), "
            f"this pipeline is {model_name(pipe)!r} (config {found}); train one for this model"
        )
    found = weights_digest(model)
    if h.base_weights and found and h.base_weights != found:
        return [f"{adapter.method} {adapter.name!r} was made for other weights ({h.base_model!r}); check its effect"]
    return []


Classify = Callable[[Tensor], Tensor]
"""Images (N, 3, H, W) in [0, 1] -> logits (N, K) of the alternatives, in the order target, opposites; differentiable for FDF."""
