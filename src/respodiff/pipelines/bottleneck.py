"""Finds the bottleneck (h-space) of a denoising model, shifts it, and runs the part of the model after it again.

All of it works by forward hooks that are removed on exit. Notation of the paper: h is the output of the mid block of a UNet, D the up blocks
that follow. In a transformer h is the image stream (R, N, D) behind a middle block, and deltas have shape (D, 1, 1): the same at every token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

SITE = "mid_block"

RowDelta = Callable[[Tensor], tuple[Tensor, slice] | None]
"""h (R, C, H, W) or (R, N, C) of a call -> the deltas (B or 1, C, H, W) and the B rows that get them; None changes nothing."""


def site_module(model: nn.Module, site: str = SITE) -> nn.Module:
    """The module whose output is h. Raises ValueError for a model that has none."""
    module: Any = model
    for part in site.split("."):
        module = getattr(module, part, None)
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"model {type(model).__name__} has no {site!r}; steering needs a UNet with a mid block (Stable Diffusion 1.x, 2.x, XL) "
            "or a transformer that is in the table of respodiff.pipelines.registry"
        )
    return module


def site_shape(model: nn.Module, height: int = 0, width: int = 0, site: str = SITE) -> tuple[int, int, int]:
    """Shape (C, H, W) of h for a latent of ``height`` x ``width`` latent pixels (0: the size the model was trained at).

    Each level of a UNet but the last halves the latent, rounding up: 64 -> 8 for the four levels of SD 1.x. For a transformer it is (D, 1, 1).
    """
    site_module(model, site)
    config: Any = model.config
    if site != SITE:
        return int(config.num_attention_heads * config.attention_head_dim), 1, 1
    size = config.sample_size
    default = (size, size) if isinstance(size, int) else size
    h, w = height or default[0], width or default[1]
    for _ in range(len(config.block_out_channels) - 1):
        h, w = -(-h // 2), -(-w // 2)
    return int(config.block_out_channels[-1]), h, w


def stream(output: Any) -> Tensor:
    """h in the output of a site: the output itself, or the second of (text, image)."""
    h: Tensor = output if isinstance(output, Tensor) else output[1]
    return h


def with_stream(output: Any, h: Tensor) -> Any:
    """The output of a site with h in its place."""
    return h if isinstance(output, Tensor) else (output[0], h)


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
        found = delta(stream(output))
        return None if found is None else with_stream(output, add_to_rows(stream(output), *found))

    handle = site_module(model, site).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """While active, ``model`` runs without the code that ``model.compile()`` made for it or its parts, so that hooks take effect."""
    compiled = {m: m.__dict__.pop("_compiled_call_impl") for m in model.modules() if "_compiled_call_impl" in m.__dict__}
    try:
        yield
    finally:
        for module, call in compiled.items():
            module.__dict__["_compiled_call_impl"] = call


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """While active, no parameter of ``model`` takes a gradient."""
    found = [p.requires_grad_(False) for p in model.parameters() if p.requires_grad]
    try:
        yield
    finally:
        for p in found:
            p.requires_grad_(True)


class Decoder:
    """The part D of one UNet call that follows the bottleneck, to be run again with another h.

    D costs about 0.6 of a forward on SD 1.x. The unsteered, the RAM and the RAM + SAM prediction of a latent share one encoder pass.
    """

    def __init__(self, unet: nn.Module, h: Tensor, calls: list[tuple[nn.Module, dict[str, Any]]]) -> None:
        self._unet, self.h, self._calls = unet, h, calls

    def __call__(self, h: Tensor) -> Tensor:
        """Noise prediction (B, C, H, W) from h (B, C, H, W) with the recorded skips, prompt and timestep."""
        unet: Any = self._unet
        for block, kwargs in self._calls:
            h = block(**{**kwargs, "hidden_states": h})
        if unet.conv_norm_out is not None:
            h = unet.conv_act(unet.conv_norm_out(h))
        out: Tensor = unet.conv_out(h)
        return out


class WholeCall:
    """As `Decoder` for a transformer: the whole call again, with another image stream (B, N, D) behind the site."""

    def __init__(self, model: nn.Module, h: Tensor, run: Callable[[], Tensor], site: str) -> None:
        self._model, self.h, self._run, self._site = model, h, run, site

    def __call__(self, h: Tensor) -> Tensor:
        """Prediction (B, C, H, W) from h (B, N, D)."""
        handle = site_module(self._model, self._site).register_forward_hook(lambda _m, _a, output: with_stream(output, h))
        try:
            return self._run()
        finally:
            handle.remove()


def run_with_decoder(
    model: nn.Module, run: Callable[[], Tensor], shift: Tensor | Callable[[Tensor], Tensor] | None = None, site: str = SITE
) -> tuple[Tensor, Decoder | WholeCall]:
    """The prediction of ``run`` (one forward of ``model``) with ``shift`` added to h, and what runs the part after h again.

    The gradient reaches ``shift`` through D alone: with a frozen model the part before the site builds no graph.

    Args:
        shift: a tensor (B or 1, C, H, W), a function h -> such a tensor, or None.
    """
    calls: list[tuple[nn.Module, dict[str, Any]]] = []
    found: list[Tensor] = []

    def record(block: nn.Module, args: tuple[Any, ...], call: dict[str, Any]) -> None:
        if args:
            raise RuntimeError(f"{type(block).__name__} was called with positional arguments; this version of diffusers is not supported")
        calls.append((block, dict(call)))

    def bottleneck(_module: nn.Module, _args: Any, output: Any) -> Any:
        h = stream(output)
        found.append(h)
        if shift is None:
            return None
        return with_stream(output, add_to_rows(h, shift(h) if callable(shift) else shift, slice(None)))

    blocks: Any = model.up_blocks if site == SITE else ()
    handles = [block.register_forward_pre_hook(record, with_kwargs=True) for block in blocks]
    handles.append(site_module(model, site).register_forward_hook(bottleneck))
    try:
        prediction = run()
    finally:
        for handle in handles:
            handle.remove()
    return prediction, Decoder(model, found[-1], calls) if site == SITE else WholeCall(model, found[-1], run, site)
