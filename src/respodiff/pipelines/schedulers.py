"""Provides samplers by short names."""

from __future__ import annotations

import inspect
from typing import Any

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "pndm": "PNDMScheduler",
    "dpm": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
}
"""Short name -> class of diffusers."""


def check_scheduler(name: str) -> None:
    """ValueError for a name that is none of `SCHEDULERS` and not empty."""
    if name and name not in SCHEDULERS:
        raise ValueError(f"scheduler is {name!r}; allowed: {', '.join(SCHEDULERS)}")


def use_scheduler(pipe: Any, name: str) -> None:
    """Replace a pipeline's scheduler by another one of the same configuration; DDIM and DDPM clip x_0 only where that configuration says so.

    Raises:
        ValueError: it is of another kind, such as DDIM for flow matching.
    """
    import diffusers

    chosen, own = getattr(diffusers, SCHEDULERS[name]), pipe.scheduler
    if chosen not in own.compatibles:
        raise ValueError(f"scheduler is {name!r}, which cannot stand for {type(own).__name__} of {type(pipe).__name__}; leave it out")
    said = {k: v for k, v in own.config.items() if k == "clip_sample" and k not in own.config.get("_use_default_values", ())}
    clips = "clip_sample" in inspect.signature(chosen.__init__).parameters
    pipe.scheduler = chosen.from_config(own.config, **({"clip_sample": False, **said} if clips else {}))
