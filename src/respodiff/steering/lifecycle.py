"""Modules on a pipeline for longer than a block, by the verbs that diffusers users know from LoRA: load, set, enable, disable, delete, fuse,
unfuse, unload. Everything goes through `steer` and `fused`; a module is never part of the pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from respodiff.pipelines.compiled import close_compiled_hook, open_compiled_hook
from respodiff.pipelines.registry import backbone, spec_of
from respodiff.steering.fuse import fused
from respodiff.steering.hub import Bundle
from respodiff.steering.module import ConceptModule
from respodiff.steering.module import load as load_file
from respodiff.steering.steer import check_compatible, steer

Choice = str | Sequence[str] | Mapping[str, float] | None
"""What one image gets: a name, names with weight 1, names with weights, or nothing."""


class Steered:
    """The modules of one pipeline. Use it as a context manager, or call `unload` in the end: the pipeline is then as before.

    Example::

        modules = Steered(pipe)
        modules.load("woman.safetensors")
        modules.load("man.safetensors")
        modules.set(["woman", None, {"man": 0.5}])  # one entry per image; a single name or mapping is for all
        images = pipe("a doctor", num_images_per_prompt=3).images
        modules.unload()

    Making it before ``torch.compile`` spares the model a second compilation.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self._modules: dict[str, ConceptModule] = {}
        self._chosen: dict[str, float] | list[dict[str, float]] = {}  # name -> weight, for all images or per image
        self._enabled = True
        self._steering: ExitStack = ExitStack()
        self._fused: AbstractContextManager[None] | None = None
        open_compiled_hook(getattr(pipe, spec_of(pipe).model), spec_of(pipe).site(backbone(pipe)))

    def __enter__(self) -> Steered:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.unload()

    @property
    def names(self) -> list[str]:
        """What is loaded."""
        return list(self._modules)

    def load(self, source: str | Path | ConceptModule, name: str = "") -> list[str]:
        """Add a module, a module file, or what a folder or hub repository of `Bundle.push_to_hub` holds; gives the names. Nothing is steered yet."""
        if isinstance(source, ConceptModule):
            found = {source.name: source}
        elif Path(source).is_file() or Path(source).suffix == ".safetensors":
            module = load_file(source)
            found = {module.name: module}
        else:
            found = Bundle.from_pretrained(str(source)).modules
        if name and len(found) > 1:
            raise ValueError(f"name is {name!r}, but {str(source)!r} holds {', '.join(found)}; leave it out")
        found = {name or key: module for key, module in found.items()}
        for key, module in found.items():
            if key in self._modules:
                raise ValueError(f"a module {key!r} is loaded already; give another name, or delete({key!r}) first")
            check_compatible(self.pipe, module)
        self._modules |= found
        return list(found)

    def set(self, choice: Choice | Sequence[Choice], weights: Sequence[float] | None = None) -> None:
        """Choose what steers from now on: for all images a name, or a mapping name -> weight; per image a list of these and None.

        ``set(["a", "b"], [0.7, 0.3])``, as in ``set_adapters``, gives all images both.
        """
        if weights is not None:
            names = [choice] if isinstance(choice, str) else list(choice or ())
            if len(names) != len(weights):
                raise ValueError(f"{len(names)} names, but {len(weights)} weights; give one weight a name")
            choice = dict(zip(map(str, names), weights, strict=True))
        if choice is None or isinstance(choice, str | Mapping):
            self._chosen = self._weighted(choice)
        else:
            self._chosen = [self._weighted(entry) for entry in choice]
        self._apply()

    def enable(self) -> None:
        """Steer again by what was set."""
        self._enabled = True
        self._apply()

    def disable(self) -> None:
        """Draw plain images; what was set is kept."""
        self._enabled = False
        self._apply()

    def delete(self, name: str) -> None:
        """Forget a module; if it is in use, nothing steers until the next `set`."""
        del self._modules[self._known(name)]
        if name in self._chosen or any(name in entry for entry in self._chosen if isinstance(entry, dict)):
            self._chosen = {}
            self._apply()

    def fuse(self, names: str | Sequence[str], scale: float = 1.0) -> None:
        """Put modules of one number a channel into the UNet's weights, for all rows and images (`respodiff.steering.fuse`), until `unfuse`."""
        if self._fused is not None:
            raise ValueError("modules are fused already; unfuse() first")
        chosen = [self._modules[self._known(n)] for n in ([names] if isinstance(names, str) else names)]
        context = fused(self.pipe, chosen, scale=scale)
        context.__enter__()
        self._fused = context

    def unfuse(self) -> None:
        """Give the UNet its own weights back, bit by bit. Does nothing if nothing is fused."""
        if self._fused is not None:
            self._fused.__exit__(None, None, None)
            self._fused = None

    def unload(self) -> None:
        """Leave the pipeline as it was: nothing fused, nothing steered, no hook."""
        self.unfuse()
        self._steering.close()
        self._modules, self._chosen = {}, {}
        close_compiled_hook(getattr(self.pipe, spec_of(self.pipe).model), spec_of(self.pipe).site(backbone(self.pipe)))

    def _known(self, name: str) -> str:
        if name not in self._modules:
            raise ValueError(f"module {name!r} is not loaded; loaded: {', '.join(self._modules) or 'none'}")
        return name

    def _weighted(self, choice: Choice) -> dict[str, float]:
        names = [] if choice is None else [choice] if isinstance(choice, str) else list(choice)
        weights = choice if isinstance(choice, Mapping) else {}
        return {self._known(name): float(weights.get(name, 1.0)) for name in names}

    def _row(self, chosen: Mapping[str, float]) -> list[ConceptModule]:
        return [self._modules[name].scale(weight) for name, weight in chosen.items()]

    def _apply(self) -> None:
        self._steering.close()
        if not self._enabled or not self._chosen:
            return
        if isinstance(self._chosen, list):
            self._steering.enter_context(steer(self.pipe, [self._row(entry) for entry in self._chosen]))
        else:
            first, *others = self._row(self._chosen)
            self._steering.enter_context(steer(self.pipe, sum(others, start=first)))
