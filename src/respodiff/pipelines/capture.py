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

    def __init__(self, model: Any, skip: int) -> None:
        self._model, self._skip = model, skip
        self.told: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def cache_context(self, _name: str) -> Any:
        return nullcontext()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.told = dict(inspect.signature(self._model.forward).bind(*args, **kwargs).arguments)
        if self._skip:  # the call of the condition that the pipeline asks for first
            self._skip -= 1
            return (torch.zeros_like(next(iter(self.told.values()))),)
        raise _Reached


@dataclass(frozen=True)
class Captured:
    """Arguments of the model at the first step, by name, and the scheduler with the timesteps of the call."""

    told: Mapping[str, Any]
    scheduler: Any


def capture(
    pipe: Any,
    prompts: Sequence[str],
    height: int,
    width: int,
    steps: int = 0,
    scheduler: Any = None,
    *,
    negative: bool = False,
    **call: Any,
) -> Captured:
    """What the text-to-image call of a pipeline hands its model for the prompts, without guidance; no part of the model runs.

    With ``negative`` they are negative prompts beside empty ones, with guidance: the call that has the unconditional rows.

    The pipeline and its scheduler stay as they were. ``steps`` 0 is the number that the class usually takes. A ``scheduler`` of one's own takes the place of a copy of the pipeline's. ``call`` are
    further arguments of the call.
    """
    spec, shown = spec_of(pipe), copy.copy(pipe)
    recorder = _Recorder(backbone(pipe), int(negative and spec.calls.get("negative_prompt_embeds") == ("uncond",)))
    # Another class may name other components, and checks them.
    base = getattr(diffusers, spec.shown) if spec.shown else type(pipe)
    shown.__class__ = type(base.__name__, (base,), {"components": pipe.components})
    scheduler = scheduler or copy.deepcopy(pipe.scheduler)
    vars(shown).update({spec.model: recorder, "scheduler": scheduler, "_progress_bar_config": {"disable": True}})
    vars(shown).setdefault("patch_size", recorder.config.get("patch_size"))  # SD3's classes for ControlNets do not note it
    if pipe.config.get("requires_aesthetics_score"):  # refiners are told a score in the place of a second size
        vars(shown)["_get_add_time_ids"] = lambda size, corner, *_, dtype, **__: torch.tensor([[*size, *corner, 6.0]], dtype=dtype)
    call = {
        spec.guided_by: spec.off,
        **spec.call,
        **call,
        "height": height,
        "width": width,
        "num_inference_steps": steps or spec.steps,
        "generator": torch.Generator().manual_seed(0),
    }
    if negative:
        call |= {spec.guided_by: 4.0, "negative_prompt": list(prompts)}
    with torch.no_grad():
        try:
            shown(prompt=[""] * len(prompts) if negative else list(prompts), output_type="latent", **call)
        except _Reached:
            return Captured(recorder.told, scheduler)
    raise RuntimeError(f"{type(pipe).__name__} ended without a call of its {spec.model}; this version of diffusers is not supported")


def takes_negative(pipe: Any) -> bool:
    """Whether a pipeline has negative prompts of its own; one that has not encodes an empty prompt as any other."""
    return "negative_prompt" in inspect.signature(type(pipe).__call__).parameters


def flat(tree: Mapping[str, Any], start: str = "") -> dict[str, Tensor]:
    """The tensors of nested dictionaries, by their path: ``added_cond_kwargs.text_embeds``. A list of tensors of one shape is one tensor, rows first."""
    found: dict[str, Tensor] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{start}{name}.")
        elif isinstance(value, Tensor):
            found[f"{start}{name}"] = value
        elif isinstance(value, list) and value and all(isinstance(row, Tensor) and row.shape == value[0].shape for row in value):
            found[f"{start}{name}"] = torch.stack(value)
    return found


def at(tree: Mapping[str, Any], path: str) -> Any:
    """The value at a path of nested dictionaries; None where there is none."""
    value: Any = tree
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def filled(tree: Mapping[str, Any], values: Callable[[str, Any], Any], start: str = "") -> dict[str, Any]:
    """The same dictionaries with ``values(path, value)`` in the place of every value."""
    return {
        name: filled(value, values, f"{start}{name}.") if isinstance(value, Mapping) else values(start + name, value)
        for name, value in tree.items()
    }
