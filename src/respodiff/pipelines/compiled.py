"""Steers a model that ``torch.compile`` has compiled.

Compiled code does not look at hooks again (PyTorch, ``skip_nnmodule_hook_guards``): a hook added later is ignored, and a removed one goes on
acting. So a compiled model gets one hook that stays. It reads the deltas of the call from a tensor, and does nothing while there is none.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from respodiff.pipelines.bottleneck import SITE, broadcast_to_h, site_module, stream, with_stream

RowsOf = Callable[[tuple[Any, ...], dict[str, Any]], Tensor | None]
"""Arguments of a call of the model -> the deltas (R, C, H, W) of all its rows, or None."""

_compiled_hooks: WeakKeyDictionary[nn.Module, CompiledHook] = WeakKeyDictionary()


def is_compiled(model: nn.Module) -> bool:
    """Whether a model (or the wrapper that ``torch.compile`` made of it) runs compiled as a whole, its site included."""
    return hasattr(model, "_orig_mod") or model.__dict__.get("_compiled_call_impl") is not None


class CompiledHook:
    """The hook that stays at the site of a compiled model. ``delta`` (R, C, H, W) is set for the time of one call, under ``lock``."""

    def __init__(self) -> None:
        self.delta: Tensor | None = None
        self.lock = threading.RLock()
        self.steerings: list[RowsOf] = []

    def __reduce__(self) -> tuple[type[CompiledHook], tuple[()]]:
        """A copied or pickled model carries an empty hook, which does nothing."""
        return CompiledHook, ()

    def hook(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        """Part of the graph: no branch on data, so that one graph serves every mix of concepts."""
        if self.delta is None:
            return None
        h = stream(output)
        return with_stream(output, h + broadcast_to_h(self.delta, h))


class _Entry:
    """A compiled call, with the delta of its hook set before and reset after it, outside of the graph."""

    def __init__(self, compiled_hook: CompiledHook, call: Callable[..., Any]) -> None:
        self.compiled_hook, self.call = compiled_hook, call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        compiled_hook = self.compiled_hook
        with compiled_hook.lock:  # threads that share the model take turns
            found = [d for rows_of in compiled_hook.steerings if (d := rows_of(args, kwargs)) is not None]
            compiled_hook.delta = sum(found[1:], start=found[0]) if found else None
            try:
                return self.call(*args, **kwargs)
            finally:
                compiled_hook.delta = None


def open_compiled_hook(model: Any, site: str = SITE) -> CompiledHook:
    """The hook of a model, made once. A model that was compiled without it compiles again at its next call, with a warning."""
    inner = getattr(model, "_orig_mod", model)
    compiled_hook = _compiled_hooks.get(inner)
    if compiled_hook is None:
        compiled_hook = _compiled_hooks[inner] = CompiledHook()
        site_module(inner, site).register_forward_hook(compiled_hook.hook)
        if is_compiled(model):
            warnings.warn("the model is compiled already: its next call compiles again, as does all else that was compiled", stacklevel=4)
            torch.compiler.reset()
    call = model.__dict__.get("_compiled_call_impl")
    if is_compiled(model) and not isinstance(call, _Entry):
        model._compiled_call_impl = _Entry(compiled_hook, call or model._call_impl)
    return compiled_hook


def close_compiled_hook(model: Any, site: str = SITE) -> None:
    """Remove the hook, if there is one; what was compiled with it compiles again at its next call."""
    inner = getattr(model, "_orig_mod", model)
    compiled_hook = _compiled_hooks.pop(inner, None)
    if compiled_hook is None:
        return
    hooks = site_module(inner, site)._forward_hooks
    for key in [k for k, hook in hooks.items() if getattr(hook, "__self__", None) is compiled_hook]:
        del hooks[key]
    entry = model.__dict__.get("_compiled_call_impl")
    if isinstance(entry, _Entry):
        model._compiled_call_impl = entry.call if model is inner else None
    if is_compiled(model):
        torch.compiler.reset()
