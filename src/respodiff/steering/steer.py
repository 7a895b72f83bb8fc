"""Provides `steer`: adapters in, images changed, the pipeline left as it was; and the hook that adds offsets at the bottleneck."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from respodiff.pipelines.bottleneck import add_to_rows, is_compiled, open_compiled_hooks, site_module, site_shape, stream, with_stream
from respodiff.pipelines.denoiser import names_of
from respodiff.pipelines.registry import Site, backbone, caller, image_tokens, row_blocks, site_of, spec_of
from respodiff.steering.adapter import Adapter, AdaptersPerImage, Row
from respodiff.steering.guard import Guard, claimed, is_steered
from respodiff.steering.serialization import check_scale

ATTACHED = "_respodiff"
"""Attribute of a pipeline that holds what `respodiff.steering.attach.attach` made for it."""


def check_compatible(pipe: Any, adapter: Adapter) -> list[str]:
    """Warnings about an adapter on a pipeline: another base model, or other weights.

    ValueError for what is no adapter, or does not fit the pipeline; names both sides.
    """
    if not isinstance(adapter, Adapter):
        raise ValueError(f"adapter is {adapter!r}; give what a method made: a file is read with respodiff.load(path)")
    return adapter.check(pipe)


@contextmanager
def steer(pipe: Any, adapters: Row | Sequence[Row] | AdaptersPerImage, *, scale: float = 1.0) -> Iterator[None]:
    """While active, calls of ``pipe`` are steered; after exit, also by an exception, it is bit-identical to before.

    Modules add ``scale * (r + s)`` to h of the conditional rows at every step, as in the paper, at each of their sites.

    Args:
        pipe: a supported diffusers pipeline (`respodiff.pipelines.registry`). Another one that shares its model is left alone, with a
            warning; a compiled model compiles once more. Threads need a pipeline each, with its own scheduler and tokenizers.
        adapters: one adapter of any method for all images, or a list with one entry per final image
            (``len(prompts) * num_images_per_prompt``): an adapter, several that act together, or None. A module may be named, as in `load`.
        scale: factor on every adapter, any finite number.

    Raises:
        ValueError: for an adapter that does not fit or cannot act with the others, beside attached ones that act, for a pipeline, scheduler or
            tokenizer that another thread steers, or (at the call) when the number of images is not the number of entries.
        RuntimeError: (at the call) for predictions or images that are NaN or infinite; names the adapters.

    Example::

        with steer(pipe, [woman, man, None]):
            images = pipe("a doctor", num_images_per_prompt=3).images
    """
    spec_of(pipe)
    check_scale(scale)
    if (attached := vars(pipe).get(ATTACHED)) and (active := attached.get_active_adapters()):
        raise ValueError(
            f"adapters {', '.join(active)} are attached to this pipeline; call its disable_adapters() first, or give all to steer()"
        )
    given = AdaptersPerImage.of(adapters)
    given = given if scale == 1 else given.map(lambda a: a.scale(scale))
    for a in given.adapters:
        for text in check_compatible(pipe, a):
            warnings.warn(text, stacklevel=3)
        if not a.scales and a.weight not in (0, 1):
            raise ValueError(f"scale of {a.method} {a.name!r} is {a.weight:g}; allowed: 0 or 1, as this method has no scale")
    acting = given.map(lambda a: a if a.weight and a.apply is not Adapter.apply else None)
    extra, others = ([a.method for a in acting.adapters if a.extra_forward is flag] for flag in (True, False))
    if extra and others:
        raise ValueError(f"method {extra[0]!r} calls the model once more per step, which {min(others)!r} would act on; use one of them")
    with ExitStack() as stack:
        stack.enter_context(claimed(pipe, next((a.method for a in acting.adapters if not a.header.form), "")))
        if not acting.adapters:
            stack.enter_context(Shift(pipe, {site_of(pipe): NoOffset()}, given).attached())  # counts the images
        # Modules last: others may change the prompt, and with it where the tokens of the image are.
        forms = {a.apply for a in acting.adapters if a.header.form}
        for apply in sorted(dict.fromkeys(a.apply for a in acting.adapters), key=forms.__contains__):
            own = acting.map(lambda a: a if a.apply is apply else None)  # noqa: B023  (called at once)
            stack.enter_context(apply(pipe, own))
        stack.enter_context(Guard(pipe, acting).attached())  # the last hook: it sees what methods make of a prediction
        yield


class NoOffset:
    """What is added at a site: nothing. Subclasses add something.

    Attributes:
        reads_h, reads_timesteps: whether the offset depends on h or on the timestep.
    """

    reads_h = False
    reads_timesteps = False

    def at(self, h: Tensor, t: Tensor) -> Tensor | None:
        """The offset (B or 1, C, H, W) for h of the conditional rows, (B, C, H, W) or (B, N, C), or None."""
        return None

    def clear(self) -> None:
        """Forgets what was put on devices."""


class Shift:
    """Adds offsets at sites for the calls of one pipeline; ``adapters`` says for how many images the offsets are.

    Pipelines and threads may share a model. So every call is asked who makes it, and its rows are kept per thread.
    """

    def __init__(self, pipe: Any, deltas: Mapping[Site, NoOffset], adapters: AdaptersPerImage) -> None:
        self.pipe, self.deltas, self.adapters = pipe, deltas, adapters
        self.call = threading.local()
        self.live, self.warned = True, False

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on the model, or a place at its compiled hook; gone on exit."""
        wrapped, model = getattr(self.pipe, spec_of(self.pipe).model), backbone(self.pipe)
        if is_compiled(wrapped) and spec_of(self.pipe).tokens:
            raise ValueError(
                f"the model is compiled, and tokens of {type(self.pipe).__name__} differ from call to call; use the plain model"
            )
        if is_compiled(wrapped) and any(d.reads_h for d in self.deltas.values()):
            raise ValueError("the model is compiled, and modules whose form reads h need hooks; use the plain model")
        modules = {site: site_module(model, site) for site in self.deltas}
        if own := [site for site, module in modules.items() if "_compiled_call_impl" in vars(module)]:
            raise ValueError(
                f"{own[0]} is compiled on its own, and a hook on it would be ignored; compile the whole model, or not that block"
            )
        with ExitStack() as stack:
            stack.enter_context(claimed(self.pipe))
            if is_compiled(wrapped):
                steerings = open_compiled_hooks(wrapped, list(self.deltas)).steerings
                steerings.append(self.all_rows)
                stack.callback(steerings.remove, self.all_rows)
            else:
                stack.enter_context(model.register_forward_pre_hook(self.before, prepend=True, with_kwargs=True))
                stack.enter_context(model.register_forward_pre_hook(self.place, with_kwargs=True))
                for site, module in modules.items():
                    stack.enter_context(module.register_forward_hook(partial(self.at_site, site)))
            try:
                yield
            finally:
                self.live = False  # code that was compiled inside of the block may call the hooks of a block that has ended
                for deltas in self.deltas.values():
                    deltas.clear()

    def before(self, _model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> None:
        """First pre-hook of the model: which rows of this call, as the pipeline made it, are to be shifted."""
        self.call.rows = self.call.t = None
        if self.live and kwargs is not None:  # torch gives none to a thread that calls while another adds or removes its hook
            self.call.rows, self.call.t = self.rows(args, kwargs), self.timesteps(args, kwargs)

    def place(self, _model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> None:
        """Last pre-hook: where the image's tokens are in what the model gets, with a prompt that another adapter may have changed."""
        if kwargs is not None and getattr(self.call, "rows", None) is not None:  # a call of this pipeline, not of one that shares its model
            for site in self.deltas:
                site.tokens = image_tokens(self.pipe, _sample(args, kwargs), kwargs.get("encoder_attention_mask"))

    def at_site(self, site: Site, _module: Any, _args: Any, output: Any) -> Any:
        """Hook of a site: shifts them."""
        rows = getattr(self.call, "rows", None)  # none: the call began in another thread, before this block did
        if rows is None:
            return None
        h = stream(output, site)
        added = self._added(site, h, rows, self.call.t)
        return None if added is None else with_stream(output, add_to_rows(h, added, rows), site)

    def all_rows(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Site -> offsets (R, C, H, W) of all rows of a call of a compiled model, zero where nothing is to be added."""
        rows, found = self.rows(args, kwargs), dict[str, Tensor]()
        if rows is None:
            return found
        sample = _sample(args, kwargs)
        if spec_of(self.pipe).references and image_tokens(self.pipe, sample, None) is not None:
            raise ValueError("the model is compiled, and tokens of images that are given follow those of the image; use the plain model")
        height, width = sample[0].shape[-2:]  # a transformer's module does not depend on them
        for site in self.deltas:
            shape = site_shape(backbone(self.pipe), height, width, site)
            full = torch.zeros(len(sample), *shape, device=sample[0].device, dtype=sample[0].dtype)
            if (added := self._added(site, full, rows, self.timesteps(args, kwargs))) is not None:
                full[rows] = added.to(full.dtype)
                found[site] = full
        return found

    def _added(self, site: Site, h: Tensor, rows: slice, t: Tensor) -> Tensor | None:
        return self.deltas[site].at(h[rows], t[rows] if t.numel() > 1 else t)

    def timesteps(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Timesteps (R,) or () of a call of the model, 0 to below 1000; 0 where nothing depends on them."""
        if not any(d.reads_timesteps for d in self.deltas.values()):
            return torch.zeros(())
        name = names_of(backbone(self.pipe))[1]
        t = torch.as_tensor(kwargs[name] if name in kwargs else args[1])
        # Flux is told a thousandth; the rest keeps whole numbers whole after the division. Flow matching calls pure noise 1000.
        a, b = spec_of(self.pipe).time
        return (t if (a, b) == (1, 0) else (t.float() - b) / a + 1e-3).clamp(max=999)

    def rows(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> slice | None:
        """Rows of a call of the model that are conditional and this pipeline's; None for none."""
        found = caller()
        if found is None:
            raise ValueError("the model was called outside of its pipeline, so which rows are conditional is unknown; call the pipeline")
        pipe, call = found
        if pipe is not self.pipe:
            if not self.warned and not is_steered(pipe):
                self.warned = True
                text = f"a {type(pipe).__name__} that shares the model of a steered pipeline is not steered; steer it too if it should be"
                warnings.warn(text, stacklevel=2)
            return None
        context = kwargs.get("encoder_hidden_states", args[2] if len(args) > 2 else None)
        rows = row_blocks(pipe, len(_sample(args, kwargs)), call, context).get("cond")
        if rows:
            self.adapters.per_image(rows.stop - rows.start)
        return rows


def _sample(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | Sequence[Tensor]:
    """The latent (R, C, H, W) of a call of the model, or one (C, 1, H, W) a row."""
    sample: Tensor | Sequence[Tensor] = args[0] if args else next(kwargs[k] for k in ("sample", "hidden_states", "x") if k in kwargs)
    return sample


class _HRecorder(NoOffset):
    def __init__(self, seen: Callable[[Tensor], None]) -> None:
        self.seen = seen

    def at(self, h: Tensor, t: Tensor) -> None:
        self.seen(h)


def capture_h(pipe: Any, seen: Callable[[Tensor], None]) -> AbstractContextManager[None]:
    """While active, every call of the model shows h (B, C, H, W) or (B, N, C) of its conditional rows to ``seen``; nothing is changed.

    ValueError for a compiled model, which shows nothing.
    """
    if is_compiled(getattr(pipe, spec_of(pipe).model)):
        raise ValueError("the model is compiled, and its h cannot be read for assign_at; use the plain model, or leave assign_at out")
    return Shift(pipe, {site_of(pipe): _HRecorder(seen)}, AdaptersPerImage.of(None)).attached()
