"""Provides the forms of RAM and SAM: small networks that give the offset which is added to the bottleneck h.

A form is called with h (B, C, H, W) and timesteps t (B,), (1,) or (), 0 to below 1000. It returns an offset (B or 1, C, H, W), or
(B or 1, C, 1, 1) for the same at every position. The paper uses `Constant`; `Mlp` and `Conv` are its ablation, at sizes of our choice.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

WIDTH = 64
"""Hidden channels of `Mlp` and `Conv`."""
TIME_FEATURES = 32
"""Sines and cosines that `Mlp` and `Conv` receive of the timestep."""


class Form(nn.Module):
    """What RAM or SAM is.

    Attributes:
        reads_h: whether the offset depends on h or t; if not, the form has one parameter ``r``.
        last: names of the parameters that the offset is linear in.
    """

    reads_h: ClassVar[bool] = True
    last: ClassVar[tuple[str, ...]] = ("up.weight", "up.bias")

    def forward(self, h: Tensor, t: Tensor) -> Tensor:
        """The offset for h (B, C, H, W) at timesteps t."""
        raise NotImplementedError

    @classmethod
    def like(cls, tensors: Mapping[str, Tensor]) -> Self:
        """A form of the sizes of a state dict, not yet filled."""
        raise NotImplementedError

    @torch.no_grad()
    def scaled(self, factor: float) -> Self:
        """A copy whose offset is ``factor`` times as large."""
        out = copy.deepcopy(self)
        for name in self.last:
            out.get_parameter(name).mul_(factor)
        return out


class Constant(Form):
    """A tensor r (C, H, W), as in the paper. It starts at U(-init_range, init_range)."""

    reads_h = False
    last = ("r",)

    def __init__(self, shape: tuple[int, int, int], init_range: float = 0.0, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.r = nn.Parameter((torch.rand(shape, generator=generator) * 2 - 1) * init_range)

    def forward(self, h: Tensor, t: Tensor) -> Tensor:
        """r, as (1, C, H, W)."""
        return self.r[None]

    @classmethod
    def like(cls, tensors: Mapping[str, Tensor]) -> Self:
        """A tensor of the shape of ``tensors["r"]``."""
        c, h, w = tensors["r"].shape
        return cls((c, h, w), generator=torch.Generator())


class Channel(Constant):
    """A tensor r (C, 1, 1): one number a channel, the same at every position and for every image size."""

    def __init__(self, shape: tuple[int, int, int], init_range: float = 0.0, generator: torch.Generator | None = None) -> None:
        super().__init__((shape[0], 1, 1), init_range, generator)


class Mlp(Form):
    """W2 silu(W1 [mean of h over positions, features of t]): the same offset at every position. W2 starts at 0."""

    def __init__(self, shape: tuple[int, int, int], generator: torch.Generator | None = None, width: int = WIDTH) -> None:
        super().__init__()
        self.down: nn.Linear = nn.utils.skip_init(nn.Linear, shape[0] + TIME_FEATURES, width)
        self.up: nn.Linear = nn.utils.skip_init(nn.Linear, width, shape[0])
        _start(self.down, self.up, generator)

    def forward(self, h: Tensor, t: Tensor) -> Tensor:
        """The offset (B, C, 1, 1)."""
        x = torch.cat([h.mean((2, 3)), _features(t, h)], 1)
        out: Tensor = self.up(nn.functional.silu(self.down(x)))
        return out[..., None, None]

    @classmethod
    def like(cls, tensors: Mapping[str, Tensor]) -> Self:
        """A network of the sizes of ``tensors["up.weight"]`` (C, width)."""
        channels, width = tensors["up.weight"].shape[:2]
        return cls((channels, 1, 1), torch.Generator(), width)


class Conv(Mlp):
    """The same network at every position of h, as two 1x1 convolutions: an offset per position."""

    def forward(self, h: Tensor, t: Tensor) -> Tensor:
        """The offset (B, C, H, W)."""
        time = _features(t, h)[:, None, None].expand(-1, *h.shape[2:], -1)
        x = torch.cat([h.movedim(1, -1), time], -1)  # a linear layer on the last axis is a 1x1 convolution
        out: Tensor = self.up(nn.functional.silu(self.down(x)))
        return out.movedim(-1, 1)


FORMS: dict[str, type[Constant] | type[Mlp]] = {"constant": Constant, "channel": Channel, "mlp": Mlp, "conv": Conv}
"""Name of every form, as it stands in headers and settings."""


def make_form(name: str, shape: tuple[int, int, int], *, init_range: float = 0.0, generator: torch.Generator | None = None) -> Form:
    """A new form for a bottleneck of shape (C, H, W).

    Args:
        init_range: ``constant`` and ``channel`` start at U(-init_range, init_range); the others always start with the offset 0.
        generator: of the random start.

    Raises:
        ValueError: for a name that is not in `FORMS`.
    """
    if name not in FORMS:
        raise ValueError(f"form is {name!r}; allowed: {', '.join(FORMS)}")
    kind = FORMS[name]
    return kind(shape, init_range, generator) if issubclass(kind, Constant) else kind(shape, generator)


def load_form(name: str, tensors: Mapping[str, Tensor]) -> Form:
    """The form that a state dict describes. ValueError if the tensors are not those of the form."""
    if name not in FORMS:
        raise ValueError(f"form is {name!r}; allowed: {', '.join(FORMS)}")
    try:
        form: Form = FORMS[name].like(tensors)
        form.load_state_dict(tensors)
    except (KeyError, ValueError, RuntimeError) as error:
        found = ", ".join(f"{k} {tuple(v.shape)}" for k, v in tensors.items()) or "nothing"
        raise ValueError(f"form {name!r} cannot be made of the tensors {found}") from error
    return form.requires_grad_(False)


def name_of(form: Form) -> str:
    """The name of a form's class in `FORMS`."""
    return next(name for name, kind in FORMS.items() if type(form) is kind)


def _start(down: nn.Linear, up: nn.Linear, generator: torch.Generator | None) -> None:
    """W1 at N(0, 1 / inputs) and zero bias; W2 and its bias at 0."""
    with torch.no_grad():
        down.weight.copy_(torch.randn(down.weight.shape, generator=generator) / math.sqrt(down.in_features))
        for tensor in (down.bias, up.weight, up.bias):
            tensor.zero_()


def _features(t: Tensor, h: Tensor) -> Tensor:
    """Sines and cosines (B, TIME_FEATURES) of timesteps, in the dtype of h (B, ...)."""
    half = TIME_FEATURES // 2
    rates = torch.exp(-math.log(1000) * torch.arange(half, device=h.device) / half)
    angles = t.to(h.device).reshape(-1, 1) * rates
    return torch.cat([angles.sin(), angles.cos()], 1).to(h.dtype).expand(len(h), -1)
