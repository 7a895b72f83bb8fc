"""Finds the accelerator of this machine, for models and judges alike."""

from __future__ import annotations

AUTO = "auto"
"""The best device that is here: cuda, then mps, then cpu."""


def chosen_device(device: str) -> str:
    """``device`` itself, or the best one that is here for ``auto``."""
    if device != AUTO:
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
