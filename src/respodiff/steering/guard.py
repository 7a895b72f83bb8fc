"""Provides the guards of a steered pipeline: values that are not finite stop it, and what threads cannot share is refused."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from respodiff.pipelines.bottleneck import is_compiled
from respodiff.pipelines.registry import backbone, caller, spec_of
from respodiff.steering.adapter import AdaptersPerImage

OWN = ("scheduler", "tokenizer", "tokenizer_2", "tokenizer_3", "tokenizer_4")
"""Parts that keep the settings of a call, so that two threads at once would silently get each other's."""

_claims: list[tuple[int, ref[Any], str]] = []
"""Thread, pipeline, and the method that changes its model for all threads, or "". A pipeline that nobody else holds is freed."""
_lock = threading.Lock()


@contextmanager
def claimed(pipe: Any, method: str = "") -> Iterator[None]:
    """While active, no other thread may steer this pipeline, or one that shares its scheduler or a tokenizer: ValueError.

    With a ``method`` that is not of modules, the model cannot be shared either.
    """
    claim = (threading.get_ident(), ref(pipe), method)
    with _lock:
        for thread, held, used in [*_claims]:
            if (other := held()) is None:
                continue
            shared = [name for name in OWN if (part := getattr(pipe, name, None)) is not None and part is getattr(other, name, None)]
            if thread != claim[0] and (shared or pipe is other):
                copies = ", ".join(f"{name}=deepcopy(pipe.{name})" for name in OWN if getattr(pipe, name, None) is not None)
                raise ValueError(
                    f"the {shared[0] if shared else 'pipeline'} is in use by steer() in another thread; give each thread its own pipeline, "
                    f"type(pipe).from_pipe(pipe, dtype=pipe.dtype, {copies}), or take turns with a lock"
                )
            if thread != claim[0] and (method or used) and backbone(pipe) is backbone(other):
                raise ValueError(f"method {method or used!r} cannot share its model with another thread; give each its own, or use a lock")
        _claims.append(claim)
    try:
        yield
    finally:
        _claims.remove(claim)


def is_steered(pipe: Any) -> bool:
    """Whether any thread steers this pipeline."""
    return any(pipe is held() for _, held, _ in _claims)


class Guard:
    """Stops a pipeline whose predictions or images are not finite; of a compiled model it sees images alone."""

    def __init__(self, pipe: Any, adapters: AdaptersPerImage) -> None:
        self.pipe, self.rows = pipe, adapters.rows
        self.last: tuple[str, Tensor] | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on the model and on the decoder of images, gone on exit. RuntimeError inside of a call, or at the end of the block."""
        watched = {"image": getattr(self.pipe.vae, "decoder", None)}
        if not is_compiled(getattr(self.pipe, spec_of(self.pipe).model)):
            watched["prediction"] = backbone(self.pipe)
        with ExitStack() as stack:
            for what, module in watched.items():
                if module is not None:
                    stack.callback(module.register_forward_hook(partial(self.look, what)).remove)
            yield
        self.check()

    def look(self, what: str, _module: Any, _args: Any, output: Any) -> None:
        """Hook: sums up each row. A prediction's sums are read when the next one is made, so that no GPU is waited for."""
        if torch.compiler.is_compiling() or (found := caller()) is None or found[0] is not self.pipe:
            return
        self.check()
        values: Tensor = output if isinstance(output, Tensor) else output[0]
        values = torch.stack([*values]) if isinstance(values, list) else values  # Z-Image has an entry a row
        self.last = what, values.detach().sum(tuple(range(1, values.ndim)), dtype=torch.float32)
        if what == "image":
            self.check()

    def check(self) -> None:
        """RuntimeError with the adapters of the first row whose sum is not finite."""
        what, sums = self.last or ("", torch.zeros(0))
        self.last, n = None, len(self.rows)
        wrong = [i for i, value in enumerate(sums.tolist()) if not math.isfinite(value)]
        if not wrong:
            return
        # Rows are pass-major. A decoder that takes images one by one does not tell which it has.
        own = self.rows[wrong[0] % n] if len(sums) % n == 0 else [a for row in self.rows for a in row]
        used = ", ".join(dict.fromkeys(f"{a.method} {a.name!r} at scale {a.weight:g}" for a in own)) or "no adapter"
        raise RuntimeError(
            f"the {what} is NaN or infinite, made with {used} in {backbone(self.pipe).dtype}; "
            "use a smaller scale or float32, or train again with a smaller learning rate"
        )
