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
Shape = tuple[int, int, int]


class Form(nn.Module):
    """What RAM or SAM is, for a bottleneck of shape (C, H, W).

    Attributes:
        reads_h: whether the offset depends on h or t; if not, the form has one parameter ``r``.
        last: names of the parameters that the offset is linear in, whose unit is that of h.
    """

    reads_h: ClassVar[bool] = True
    last: ClassVar[tuple[str, ...]] = ("up.weight", "up.bias")

    @property
    def parts(self) -> dict[bool, list[nn.Parameter]]:
        """Its parameters: those that have a unit (`last`, True), and the others if there are any (False)."""
        found: dict[bool, list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            found.setdefault(name in self.last, []).append(parameter)
        return found

    def __init__(self, shape: Shape, init_range: float = 0.0, generator: torch.Generator | None = None) -> None:
        super().__init__()

    def forward(self, h: Tensor, t: Tensor) -> Tensor:
        """The offset for h (B, C, H, W) at timesteps t."""
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

    def __init__(self, shape: Shape, init_range: float = 0.0, generator: torch.Generator | None = None) -> None:
        super().__init__(shape)
        self.r = nn.Parameter((torch.rand(shape, generator=generator) * 2 - 1) * init_range)

    def forward(self, h: Tensor, t: Tensor) -> Tensor:
        return self.r[None]


class Channel(Constant):
    """A tensor r (C, 1, 1): one number a channel, the same at every position and for every image size."""

    def __init__(self, shape: Shape, init_range: float = 0.0, generator: torch.Generator | None = None) -> None:
        super().__init__((shape[0], 1, 1), init_range, generator)


class Mlp(Form):
    """W2 silu(W1 [mean of h / RMS(h) over positions, features of t]): the same offset at every position.

    RMS(h) is that of a sample over channels and positions, so that W1 has no unit. W1 starts at N(0, 1 / inputs), both biases and W2 at 0, whatever the ``init_range``.
    """

    def __init__(self, shape: Shape, init_range: float = 0.0, generator: torch.Generator | None = None) -> None:
        super().__init__(shape)
        self.down: nn.Linear = nn.utils.skip_init(nn.Linear, shape[0] + TIME_FEATURES, WIDTH)
        self.up: nn.Linear = nn.utils.skip_init(nn.Linear, WIDTH, shape[0])
        with torch.no_grad():
            self.down.weight.copy_(torch.randn(self.down.weight.shape, generator=generator) / math.sqrt(self.down.in_features))
            for tensor in (self.down.bias, self.up.weight, self.up.bias):
                tensor.zero_()

    def forward(self, h: Tensor, t: Tensor) -> Tensor:
        x = torch.cat([_unit(h).mean((2, 3)), _features(t, h)], 1)
        out: Tensor = self.up(nn.functional.silu(self.down(x)))
        return out[..., None, None]


class Conv(Mlp):
    """The same network at every position of h, as two 1x1 convolutions: an offset per position."""

    def forward(self, h: Tensor, t: Tensor) -> Tensor:
        time = _features(t, h)[:, None, None].expand(-1, *h.shape[2:], -1)
        x = torch.cat([_unit(h).movedim(1, -1), time], -1)  # a linear layer on the last axis is a 1x1 convolution
        out: Tensor = self.up(nn.functional.silu(self.down(x)))
        return out.movedim(-1, 1)


FORMS: dict[str, type[Form]] = {"constant": Constant, "channel": Channel, "mlp": Mlp, "conv": Conv}
"""Name of every form, as it stands in headers and settings."""


def make_form(name: str, shape: Shape, *, init_range: float = 0.0, generator: torch.Generator | None = None) -> Form:
    """A new form for a bottleneck of shape (C, H, W). ValueError for a name that is not in `FORMS`.

    ``constant`` and ``channel`` start at U(-init_range, init_range); the others always start with the offset 0.
    """
    if name not in FORMS:
        raise ValueError(f"form is {name!r}; allowed: {', '.join(FORMS)}")
    return FORMS[name](shape, init_range, generator)


def load_form(name: str, tensors: Mapping[str, Tensor]) -> Form:
    """The form that a state dict describes. ValueError if the tensors are not those of the form."""
    try:
        c, h, w = tensors["r"].shape if "r" in tensors else (len(tensors["up.bias"]), 1, 1)
        form = make_form(name, (c, h, w), generator=torch.Generator())  # the global random numbers are left alone
        form.load_state_dict(tensors)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        found = ", ".join(f"{k} {tuple(v.shape)}" for k, v in tensors.items()) or "nothing"
        raise ValueError(f"form {name!r} cannot be made of the tensors {found}") from error
    return form.requires_grad_(False)


def _unit(h: Tensor) -> Tensor:
    """h of RMS 1 in every sample."""
    return h / h.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-6)


def _features(t: Tensor, h: Tensor) -> Tensor:
    """Sines and cosines (B, TIME_FEATURES) of timesteps, in the dtype of h (B, ...)."""
    half = TIME_FEATURES // 2
    rates = torch.exp(-math.log(1000) * torch.arange(half, device=h.device) / half)
    angles = t.to(h.device).clamp(max=999).reshape(-1, 1) * rates  # flow matching begins at 1000, which `steer` gives as 999
    return torch.cat([angles.sin(), angles.cos()], 1).to(h.dtype).expand(len(h), -1)
