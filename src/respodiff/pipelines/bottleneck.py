"""Finds the bottleneck (h-space) of a denoising model, shifts it, and runs the part of the model after it again.

Notation of the paper: h is the output of the mid block of a UNet, D the up blocks that follow. In a transformer h is the image stream
(R, N, D) behind a middle block, and deltas have shape (D, 1, 1): the same at every token. Another block may be chosen as the site of h.
Forward hooks are removed on exit.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

SITE = "mid_block"

RowDelta = Callable[[Tensor], tuple[Tensor, slice]]
"""h (R, C, H, W) or (R, N, C) of a call -> the deltas (B or 1, C, H, W) and the B rows that get them."""

_compiled_hooks: WeakKeyDictionary[nn.Module, CompiledHooks] = WeakKeyDictionary()


def site_module(model: nn.Module, site: str = SITE) -> nn.Module:
    """The module whose output is h. Raises ValueError for a model that has none."""
    try:
        return model.get_submodule(site)
    except AttributeError as error:
        raise ValueError(
            f"model {type(model).__name__} has no {site!r}; steering needs a UNet with a mid block (Stable Diffusion 1.x, 2.x, XL) "
            "or a transformer that is in the table of respodiff.pipelines.registry"
        ) from error


def site_shape(model: nn.Module, height: int = 0, width: int = 0, site: str = SITE) -> tuple[int, int, int]:
    """Shape (C, H, W) of h for a latent of ``height`` x ``width`` latent pixels (0: the size the model was trained at).

    Each level of a UNet but the last halves the latent, rounding up: 64 -> 8 for the four levels of SD 1.x. For a transformer it is (D, 1, 1).
    """
    site_module(model, site)
    config: Any = model.config
    if not hasattr(config, "block_out_channels"):
        width = config.get("dim") or config.get("hidden_size") or config.num_attention_heads * config.attention_head_dim
        return int(width), 1, 1
    size, last = config.sample_size, len(config.block_out_channels) - 1
    default = (size, size) if isinstance(size, int) else size
    blocks, _, number = site.partition(".")
    level = halved = last
    if number:  # a block ends at the size of the next one
        down, i = blocks == "down_blocks", int(number)
        level, halved = (i, min(i + 1, last)) if down else (last - i, max(last - i - 1, 0))
    h, w = (math.ceil(pixels / 2**halved) for pixels in (height or default[0], width or default[1]))
    return int(config.block_out_channels[level]), h, w


def stream(output: Tensor | tuple[Tensor, Tensor], site: str = SITE) -> Tensor:
    """h in the output of a site: the output itself, or that of two which the site names, else the second of (text, image); of a stream with other
    tokens too the image's.
    """
    h = output if isinstance(output, Tensor) else output[getattr(site, "stream", 1)]
    tokens = getattr(site, "tokens", None)
    if tokens is None:
        return h
    return h[:, tokens] if isinstance(tokens, slice) else h.gather(1, tokens[..., None].expand(-1, -1, h.shape[-1]))


def with_stream(output: Any, h: Tensor, site: str = SITE) -> Any:
    """The output of a site with h in its place."""
    tokens, place = getattr(site, "tokens", None), getattr(site, "stream", 1)
    if tokens is not None:
        whole: Tensor = output if isinstance(output, Tensor) else output[place]
        if isinstance(tokens, slice):
            whole = whole.clone()
            whole[:, tokens] = h
        else:
            whole = whole.scatter(1, tokens[..., None].expand(-1, -1, h.shape[-1]), h)
        h = whole
    if isinstance(output, Tensor):
        return h
    return (h, output[1]) if place == 0 else (output[0], h)


def channels_first(h: Tensor) -> Tensor:
    """h as (R, C, H, W): itself, or of an image stream (R, N, C) the view (R, C, N, 1)."""
    return h.transpose(1, 2)[..., None] if h.ndim == 3 else h


def broadcast_to_h(delta: Tensor, h: Tensor) -> Tensor:
    """delta (B or 1, C, H, W) in the layout, device and dtype of h, so that it can be added; H = W = 1 is added at every position."""
    if delta.shape[1] != h.shape[-1 if h.ndim == 3 else 1] or delta.shape[2:] not in ((1, 1), channels_first(h).shape[2:]):
        what = tuple(h.shape[1:]) if h.ndim == 4 else (h.shape[-1], 1, 1)
        raise ValueError(
            f"module shape is {tuple(delta.shape[1:])}, but the bottleneck of this call is {what}; give images of the size of training"
        )
    delta = delta.flatten(2).transpose(1, 2) if h.ndim == 3 else delta
    return delta.to(device=h.device, dtype=h.dtype)


def add_to_rows(h: Tensor, delta: Tensor, rows: slice) -> Tensor:
    """h (R, C, H, W) with delta (B or 1, C, H, W) added to ``rows``; the other rows keep their bits."""
    out = h.clone(memory_format=torch.preserve_format)
    out[rows] = h[rows] + broadcast_to_h(delta, h)
    return out


@contextmanager
def shifted(model: nn.Module, delta: RowDelta, site: str = SITE) -> Iterator[None]:
    """While active, every forward of ``model`` adds ``delta(h)`` to the output of its site. An all-zero delta keeps every bit."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        h = stream(output, site)
        return with_stream(output, add_to_rows(h, *delta(h)), site)

    with site_module(model, site).register_forward_hook(hook):
        yield


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """While active, ``model`` runs without the code that ``model.compile()`` made for it or its parts, so that hooks take effect."""
    compiled = {m: vars(m).pop("_compiled_call_impl") for m in model.modules() if "_compiled_call_impl" in vars(m)}
    try:
        yield
    finally:
        for module, call in compiled.items():
            vars(module)["_compiled_call_impl"] = call


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """While active, no parameter of ``model`` takes a gradient."""
    found = [p.requires_grad_(False) for p in model.parameters() if p.requires_grad]
    try:
        yield
    finally:
        for p in found:
            p.requires_grad_(True)


@dataclass(frozen=True)
class Decoder:
    """D of a UNet: the up blocks behind the site, with the skips, prompt and timestep that a call of B rows gave them. ``h`` (B, C, H, W) is
    that call's."""

    unet: Any
    h: Tensor
    calls: Sequence[tuple[nn.Module, Mapping[str, Any]]]

    def __call__(self, h: Tensor) -> Tensor:
        """The prediction for another h."""
        for block, kwargs in self.calls:
            h = block(**{**kwargs, "hidden_states": h})
        if self.unet.conv_norm_out is not None:
            h = self.unet.conv_act(self.unet.conv_norm_out(h))
        prediction: Tensor = self.unet.conv_out(h)
        return prediction

    def rows(self, i: Tensor) -> Decoder:
        """The same for some of the rows."""
        return Decoder(self.unet, self.h[i], [(block, _map(lambda x: x[i], kwargs)) for block, kwargs in self.calls])

    @classmethod
    def join(cls, parts: Sequence[Decoder]) -> Decoder:
        """One decoder for the rows of several calls of the same model."""
        calls = zip(*(d.calls for d in parts), strict=True)
        joined = [(call[0][0], _map(lambda *x: torch.cat(x), *(kwargs for _, kwargs in call))) for call in calls]
        return cls(parts[0].unet, torch.cat([d.h for d in parts]), joined)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes once joined."""
        found = [self.h.nbytes]
        for _, kwargs in self.calls:
            _map(lambda x: found.append(x.nbytes), kwargs)
        return sum(found)


def run_with_decoder(
    model: nn.Module, run: Callable[[], Tensor], delta: Callable[[Tensor], Tensor] | None = None, site: str = SITE
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """The prediction of ``run`` (one forward of ``model``) with ``delta(h)`` (B or 1, C, H, W) added to h; h itself; and D: h -> prediction.

    The gradient reaches the delta through D alone: with a frozen model the part before the site builds no graph. D of a UNet is a `Decoder`,
    which re-runs its up blocks (about 0.6 of a forward on SD 1.x); of a transformer, and of a down block, it re-runs the whole call.
    Forward hooks on what follows the site take part in D.
    """
    calls: list[tuple[nn.Module, dict[str, Any]]] = []
    found: list[Tensor] = []
    behind = up_blocks_behind(model, site)

    def record(block: nn.Module, args: tuple[Any, ...], call: dict[str, Any]) -> None:
        if args:
            raise RuntimeError(f"{type(block).__name__} was called with positional arguments; this version of diffusers is not supported")
        calls.append((block, {k: v for k, v in call.items() if k != "hidden_states"}))

    def bottleneck(_module: nn.Module, _args: Any, output: Any) -> Any:
        found.append(h := stream(output, site))
        return with_stream(output, add_to_rows(h, delta(h), slice(None)), site) if delta else None

    def whole_call(h: Tensor) -> Tensor:
        with site_module(model, site).register_forward_hook(lambda _m, _a, output: with_stream(output, h, site)):
            return run()

    with ExitStack() as hooks:
        for block in behind or ():
            hooks.enter_context(block.register_forward_pre_hook(record, with_kwargs=True))
        hooks.enter_context(site_module(model, site).register_forward_hook(bottleneck))
        prediction = run()
    return prediction, found[-1], whole_call if behind is None else Decoder(model, found[-1], calls)


def up_blocks_behind(model: Any, site: str) -> list[nn.Module] | None:
    """The up blocks of a UNet that follow a site; None where more than up blocks follows."""
    blocks, _, number = site.partition(".")
    if site != SITE and blocks != "up_blocks":
        return None
    return list(model.up_blocks[int(number) + 1 if number else 0 :])


def _map(f: Callable[..., Any], *trees: Any) -> Any:
    """f of the tensors at the same place of each tree of dictionaries and tuples; anything else is that of the first."""
    first = trees[0]
    if isinstance(first, dict):
        return {k: _map(f, *(tree[k] for tree in trees)) for k in first}
    if isinstance(first, tuple):
        return tuple(_map(f, *parts) for parts in zip(*trees, strict=True))
    return f(*trees) if isinstance(first, Tensor) else first


def is_compiled(model: nn.Module) -> bool:
    """Whether a model (or the wrapper that ``torch.compile`` made of it) runs compiled as a whole, its site included."""
    return hasattr(model, "_orig_mod") or model.__dict__.get("_compiled_call_impl") is not None


class CompiledHook:
    """The hook that stays at a site of a compiled model, as compiled code ignores hooks added later and goes on with removed ones."""

    def __init__(self, site: str = SITE) -> None:
        self.site = site
        self.delta: Tensor | None = None

    def __reduce__(self) -> tuple[type[CompiledHook], tuple[()]]:
        """A copied or pickled model carries an empty hook, which does nothing."""
        return CompiledHook, ()

    def hook(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        """Part of the graph: no branch on data, so that one graph serves every mix of concepts."""
        h = stream(output, self.site)
        return None if self.delta is None else with_stream(output, h + broadcast_to_h(self.delta, h), self.site)


class CompiledHooks:
    """The hooks of a compiled model by site.

    They add the sums of ``steerings`` (arguments of a call -> site -> the deltas (R, C, H, W) of all its rows), which are asked before each
    call, outside of the graph; threads that share the model take turns.
    """

    def __init__(self) -> None:
        self.at: dict[str, CompiledHook] = {}
        self.lock = threading.RLock()
        self.steerings: list[Callable[[tuple[Any, ...], dict[str, Any]], Mapping[str, Tensor]]] = []

    def __reduce__(self) -> tuple[type[CompiledHooks], tuple[()]]:
        """Those of a copy have no steerings."""
        return CompiledHooks, ()

    def run(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A call of the compiled model, with the deltas set before and reset after it."""
        with self.lock:
            try:
                for site, delta in (item for rows_of in self.steerings for item in rows_of(args, kwargs).items()):
                    hook = self.at[site]
                    hook.delta = delta if hook.delta is None else hook.delta + delta
                return call(*args, **kwargs)
            finally:
                for hook in self.at.values():
                    hook.delta = None


def open_compiled_hooks(model: Any, sites: Sequence[str] = (SITE,)) -> CompiledHooks:
    """The hooks of a model, each made once. A model that was compiled without one compiles again at its next call, with a warning."""
    inner = getattr(model, "_orig_mod", model)
    hooks = _compiled_hooks.setdefault(inner, CompiledHooks())
    if new := [site for site in sites if site not in hooks.at]:
        for site in new:
            hooks.at[site] = CompiledHook(site)
            site_module(inner, site).register_forward_hook(hooks.at[site].hook)
        if is_compiled(model):
            warnings.warn("the model is compiled already: its next call compiles again, as does all else that was compiled", stacklevel=4)
            torch.compiler.reset()
    call = model.__dict__.get("_compiled_call_impl")
    if is_compiled(model) and not isinstance(call, partial):
        model._compiled_call_impl = partial(hooks.run, call or model._call_impl)
    return hooks
