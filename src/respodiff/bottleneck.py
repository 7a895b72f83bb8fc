"""The bottleneck (h-space) of a UNet: where it is, how to shift it, and how to re-run only what comes after it.

Nothing else in the library touches a model. Everything here works through forward hooks that are removed on exit: no fork, no extra
parameter, no key in the state dict. Notation of the paper: h is the output of the mid block, D the up blocks that follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

SITE = "mid_block"

RowDelta = Callable[[Tensor], tuple[Tensor, slice] | None]
"""Told h (R, C, H, W) of a UNet call, gives the deltas (B or 1, C, H, W) and the B rows that they belong to; None changes nothing."""


def site_module(unet: nn.Module, site: str = SITE) -> nn.Module:
    """The module whose output is h. Raises ValueError for a model that has none."""
    module = getattr(unet, site, None)
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"model {type(unet).__name__} has no {site!r}; steering needs a UNet with a mid block (Stable Diffusion 1.x, 2.x, XL)"
        )
    return module


def site_shape(unet: nn.Module, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
    """Shape (C, H, W) of h for a latent of ``height`` x ``width`` (latent pixels; default: the size the model was trained at).

    Each level but the last halves the latent, rounding up: 64 -> 8 for the four levels of SD 1.x, 16 -> 4 for three levels.
    """
    site_module(unet)
    config: Any = unet.config
    default = latent_size(unet)
    h, w = default[0] if height is None else height, default[1] if width is None else width
    for _ in range(len(config.block_out_channels) - 1):
        h, w = -(-h // 2), -(-w // 2)
    return int(config.block_out_channels[-1]), h, w


def latent_size(unet: Any) -> tuple[int, int]:
    """(height, width) in latent pixels of the pictures that the model was trained on; its configuration gives one number for squares."""
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def add_to_rows(h: Tensor, delta: Tensor, rows: slice) -> Tensor:
    """h (R, C, H, W) with delta (B or 1, C, H, W) added to ``rows``; the other rows keep their bits."""
    if delta.shape[1:] != h.shape[1:]:
        raise ValueError(
            f"module shape is {tuple(delta.shape[1:])}, but the bottleneck of this call is {tuple(h.shape[1:])}; "
            "resize the module to it with ConceptModule.resize(height, width)"
        )
    out = h.clone(memory_format=torch.preserve_format)
    out[rows] = h[rows] + delta.to(device=h.device, dtype=h.dtype)
    return out


@contextmanager
def shifted(unet: nn.Module, delta: RowDelta, site: str = SITE) -> Iterator[None]:
    """While active, every forward of ``unet`` adds ``delta(h)`` to the output of its mid block.

    ``delta`` may return an all-zero tensor: the output is then bit-identical to the unhooked one. The hook is removed on exit,
    also after an exception.
    """

    def hook(_module: nn.Module, _args: Any, h: Tensor) -> Tensor | None:
        found = delta(h)
        return None if found is None else add_to_rows(h, *found)

    handle = site_module(unet, site).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class Decoder:
    """The part of one UNet call that follows the bottleneck, ready to be run again with another h.

    ``D(h)`` costs about 0.6 of a full forward on SD 1.x and needs no second pass through the encoder, so that the plain, the RAM and
    the RAM + SAM prediction of one latent share a single encoder pass.
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


def predict(
    unet: nn.Module, z: Tensor, t: Tensor | int, context: Tensor, shift: Tensor | None = None, **kwargs: Any
) -> tuple[Tensor, Decoder]:
    """One forward with ``shift`` added to h: the prediction e[shift](z, y), and the `Decoder` that can repeat its second half.

    The gradient reaches ``shift`` through D alone; with a frozen UNet the encoder builds no graph.

    Args:
        z: latents (B, C, H, W). t: timestep, scalar or (B,). context: prompt embeddings (B, T, D).
        shift: (B or 1, C, H, W) for all rows, or None. kwargs: passed to the UNet (``added_cond_kwargs`` of SDXL).
    """
    calls: list[tuple[nn.Module, dict[str, Any]]] = []
    found: list[Tensor] = []

    def record(block: nn.Module, args: tuple[Any, ...], call: dict[str, Any]) -> None:
        if args:
            raise RuntimeError(f"{type(block).__name__} was called with positional arguments; this version of diffusers is not supported")
        calls.append((block, dict(call)))

    def bottleneck(_module: nn.Module, _args: Any, h: Tensor) -> Tensor | None:
        found.append(h)
        return None if shift is None else add_to_rows(h, shift, slice(None))

    model: Any = unet
    handles = [block.register_forward_pre_hook(record, with_kwargs=True) for block in model.up_blocks]
    handles.append(site_module(unet).register_forward_hook(bottleneck))
    try:
        prediction = model(z, t, encoder_hidden_states=context, **kwargs).sample
    finally:
        for handle in handles:
            handle.remove()
    return prediction, Decoder(unet, found[-1], calls)
