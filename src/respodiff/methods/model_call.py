"""Describes a call of a pipeline's model: which rows belong to which pass and image, which step, which prompts.

Rows are pass-major: ``row % images`` is the image. All hooks are gone on exit, also after an exception.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from respodiff.pipelines.bottleneck import eager, is_compiled
from respodiff.pipelines.registry import backbone, caller, row_blocks, spec_of
from respodiff.steering.adapter import AdaptersPerImage


@dataclass(frozen=True)
class ModelCall:
    """One call of the model by its pipeline.

    Attributes:
        passes: pass ("uncond", "cond") -> its rows. entries: what each image gets.
        step, steps: which step of how many. variables: local variables of the pipeline's call.
    """

    passes: Mapping[str, slice]
    entries: tuple[tuple[Any, ...], ...]
    step: int
    steps: int
    variables: Mapping[str, Any]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels that the call was asked for; zeros for the model's own."""
        height, width = (self.variables.get(name) for name in ("height", "width"))
        return (height, width) if isinstance(height, int) and isinstance(width, int) else (0, 0)

    def prompts(self) -> list[str]:
        """The prompt of each image. ValueError where the pipeline was given embeddings instead."""
        given = self.variables.get("prompt")
        if given is None or any(self.variables.get(f"prompt_{i}") not in (None, given) for i in (2, 3, 4)):
            raise ValueError("the pipeline was called with prompt_embeds or prompt_2; this method needs the text itself: give prompt alone")
        texts = [given] if isinstance(given, str) else list(given)
        return [text for text in texts for _ in range(len(self.entries) // len(texts))]

    def rows_of(self, wanted: Callable[[tuple[Any, ...]], bool], device: torch.device) -> Tensor:
        """Rows of all passes (R',) that belong to the images whose entries are ``wanted``."""
        found = [i for i, row in enumerate(self.entries * len(self.passes)) if wanted(row)]
        return torch.tensor(found, device=device, dtype=torch.long)

    def rows_in(self, wanted: Callable[[tuple[Any, ...]], bool], x: Tensor) -> Tensor | slice:
        """As `rows_of`, for the input x of a layer; a slice where all are wanted.

        ValueError for a part of the rows where a layer takes the tokens of all images in one list.
        """
        found, rows = self.rows_of(wanted, x.device), len(self.entries) * len(self.passes)
        if len(found) == rows:
            return slice(None)
        if len(found) and len(x) != rows:
            raise ValueError("a layer of this model takes the tokens of all images together; give all images of a call the same adapters")
        return found


def this_call(pipe: Any, entries: AdaptersPerImage, rows: int, context: Any = None) -> ModelCall | None:
    """The running call of the model; None when another pipeline made it. ValueError outside of a pipeline, or for a wrong number of images."""
    if (found := caller()) is None:
        raise ValueError("the model was called outside of its pipeline, so which rows are conditional is unknown; call the pipeline")
    other, call = found
    if other is not pipe:
        return None
    passes = row_blocks(pipe, rows, call, context)
    images = tuple(entries.per_image(rows // len(passes)))
    return ModelCall(passes, images, int(call["i"]), len(call["timesteps"]), call)


@contextmanager
def intercept_calls(
    pipe: Any,
    entries: AdaptersPerImage,
    before: Callable[[ModelCall, dict[str, Any]], dict[str, Any] | None] = lambda *_: None,
    after: Callable[[ModelCall, dict[str, Any], Tensor], Tensor | None] = lambda *_: None,
) -> Iterator[Callable[[], ModelCall | None]]:
    """While active, ``before`` may change the arguments of a call of the model, by name, and ``after`` its prediction (R, C, H, W).

    Gives a function that tells the call that is running. Calls that ``after`` makes itself are left alone.
    """
    model, call, inside = backbone(pipe), None, False

    def by_name(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return dict(signature(model.forward).bind(*args, **kwargs).arguments)

    def look(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal call
        if not inside:
            told = by_name(args, kwargs)
            call = this_call(pipe, entries, len(next(iter(told.values()))), told.get("encoder_hidden_states"))

    def enter(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        changed = before(call, by_name(args, kwargs)) if call and not inside else None
        return None if changed is None else ((), changed)

    def leave(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        nonlocal call, inside
        if inside or call is None:
            return None
        inside = True
        try:
            changed = after(call, by_name(args, kwargs), output[0])
        finally:
            inside, call = False, None
        if changed is None:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else type(output)(sample=changed)

    if is_compiled(getattr(pipe, spec_of(pipe).model)):
        name = next((a.method for a in entries.adapters), "")
        raise ValueError(f"the model is compiled, and method {name!r} works by hooks, which would be ignored; draw with the plain model")
    with eager(model), ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(look, prepend=True, with_kwargs=True).remove)  # before another method changes them
        stack.callback(model.register_forward_pre_hook(enter, with_kwargs=True).remove)
        stack.callback(model.register_forward_hook(leave, with_kwargs=True).remove)
        yield lambda: call


def warn_once() -> Callable[[str], None]:
    """A function that gives each warning once."""
    return cache(partial(warnings.warn, stacklevel=3))


def take_rows(value: Any, rows: int, index: Tensor) -> Any:
    """An argument of a call of ``rows`` rows for the rows ``index`` alone: a tensor with that many rows, or a dictionary, list or tuple of some."""
    if isinstance(value, Mapping):
        return {k: take_rows(v, rows, index) for k, v in value.items()}
    if isinstance(value, list | tuple):  # what a ControlNet adds
        return type(value)(take_rows(v, rows, index) for v in value)
    return value[index] if isinstance(value, Tensor) and value.ndim and len(value) == rows else value
