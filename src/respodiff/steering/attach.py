"""Provides `attach`: adapters that stay on a pipeline, by the verbs that diffusers has for LoRA, through `steer` and `fused`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from respodiff.pipelines.registry import spec_of
from respodiff.steering.adapter import Adapter, AdaptersPerImage, read_module
from respodiff.steering.fuse import fused
from respodiff.steering.module import ConceptModule
from respodiff.steering.shipped import files_of, with_factor
from respodiff.steering.steer import ATTACHED, check_compatible, steer


def attach(pipe: Any) -> Attached:
    """The adapters of a pipeline, by the verbs of LoRA; the same object at every call, until ``unload_weights``.

    The pipeline holds it. Nothing changes until ``set_adapters``, and `steer`, which has an entry per image, is refused while adapters act.
    ValueError for a pipeline that cannot be steered.

    Example::

        adapters = respodiff.attach(pipe)
        adapters.load_weights("woman.safetensors", adapter_name="woman")
        adapters.set_adapters("woman", adapter_weights=0.8)
        images = pipe("a doctor").images  # steered as inside of `steer`
        adapters.unload_weights()
    """
    spec_of(pipe)
    if ATTACHED not in vars(pipe):
        setattr(pipe, ATTACHED, Attached(pipe))
    found: Attached = vars(pipe)[ATTACHED]
    return found


class State(NamedTuple):
    """What acts: adapters by name with their weights, whether at all, and the scale at which they are fused (None: they are steered)."""

    weights: Mapping[str, float] = {}
    enabled: bool = True
    fused: float | None = None


class Attached:
    """Loaded adapters of one pipeline by name, and those of them that act on all of its images. Made by `attach`."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self._loaded: dict[str, Adapter] = {}
        self._state, self._acting = State(), ExitStack()

    def load_weights(self, source: str | Path | Adapter, adapter_name: str = "") -> list[str]:
        """Loads the modules of a file, folder or hub id, or an adapter of any method; gives their names. None of them acts yet.

        Args:
            source: named as for `respodiff.load_all`. Of a method without modules, what `respodiff.load` reads.
            adapter_name: name of the one adapter; empty for the name of each concept.

        Raises:
            FileNotFoundError, ValueError: it cannot be read, does not fit the pipeline, or its name is loaded already.
        """
        if vars(self.pipe).setdefault(ATTACHED, self) is not self:
            raise ValueError("these adapters were unloaded, and attach made others for the pipeline since; use those")
        if isinstance(source, Adapter):
            found = [source]
        else:
            path, factor = with_factor(source)
            found = [read_module(file).scale(factor) for file in files_of(path)]
        if adapter_name and len(found) > 1:
            held = ", ".join(a.name for a in found)
            raise ValueError(f"adapter_name is {adapter_name!r}, but {str(source)!r} holds {held}; leave it out, or name one file")
        names = [adapter_name or a.name for a in found]
        if twice := [name for i, name in enumerate(names) if name in (*self._loaded, *names[:i])]:
            raise ValueError(f"adapter_name is {twice[0]!r}, which is loaded already; give another, or delete_adapters({twice[0]!r}) first")
        for a in found:
            check_compatible(self.pipe, a)  # its warnings are given when it acts
        self._loaded |= dict(zip(names, found, strict=True))
        return names

    def set_adapters(self, adapter_names: str | Sequence[str], adapter_weights: float | Iterable[float | None] | None = None) -> None:
        """Steers all images by these adapters together from now on, and by no others.

        Args:
            adapter_weights: scales, any finite numbers: one for all adapters, or one each. None is 1.

        Raises:
            ValueError: an adapter is not loaded, weights are not as many, or adapters cannot act together. What acted goes on.
        """
        names = self._names(adapter_names)
        weights = list(adapter_weights) if isinstance(adapter_weights, Iterable) else [adapter_weights] * len(names)
        if len(weights) != len(names):
            raise ValueError(f"adapter_weights has {len(weights)} entries for {len(names)} adapters; give one number, or one an adapter")
        self._use(State({name: 1.0 if w is None else float(w) for name, w in zip(names, weights, strict=True)}))

    def get_active_adapters(self) -> list[str]:
        """Names of the adapters that act."""
        return [*self._state.weights] if self._state.enabled else []

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Names of all loaded adapters, under the component of the pipeline that is steered."""
        return {spec_of(self.pipe).model: [*self._loaded]} if self._loaded else {}

    def disable_adapters(self) -> None:
        """Leaves images unsteered, bit for bit. What was set is kept for `enable_adapters`."""
        self._use(self._state._replace(enabled=False))

    def enable_adapters(self) -> None:
        """Steers by what was set."""
        self._use(self._state._replace(enabled=True))

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Forgets adapters; those that acted do no more."""
        names = self._names(adapter_names)
        self._use(self._state._replace(weights={name: w for name, w in self._state.weights.items() if name not in names}))
        for name in names:
            del self._loaded[name]

    def fuse(self, scale: float = 1.0) -> None:
        """Makes the adapters that act part of the UNet's weights, in place of steering, until `unfuse` or `set_adapters`.

        ValueError where `respodiff.steering.fuse.fused` refuses: no module, one with a number per position, or one with a window.
        """
        if not self.get_active_adapters():
            raise ValueError("no adapter acts that could be fused; choose some with set_adapters")
        self._use(self._state._replace(fused=scale))

    def unfuse(self) -> None:
        """Gives the UNet its own weights back, bit for bit, and steers by the adapters instead."""
        self._use(self._state._replace(fused=None))

    def unload_weights(self) -> None:
        """Leaves the pipeline as it was found: its own weights, no hook, no adapter."""
        vars(self.pipe).pop(ATTACHED, None)
        self._loaded = {}
        self._use(State())

    def _names(self, given: str | Sequence[str]) -> list[str]:
        names = [given] if isinstance(given, str) else list(dict.fromkeys(given))
        if unknown := [name for name in names if name not in self._loaded]:
            raise ValueError(f"adapter_names has {unknown[0]!r}, which is not loaded; loaded: {', '.join(self._loaded) or 'none'}")
        return names

    def _use(self, wanted: State) -> None:
        """Makes a state the present one; after an error of the new one the old one acts again."""
        before, self._state = self._state, State()
        try:
            self._acting.close()
        finally:  # also where what acted says, at its end, that its last prediction was not finite
            try:
                self._enter(wanted)
            except Exception:
                self._enter(before)
                raise

    def _enter(self, state: State) -> None:
        acting = tuple(self._loaded[name].scale(weight) for name, weight in state.weights.items() if state.enabled)
        if state.fused is not None and acting:
            modules = [a for a in acting if isinstance(a, ConceptModule)]
            if others := [a for a in acting if a not in modules]:
                raise ValueError(
                    f"adapter {others[0].name!r} is of method {others[0].method!r}; modules alone can be fused: steer it instead"
                )
            self._acting.enter_context(fused(self.pipe, modules, scale=state.fused))
        elif acting:
            self._acting.enter_context(steer(self.pipe, AdaptersPerImage((acting,), everyone=True)))
        self._state = state
