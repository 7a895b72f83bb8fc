"""Captures what a pipeline's text-to-image call hands its model, so that prompts are encoded and models are called as the pipeline itself does."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor

from respodiff.pipelines.registry import backbone, spec_of


class _Reached(Exception):
    """The pipeline has called its model."""


class _Recorder:
    """Stands for the model in a call of the pipeline: has all its attributes, and ends the call with the arguments that it is given."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.told: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def cache_context(self, _name: str) -> Any:
        return nullcontext()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.told = dict(inspect.signature(self._model.forward).bind(*args, **kwargs).arguments)
        raise _Reached


@dataclass(frozen=True)
class Captured:
    """Arguments of the model at the first step, by name, and the scheduler with the timesteps of the call."""

    told: Mapping[str, Any]
    scheduler: Any


def capture(pipe: Any, prompts: Sequence[str], height: int, width: int, steps: int = 20, scheduler: Any = None, **call: Any) -> Captured:
    """What the text-to-image call of a pipeline hands its model for the prompts, without guidance; no part of the model runs.

    The pipeline and its scheduler stay as they were. A ``scheduler`` of one's own takes the place of a copy of the pipeline's. ``call`` are
    further arguments of the call.
    """
    spec, shown = spec_of(pipe), copy.copy(pipe)
    recorder = _Recorder(backbone(pipe))
    # Another class may name other components, and checks them.
    base = getattr(diffusers, spec.shown) if spec.shown else type(pipe)
    shown.__class__ = type(base.__name__, (base,), {"components": pipe.components})
    scheduler = scheduler or copy.deepcopy(pipe.scheduler)
    vars(shown).update({spec.model: recorder, "scheduler": scheduler, "_progress_bar_config": {"disable": True}})
    if pipe.config.get("requires_aesthetics_score"):  # refiners are told a score in the place of a second size
        vars(shown)["_get_add_time_ids"] = lambda size, corner, *_, dtype, **__: torch.tensor([[*size, *corner, 6.0]], dtype=dtype)
    call = {
        spec.guided_by: spec.off,
        **spec.call,
        **call,
        "height": height,
        "width": width,
        "num_inference_steps": steps,
        "generator": torch.Generator().manual_seed(0),
    }
    with torch.no_grad():
        try:
            shown(prompt=list(prompts), output_type="latent", **call)
        except _Reached:
            return Captured(recorder.told, scheduler)
    raise RuntimeError(f"{type(pipe).__name__} ended without a call of its {spec.model}; this version of diffusers is not supported")


def flat(tree: Mapping[str, Any], start: str = "") -> dict[str, Tensor]:
    """The tensors of nested dictionaries, by their path: ``added_cond_kwargs.text_embeds``. A list of tensors of one shape is one tensor, rows first."""
    found: dict[str, Tensor] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{start}{name}.")
        elif isinstance(value, Tensor):
            found[start + name] = value
        elif isinstance(value, list) and value and all(isinstance(row, Tensor) and row.shape == value[0].shape for row in value):
            found[start + name] = torch.stack(value)
    return found


def filled(tree: Mapping[str, Any], values: Callable[[str, Any], Any], start: str = "") -> dict[str, Any]:
    """The same dictionaries with ``values(path, value)`` in the place of every value."""
    return {
        name: filled(value, values, f"{start}{name}.") if isinstance(value, Mapping) else values(start + name, value)
        for name, value in tree.items()
    }
