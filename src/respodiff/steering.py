"""Steering a diffusers pipeline: modules in, pictures changed, the pipeline left as it was."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from respodiff.bottleneck import shifted, site_shape
from respodiff.module_file import ConceptModule
from respodiff.pipelines import conditional_rows, config_digest, model_name, row_blocks, weights_digest

Row = ConceptModule | None | Sequence[ConceptModule]
"""What one image gets: a module, nothing, or several modules whose deltas are added."""


def misfits(pipe: Any, module: ConceptModule) -> list[str]:
    """Warnings about a module on a pipeline: another base model or config of the same width.

    Raises:
        ValueError: if the site or the number of channels differs, naming both sides.
    """
    channels = site_shape(pipe.unet)[0]
    if module.header.site != "mid_block":
        raise ValueError(f"module {module.name!r} was trained at site {module.header.site!r}, this pipeline is steered at 'mid_block'")
    if module.shape[0] != channels:
        raise ValueError(
            f"module {module.name!r} has {module.shape[0]} channels, the bottleneck of model {model_name(pipe)!r} has {channels}; "
            f"it was trained on {module.header.base_model!r}: train one for this model"
        )
    if module.header.base_digest and module.header.base_digest != config_digest(pipe.unet):
        return [f"module {module.name!r} was trained on a UNet of another configuration ({module.header.base_model!r}); check its effect"]
    found = weights_digest(pipe.unet)
    if module.header.base_weights and found and module.header.base_weights != found:
        return [f"module {module.name!r} was trained on other weights ({module.header.base_model!r}); check its effect"]
    return []


def _delta(row: Row) -> Tensor | None:
    modules = [row] if isinstance(row, ConceptModule) else list(row or ())
    if not modules:
        return None
    if len({m.shape for m in modules}) > 1:
        raise ValueError(f"modules of one image have shapes {[m.shape for m in modules]}; resize them to one with ConceptModule.resize")
    return torch.stack([m.delta for m in modules]).sum(0)


@contextmanager
def steer(pipe: Any, modules: Row | Sequence[Row], *, strength: float = 1.0) -> Iterator[None]:
    """While active, calls of ``pipe`` are steered; after exit, also by an exception, it is bit-identical to before.

    Every step adds ``strength * (r + s)`` to h of the conditional rows only, as in the paper.

    Args:
        pipe: a supported diffusers pipeline.
        modules: one `ConceptModule` for all images, or a list with one entry per final image
            (``len(prompts) * num_images_per_prompt``): a module, a list of modules to add up, or None for no steering.
        strength: factor on every module, any finite number.

    Raises:
        ValueError: for a module that does not fit, or (at the call) when the number of images is not the number of entries.

    Example::

        with steer(pipe, [woman, man, None]):
            images = pipe("a doctor", num_images_per_prompt=3).images
    """
    row_blocks(pipe)
    if isinstance(modules, str):
        raise ValueError(f"modules is the text {modules!r}; give ConceptModule objects: a file is read with respodiff.load(path)")
    if hasattr(pipe.unet, "_orig_mod") or getattr(pipe.unet, "_compiled_call_impl", None) is not None:
        # PyTorch does not look at hooks again once a module is compiled: steering would be without effect, and without a word.
        raise ValueError("the UNet is compiled, and a hook added now would be ignored; steer the pipeline with its uncompiled UNet")
    rows: list[Row] = [modules] if modules is None or isinstance(modules, ConceptModule) else list(modules)
    if not -float("inf") < strength < float("inf"):
        raise ValueError(f"strength is {strength}; allowed: any finite number")
    if not rows:
        raise ValueError("modules is empty; give one module, or one entry per image")
    distinct = {id(m): m for row in rows for m in ([row] if isinstance(row, ConceptModule) else row or ())}
    for module in distinct.values():
        if not isinstance(module, ConceptModule):
            raise ValueError(f"modules holds {module!r}; give ConceptModule objects, or None: a file is read with respodiff.load(path)")
        for text in misfits(pipe, module):
            warnings.warn(text, stacklevel=3)
    deltas = [_delta(row) for row in rows]
    given = [d for d in deltas if d is not None]
    if len({d.shape for d in given}) > 1:
        raise ValueError(f"modules have shapes {sorted({tuple(d.shape) for d in given})}; resize them to one with ConceptModule.resize")
    everyone = modules is None or isinstance(modules, ConceptModule)
    stacked = torch.stack([torch.zeros_like(given[0]) if d is None else d for d in deltas]) * strength if given and strength else None
    with shifted(pipe.unet, _Fitted(pipe, stacked, None if everyone else len(rows))):
        yield


class _Fitted:
    """Deltas (B or 1, C, H, W) brought to the size, device and dtype of the call, once each; None where there is nothing to add.

    ``entries`` is the number of images they were given for, None for any number.
    """

    def __init__(self, pipe: Any, stacked: Tensor | None, entries: int | None) -> None:
        self.pipe, self.stacked, self.entries = pipe, stacked, entries
        self.cache: dict[tuple[Any, ...], Tensor] = {}

    def __call__(self, h: Tensor) -> tuple[Tensor, slice] | None:
        rows = conditional_rows(self.pipe, h.shape[0])
        images = rows.stop - rows.start
        if self.entries not in (None, images):
            raise ValueError(
                f"steer() was given {self.entries} entries, but the pipeline draws {images} images; "
                "give one module for all, or one entry per image (prompts x num_images_per_prompt)"
            )
        if self.stacked is None:
            return None
        key = (h.shape[2:], h.device, h.dtype)
        if key not in self.cache:
            delta = self.stacked
            if delta.shape[2:] != h.shape[2:]:
                warnings.warn(
                    f"module of {tuple(delta.shape[2:])} is resized to the bottleneck {tuple(h.shape[2:])} of this picture size; check its effect",
                    stacklevel=2,
                )
                delta = interpolate(delta, h.shape[2:], mode="bilinear", antialias=True)
            self.cache[key] = delta.to(h.device, h.dtype)
        return self.cache[key], rows
