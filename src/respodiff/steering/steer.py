"""Steering a diffusers pipeline: modules in, images changed, the pipeline left as it was."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from respodiff.pipelines.bottleneck import add_to_rows, site_module, site_shape, stream, with_stream
from respodiff.pipelines.compiled import is_compiled, open_compiled_hook
from respodiff.pipelines.loading import config_digest, model_name, weights_digest
from respodiff.pipelines.registry import backbone, caller, conditional_rows, spec_of
from respodiff.steering.deltas import Deltas, Row, modules_of
from respodiff.steering.module import ConceptModule


def check_compatible(pipe: Any, module: ConceptModule) -> list[str]:
    """Warnings about a module on a pipeline: another base model or config of the same width.

    Raises:
        ValueError: if the site or the number of channels differs, naming both sides.
    """
    model = backbone(pipe)
    site = spec_of(pipe).site(model)
    shape = site_shape(model, site=site)
    if module.header.site != site:
        raise ValueError(f"module {module.name!r} was trained at site {module.header.site!r}, this pipeline is steered at {site!r}")
    if module.shape[0] != shape[0]:
        raise ValueError(
            f"module {module.name!r} has {module.shape[0]} channels, the bottleneck of model {model_name(pipe)!r} has {shape[0]}; "
            f"it was trained on {module.header.base_model!r}: train one for this model"
        )
    if site != "mid_block" and module.shape[1:] != (1, 1):
        raise ValueError(
            f"module {module.name!r} has shape {module.shape}; a transformer takes one number a channel: ConceptModule.channels()"
        )
    if module.header.base_digest and module.header.base_digest != config_digest(model):
        return [f"module {module.name!r} was trained on a UNet of another configuration ({module.header.base_model!r}); check its effect"]
    found = weights_digest(model)
    if module.header.base_weights and found and module.header.base_weights != found:
        return [f"module {module.name!r} was trained on other weights ({module.header.base_model!r}); check its effect"]
    return []


@contextmanager
def steer(pipe: Any, modules: Row | Sequence[Row], *, scale: float = 1.0) -> Iterator[None]:
    """While active, calls of ``pipe`` are steered; after exit, also by an exception, it is bit-identical to before.

    Every step adds ``scale * (r + s)`` to h of the conditional rows only, as in the paper; of other forms than constants what they make
    of h and the timestep (`respodiff.steering.parameterisations`), times ``scale``.

    Args:
        pipe: a supported diffusers pipeline (`respodiff.pipelines.registry`). Another one that shares its model is left alone, with a warning; a
            compiled model compiles once more. Threads need a pipeline each.
        modules: one `ConceptModule` for all images, or a list with one entry per final image
            (``len(prompts) * num_images_per_prompt``): a module, a list of modules to add up, or None for no steering.
        scale: factor on every module, any finite number.

    Raises:
        ValueError: for a module that does not fit, or (at the call) when the number of images is not the number of entries.

    Example::

        with steer(pipe, [woman, man, None]):
            images = pipe("a doctor", num_images_per_prompt=3).images
    """
    spec_of(pipe)
    if isinstance(modules, str):
        raise ValueError(f"modules is the text {modules!r}; give ConceptModule objects: a file is read with respodiff.load(path)")
    if not -float("inf") < scale < float("inf"):
        raise ValueError(f"scale is {scale}; allowed: any finite number")
    everyone = modules is None or isinstance(modules, ConceptModule)
    rows: list[Row] = [modules] if modules is None or isinstance(modules, ConceptModule) else list(modules)
    _check(pipe, rows)
    steering = _Steering(pipe, Deltas(rows, scale), None if everyone else len(rows))
    with steering.attached():
        yield


def _check(pipe: Any, rows: Sequence[Row]) -> None:
    """Refuses what does not fit; warns of what was trained on another model."""
    if not rows:
        raise ValueError("modules is empty; give one module, or one entry per image")
    for module in {id(m): m for row in rows for m in modules_of(row)}.values():
        if not isinstance(module, ConceptModule):
            raise ValueError(f"modules holds {module!r}; give ConceptModule objects, or None: a file is read with respodiff.load(path)")
        for text in check_compatible(pipe, module):
            warnings.warn(text, stacklevel=5)


_active: list[_Steering] = []
_active_lock = threading.Lock()


class _Steering:
    """One `steer` block: what is added for the calls of one pipeline.

    A model may be shared: by pipelines, and by threads that have a pipeline each. So every call is asked who makes it, and what is to be
    added at the site is kept per thread. ``entries`` is the number of images that the deltas were given for, None for any number.
    """

    def __init__(self, pipe: Any, deltas: Deltas | HRecorder, entries: int | None) -> None:
        self.pipe, self.deltas, self.entries = pipe, deltas, entries
        self.thread, self.call = threading.get_ident(), threading.local()
        self.live, self.warned = True, False

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on the model, or, where it is compiled, a place at its port; gone on exit."""
        wrapped, model = getattr(self.pipe, spec_of(self.pipe).model), backbone(self.pipe)
        name = spec_of(self.pipe).site(model)
        site: Any = site_module(model, name)
        if "_compiled_call_impl" in site.__dict__:
            raise ValueError(
                f"{name} is compiled on its own, and a hook on it would be ignored; compile the whole model instead, or not that block"
            )
        if self.deltas.reads_h and is_compiled(wrapped):
            raise ValueError(
                "the model is compiled, and h inside of its call can be read neither by a module of form 'lowrank' nor for assign_at; "
                "draw with the plain model, or without them"
            )
        with _active_lock:
            if any(s.pipe is self.pipe and s.thread != self.thread for s in _active):
                raise ValueError(
                    "this pipeline is being steered in another thread; give each thread a pipeline of its own (from_pipe shares the weights)"
                )
            _active.append(self)
        with ExitStack() as stack:
            stack.callback(_active.remove, self)
            if is_compiled(wrapped):
                steerings = open_compiled_hook(wrapped, name).steerings
                steerings.append(self.all_rows)
                stack.callback(steerings.remove, self.all_rows)
            else:
                for handle in (model.register_forward_pre_hook(self.before, with_kwargs=True), site.register_forward_hook(self.at_site)):
                    stack.callback(handle.remove)
            try:
                yield
            finally:
                self.live = False  # code that was compiled inside of the block may call the hooks of a block that has ended
                self.deltas.clear()

    def before(self, _model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Pre-hook of the model: which rows of this call are to be shifted."""
        self.call.rows = self.rows(args, kwargs) if self.live else None
        self.call.t = self.timesteps(args, kwargs) if self.live else None

    def at_site(self, _site: Any, _args: Any, output: Any) -> Any:
        """Hook of the site: shifts them."""
        rows = getattr(self.call, "rows", None)  # none: the call began in another thread, before this block did
        if rows is None:
            return None
        h, t = stream(output), self.call.t
        height, width = h.shape[2:] if h.ndim == 4 else (1, 1)
        added = self.deltas.at((height, width), h[rows], t[rows] if t.numel() > 1 else t)
        return None if added is None else with_stream(output, add_to_rows(h, added, rows))

    def all_rows(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
        """Deltas (R, C, H, W) of all rows of a call of a compiled model, zero where nothing is to be added."""
        rows = self.rows(args, kwargs)
        if rows is None or self.deltas.stacked is None:
            return None
        model, sample = backbone(self.pipe), _sample(args, kwargs)
        site = spec_of(self.pipe).site(model)
        height, width = sample.shape[-2:] if site == "mid_block" else (None, None)
        shape = site_shape(model, height, width, site)
        full, t = torch.zeros(len(sample), *shape, device=sample.device, dtype=sample.dtype), self.timesteps(args, kwargs)
        added = self.deltas.at(shape[1:], full[rows], t[rows] if t.numel() > 1 else t)
        assert added is not None
        full[rows] = added.to(full.dtype)
        return full

    def timesteps(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Timesteps (R,) or () of a call of the model, 0 to 999; 0 where nothing depends on them."""
        if not self.deltas.moving:
            return torch.zeros(())
        t = torch.as_tensor(kwargs["timestep"] if "timestep" in kwargs else args[1])
        # Flux is told a thousandth; the rest keeps whole numbers whole after the division.
        return t.float() * 1000 + 1e-3 if spec_of(self.pipe).family == "flux" else t

    def rows(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> slice | None:
        """Rows of a call of the model that are conditional and this pipeline's; None for none."""
        found = caller()
        if found is None:
            raise ValueError("the model was called outside of its pipeline, so which rows are conditional is unknown; call the pipeline")
        pipe, call = found
        if pipe is not self.pipe:
            if not self.warned and not any(s.pipe is pipe for s in _active):
                self.warned = True
                warnings.warn(
                    f"a {type(pipe).__name__} that shares the model of a steered pipeline draws unsteered; steer it too if it should be",
                    stacklevel=2,
                )
            return None
        context = kwargs.get("encoder_hidden_states", args[2] if len(args) > 2 else None)
        rows = conditional_rows(pipe, len(_sample(args, kwargs)), call, context)
        images = rows.stop - rows.start if rows else self.entries
        if self.entries not in (None, images):
            raise ValueError(
                f"steer() was given {self.entries} entries, but the pipeline draws {images} images; "
                "give one module for all, or one entry per image (prompts x num_images_per_prompt)"
            )
        return rows


def _sample(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    sample: Tensor = args[0] if args else kwargs["sample"] if "sample" in kwargs else kwargs["hidden_states"]
    return sample


class HRecorder:
    """Stands where `Deltas` stands, adds nothing, and shows h of the conditional rows to a function."""

    stacked, moving, reads_h = None, (), True

    def __init__(self, seen: Callable[[Tensor], None]) -> None:
        self.seen = seen

    def at(self, _size: tuple[int, int], h: Tensor, _t: Tensor) -> None:
        self.seen(h)

    def clear(self) -> None:
        """Nothing is kept."""


@contextmanager
def capture_h(pipe: Any, seen: Callable[[Tensor], None]) -> Iterator[None]:
    """While active, every call of the model shows h (B, C, H, W) or (B, N, C) of its conditional rows to ``seen``; nothing is changed.

    Raises:
        ValueError: for a compiled model, which shows nothing.
    """
    with _Steering(pipe, HRecorder(seen), None).attached():
        yield
