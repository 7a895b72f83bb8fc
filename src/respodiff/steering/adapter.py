"""Provides the adapter: what a method trains or builds for one concept, as tensors with a header, and how it acts on images."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from respodiff._version import __version__
from respodiff.concepts.concept import Concept
from respodiff.pipelines.identity import config_digest, precision, weights_digest
from respodiff.pipelines.loading import model_name
from respodiff.pipelines.registry import backbone, spec_of
from respodiff.steering.serialization import Header, check_scale, digest_of, read_file, read_header, write_file
from respodiff.steering.shipped import one_file


@dataclass(frozen=True, eq=False)
class Adapter:
    """One concept (or attribute) as a method keeps it. Immutable. A method's file has a subclass that says how it acts.

    Attributes:
        header: method, concept, prompts, base model and its digests; ``train`` holds the settings.
        tensors: name -> float32 tensor on the CPU; empty for methods that need none.
        weight: scale that it is applied at; 1 is as trained.
        scales: whether a weight other than 0 and 1 means something.
        extra_forward: whether it calls the model once more per step, so that it cannot share an image with other adapters.
        batch_dependent: whether an image depends on the other images of its batch.
        transformers: whether it acts on pipelines with a transformer.
        converts: whether files of other programs become such adapters, whose only setting is then ``converted``: what they were made of.
    """

    header: Header
    tensors: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    weight: float = 1.0

    scales: ClassVar[bool] = True
    extra_forward: ClassVar[bool] = False
    batch_dependent: ClassVar[bool] = False
    transformers: ClassVar[bool] = False
    converts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_scale(self.weight)
        for name, t in self.tensors.items():
            if not torch.isfinite(t).all():
                raise ValueError(f"tensor {name!r} holds NaN or infinite values; train again with a smaller learning rate")

    @staticmethod
    def apply(pipe: Any, adapters: AdaptersPerImage) -> AbstractContextManager[object]:
        """A block in which calls of ``pipe`` give each image its adapters of this class. An `Adapter` itself changes nothing."""
        return nullcontext()

    @property
    def name(self) -> str:
        """Name of the concept or attribute."""
        return self.header.concept

    @property
    def method(self) -> str:
        """Key in `respodiff.methods.registry.names`."""
        return self.header.method

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings that it was made with."""
        return self.header.train

    @property
    def digest(self) -> str:
        """16 hex digits of all that an image depends on (`respodiff.steering.serialization.digest_of`)."""
        return digest_of(self.header, self.tensors, self.weight)

    def scale(self, factor: float) -> Self:
        """The same adapter at ``factor`` times the scale: any finite number; 0 does nothing, negative values steer the other way."""
        check_scale(factor)
        return replace(self, weight=self.weight * factor)

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Writes the file atomically.

        Raises:
            OSError: the folder cannot be written.
            ValueError: the file is there and is no adapter, and not ``force``.
        """
        return write_file(path, self.header, self.tensors, self.weight, force=force)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a file of this class of adapters; `respodiff.load` reads a file of any method, and says which names stand for one.

        Raises as `read_file`.
        """
        path = one_file(path)
        header, tensors, scale, _ = read_file(path)
        try:
            return cls(header, tensors, scale)
        except ValueError as error:
            raise ValueError(f"adapter file {str(path)!r} cannot be used: {error}") from error

    def check(self, pipe: Any) -> list[str]:
        """Warnings about the adapter on a pipeline. ValueError if it was made for a model of another configuration."""
        if not self.transformers:
            require_unet(pipe, self.method)
        if not self.tensors:
            return []
        h, model = self.header, backbone(pipe)
        made = f"{self.method} {self.name!r} was made for"
        if h.base_digest and h.base_digest != (found := config_digest(model)):
            raise ValueError(
                f"{made} {h.base_model!r} (config {h.base_digest}), this pipeline is {model_name(pipe)!r} (config {found}); "
                "train one for this model"
            )
        return [f"{made} other weights ({h.base_model!r}); check its effect"] * self.other_weights(model)

    def other_weights(self, model: Any) -> bool:
        """Whether the model is known to have other weights than the one that the adapter was made for."""
        found = weights_digest(model)
        return bool(self.header.base_weights and found and self.header.base_weights != found)


Row = Adapter | str | Path | None | Sequence[Adapter | str | Path]
"""What one image gets: an adapter, nothing, or several adapters together. A module may be named: by file, hub id, or concept."""


@dataclass(frozen=True)
class AdaptersPerImage:
    """What the images of a call get: one tuple of adapters per image, or one tuple for all images (``everyone``)."""

    rows: tuple[tuple[Any, ...], ...]
    everyone: bool = False

    @classmethod
    def of(cls, adapters: Row | Sequence[Row] | AdaptersPerImage) -> AdaptersPerImage:
        """From one adapter for all images, or one entry per image. ValueError for anything else."""
        if isinstance(adapters, AdaptersPerImage):
            return adapters
        everyone = adapters is None or isinstance(adapters, Adapter | str | Path)
        given: list[Any] = [adapters] if everyone else list(adapters)  # type: ignore[arg-type]  # a sequence here
        rows = tuple((row,) if isinstance(row, Adapter | str | Path) else tuple(row or ()) for row in given)
        if not rows:
            raise ValueError("adapters is empty; give one adapter, or one entry per image")
        read = {a: read_module(a) for row in rows for a in row if isinstance(a, str | Path)}
        rows = tuple(tuple(read[a] if isinstance(a, str | Path) else a for a in row) for row in rows)
        if wrong := [a for row in rows for a in row if not isinstance(a, Adapter)]:
            raise ValueError(f"adapters holds {wrong[0]!r}; give adapters, names of module files, or None")
        return cls(rows, everyone)

    def per_image(self, images: int) -> Sequence[tuple[Any, ...]]:
        """One tuple per image. ValueError if there are more or fewer images than entries."""
        if self.everyone:
            return self.rows * images
        if len(self.rows) != images:
            raise ValueError(
                f"steer() was given {len(self.rows)} entries, but the pipeline generates {images} images; "
                "give one adapter for all, or one entry per image (prompts x num_images_per_prompt)"
            )
        return self.rows

    def map(self, change: Callable[[Any], Any]) -> AdaptersPerImage:
        """The same with every adapter changed; those for which ``change`` gives None are left out."""
        made = {id(a): change(a) for a in self.adapters}
        rows = tuple(tuple(made[id(a)] for a in row if made[id(a)] is not None) for row in self.rows)
        return AdaptersPerImage(rows, self.everyone)

    @property
    def adapters(self) -> list[Any]:
        """Every distinct adapter, in order of appearance."""
        return list({id(a): a for row in self.rows for a in row}.values())


def read_module(name: str | Path) -> Adapter:
    """The module of a name. Files of other methods are read by `respodiff.load`, which knows the methods."""
    from respodiff.steering.module import ConceptModule

    header = read_header(path := one_file(name))
    if not header.form:
        raise ValueError(
            f"{str(name)!r} is a file of method {header.method!r}, and modules alone may be named; give respodiff.load({str(name)!r})"
        )
    return ConceptModule.load(path)


def header_of(pipe: Any, method: str, concept: Concept, config: Any, **more: Any) -> Header:
    """The header of an adapter that a method made for a pipeline; ``config`` is a dataclass of settings, ``more`` sets other fields."""
    model, settings = backbone(pipe), json.loads(json.dumps(asdict(config)))
    base = {"base_model": model_name(pipe), "base_digest": config_digest(model), "base_weights": weights_digest(model), "site": ""}
    base["base_precision"] = precision(model)
    return replace(Header.of(concept, **base, library=__version__, method=method, train=settings), **more)


def require_unet(pipe: Any, method: str) -> None:
    """ValueError for a pipeline that has a transformer, of a method that is for UNets."""
    if reason := for_unets(pipe, method):
        raise ValueError(reason)


def for_unets(pipe: Any, method: str) -> str:
    """What is said of a pipeline that has a transformer by a method that is for UNets; empty for others."""
    if spec_of(pipe).model == "unet":
        return ""
    return f"method {method!r} is for Stable Diffusion 1.x, 2.x and XL, not for {type(pipe).__name__}; use respodiff, slider, esd-x, or a prompt"
