"""Provides Muon for the matrices and convolutions of a network, which teaches the embedded model more in a step than AdamW (README)."""

from __future__ import annotations

from typing import Any

import torch

LEAST = 16
"""Rows and columns that a matrix has at least; what is smaller is left to AdamW."""


def is_matrix(weight: torch.Tensor) -> bool:
    """Whether a weight is a matrix or a convolution, of `LEAST` rows and columns or more."""
    return weight.ndim > 1 and min(len(weight), weight[0].numel()) >= LEAST


def rows(weight: torch.Tensor) -> torch.Tensor:
    """A weight (R, ...) as a matrix (R, C) in the same memory; a convolution's columns in the order in which they lie there."""
    if weight.ndim == 4 and not weight.is_contiguous():  # channels last
        weight = weight.permute(0, 2, 3, 1)
    return weight.view(len(weight), -1)


def muon(groups: list[dict[str, Any]], lr: float, decay: float) -> torch.optim.Optimizer:
    """`torch.optim.Muon` of matrices and convolutions, at AdamW's size of an update (arXiv 2502.16982, section 2.2).

    Args:
        groups: of parameters, as optimisers take them. lr: learning rate. decay: of the weights, times ``lr`` a step.

    Raises:
        ValueError: torch is older than 2.9, or there is no matrix to train.
    """
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(f"muon = true needs torch 2.9 or later, this is {torch.__version__}; upgrade it, or set muon = false")
    if not any(group["params"] for group in groups):
        raise ValueError(f"muon = true, but no weight has {LEAST} rows and columns; set muon = false")
    pairs = [[(w, torch.nn.Parameter(rows(w.detach()))) for w in group["params"]] for group in groups]
    flat = [group | {"params": [m for _, m in some]} for group, some in zip(groups, pairs, strict=True) if some]

    def gradients(*_: object) -> None:
        for weight, matrix in (pair for some in pairs for pair in some):
            if weight.grad is not None:
                matrix.grad = rows(weight.grad.to(memory_format=_format(weight)))

    made: torch.optim.Optimizer = torch.optim.Muon(flat, lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    made.register_step_pre_hook(gradients)
    return made


def _format(weight: torch.Tensor) -> torch.memory_format:
    return torch.channels_last if weight.ndim == 4 and not weight.is_contiguous() else torch.contiguous_format
