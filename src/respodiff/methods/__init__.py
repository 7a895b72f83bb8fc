"""RespoDiff and its peers behind one interface: train or build from a concept, save, load, apply to a pipeline, draw.

    from respodiff.methods import applied, load, method
    slider = method("slider").fit(pipe, concept("woman"))
    with applied(pipe, [slider, None]):
        images = pipe("a doctor", num_images_per_prompt=2).images

docs/methods.md says of each which equation it is, what it stores, what it costs and what it leaves out.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from respodiff.methods.artefact import Artefact, Classify, Entry, load
    from respodiff.methods.base import Method, applied, method

NAMES: dict[str, str] = {
    "respodiff": "own",
    "plain": "prompts",
    "prompt": "prompts",
    "prompt-switch": "prompts",
    "negative": "prompts",
    "sdisc": "sdisc",
    "sld-weak": "sld",
    "sld-medium": "sld",
    "sld-strong": "sld",
    "sld-max": "sld",
    "esd-x": "esd",
    "esd-u": "esd",
    "fdf": "fdf",
    "bact": "bact",
    "uce": "uce",
    "slider": "slider",
    "respodiff-paper": "own",
}
"""Name of every method -> the module of this package that holds it (imported when first asked for)."""

NOT_TRAINED = ("plain", "prompt", "prompt-switch", "negative", "sld-weak", "sld-medium", "sld-strong", "sld-max")
"""Methods whose artefact is made at once, without the model being called."""

_HOME = dict.fromkeys(("Method", "applied", "method"), "base") | dict.fromkeys(("Artefact", "Classify", "Entry", "load"), "artefact")

__all__ = ["NAMES", "NOT_TRAINED", "Artefact", "Classify", "Entry", "Method", "applied", "load", "method"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"respodiff.methods.{_HOME[name]}"), name)
    raise AttributeError(f"module 'respodiff.methods' has no attribute {name!r}")
