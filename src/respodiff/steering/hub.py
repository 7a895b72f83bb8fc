"""Provides modules as a repository of the Hugging Face hub, and adapters on a pipeline for longer than a block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, snapshot_download

from respodiff._version import __version__
from respodiff.pipelines.compiled import close_compiled_hook, open_compiled_hook
from respodiff.pipelines.registry import backbone, spec_of
from respodiff.steering.adapter import Adapter, AdaptersPerImage
from respodiff.steering.fuse import fused
from respodiff.steering.module import ConceptModule
from respodiff.steering.steer import check_compatible, steer


class Bundle(ModelHubMixin):
    """Modules, a file each, and a model card.

    Example::

        Bundle([woman, man], statistics={"DevRat gender, 36 occupations": "0.22 [0.14, 0.30], n = 432"}).push_to_hub("me/sd15-gender")
        woman = Bundle.from_pretrained("me/sd15-gender").modules["woman"]
    """

    def __init__(self, modules: Sequence[ConceptModule] = (), *, statistics: Mapping[str, str] | None = None, license: str = "") -> None:
        twice = {m.name for m in modules if sum(n.name == m.name for n in modules) > 1}
        if twice:
            raise ValueError(f"two modules are called {sorted(twice)[0]!r}; give each concept once")
        if bad := [m.name for m in modules if not m.name or set(m.name) & set("/\\:") or m.name.startswith(".")]:
            raise ValueError(f"module name {bad[0]!r} cannot be a file name; rename the concept")
        self.modules = {m.name: m for m in modules}
        self.statistics, self.license = dict(statistics or {}), license

    def card(self) -> str:
        """The model card: base model, prompts, how to use it, statistics, limits."""
        modules = list(self.modules.values())
        bases = sorted({m.header.base_model for m in modules if "/" in m.header.base_model})
        data = ModelCardData(
            library_name="respodiff",
            base_model=bases or None,
            license=self.license or None,
            pipeline_tag="text-to-image",
            tags=["respodiff", "fairness", "safety", "diffusion", "h-space"],
        )
        head = ["concept", "kind", "target", "neutral", "negative", "base model", "site", "form", "shape", "|r + s|", "digest"]
        rows = [
            [m.name, m.header.kind, m.header.target, m.header.neutral, m.header.negative or "-", m.header.base_model or "not recorded",
             m.header.site, m.form, " x ".join(map(str, m.shape)), "-" if m.reads_h else f"{m.delta.norm().item():.1f}", m.digest]
            for m in modules
        ]  # fmt: skip
        statistics = (
            _table(["what", "found"], list(self.statistics.items()))
            if self.statistics
            else "None were given: measure before you rely on it.\n"
        )
        return f"---\n{data.to_yaml()}\n---\n{_BODY.format(version=__version__, table=_table(head, rows), statistics=statistics, name=next(iter(self.modules), 'NAME'))}"

    def _save_pretrained(self, save_directory: Path) -> None:
        if not self.modules:
            raise ValueError("the bundle is empty; give at least one module")
        for name, module in self.modules.items():
            module.save(save_directory / f"{name}.safetensors")
        ModelCard(self.card()).save(save_directory / "README.md")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Bundle:
        """Modules of a folder or a hub repository. Takes the options of `huggingface_hub.ModelHubMixin`: revision, token, cache_dir, ..."""
        return cls._from_pretrained(model_id=str(pretrained_model_name_or_path), **options)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Bundle:
        folder = Path(model_id)
        if not folder.is_dir():
            known = {k: options[k] for k in ("revision", "cache_dir", "force_download", "local_files_only", "token") if k in options}
            try:
                folder = Path(snapshot_download(model_id, allow_patterns=["*.safetensors"], **known))
            except (OSError, ValueError) as error:
                reason = str(error).strip().splitlines()[0][:200]
                raise ValueError(f"modules {model_id!r} cannot be had: {reason} - give a folder, or a hub id (needs network)") from error
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ValueError(f"{model_id!r} holds no module file (*.safetensors); give a folder or hub id that Bundle.push_to_hub made")
        return cls([ConceptModule.load(f) for f in files])


Choice = str | Sequence[str] | Mapping[str, float] | None
"""What one image gets: a name, names at scale 1, names with scales, or nothing."""


class AdapterManager:
    """The adapters of one pipeline, by the verbs that diffusers users know from LoRA. `unload` leaves the pipeline as it was.

    Example::

        with AdapterManager(pipe) as manager:
            manager.load("woman.safetensors")
            manager.load("man.safetensors")
            manager.set_adapters(["woman", None, {"man": 0.5}])  # one entry per image; a single name or mapping is for all
            images = pipe("a doctor", num_images_per_prompt=3).images

    Making it before ``torch.compile`` spares the model a second compilation.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self._adapters: dict[str, Adapter] = {}
        self._chosen = AdaptersPerImage(((),), everyone=True)
        self._enabled = True
        self._steering, self._fused = ExitStack(), ExitStack()
        open_compiled_hook(*self._model_and_site())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.unload()

    @property
    def names(self) -> list[str]:
        """Names of the loaded adapters."""
        return list(self._adapters)

    def load(self, source: str | Path | Adapter, name: str = "") -> list[str]:
        """Adds an adapter, a module file, or the modules of a folder or hub repository of `Bundle`; gives the names. Nothing is steered yet.

        Raises:
            ValueError: for a name that is loaded already, or an adapter that does not fit the pipeline.
        """
        if isinstance(source, Adapter):
            found = {source.name: source}
        elif Path(source).is_file() or Path(source).suffix == ".safetensors":
            module = ConceptModule.load(source)
            found = {module.name: module}
        else:
            found = dict(Bundle.from_pretrained(str(source)).modules)
        if name and len(found) > 1:
            raise ValueError(f"name is {name!r}, but {str(source)!r} holds {', '.join(found)}; leave it out")
        found = {name or key: adapter for key, adapter in found.items()}
        for key, adapter in found.items():
            if key in self._adapters:
                raise ValueError(f"an adapter {key!r} is loaded already; give another name, or delete_adapter({key!r}) first")
            check_compatible(self.pipe, adapter)
        self._adapters |= found
        return list(found)

    def set_adapters(self, choice: Choice | Sequence[Choice], weights: Sequence[float] | None = None) -> None:
        """Chooses what steers from now on: for all images a name, or a mapping name -> scale; per image a list of these and None.

        ``set_adapters(["a", "b"], [0.7, 0.3])``, as in diffusers, gives all images both.
        """
        if weights is not None:
            names = [choice] if isinstance(choice, str) else list(choice or ())
            if len(names) != len(weights):
                raise ValueError(f"{len(names)} names, but {len(weights)} weights; give one weight a name")
            choice = dict(zip(map(str, names), weights, strict=True))
        everyone = choice is None or isinstance(choice, str | Mapping)
        entries: list[Any] = [choice] if everyone else list(choice)  # type: ignore[arg-type]  # a sequence here
        self._chosen = AdaptersPerImage(tuple(self._row(entry) for entry in entries), everyone)
        self._apply()

    def enable(self) -> None:
        """Steers again by what was set."""
        self._enabled = True
        self._apply()

    def disable(self) -> None:
        """Leaves images unsteered; what was set is kept."""
        self._enabled = False
        self._apply()

    def delete_adapter(self, name: str) -> None:
        """Forgets an adapter; images go without it from now on."""
        gone = self._adapters.pop(self._known(name))
        self._chosen = self._chosen.map(lambda a: None if a.header is gone.header else a)
        self._apply()

    def fuse(self, names: str | Sequence[str], scale: float = 1.0) -> None:
        """Puts modules of one number a channel into the UNet's weights, for all rows and images (`respodiff.steering.fuse`), until `unfuse`."""
        chosen = [self._adapters[self._known(n)] for n in ([names] if isinstance(names, str) else names)]
        if wrong := [a for a in chosen if not isinstance(a, ConceptModule)]:
            raise ValueError(f"adapter {wrong[0].name!r} is of method {wrong[0].method!r}; only modules of RAM and SAM can be fused")
        self.unfuse()
        self._fused.enter_context(fused(self.pipe, [a for a in chosen if isinstance(a, ConceptModule)], scale=scale))

    def unfuse(self) -> None:
        """Gives the UNet its own weights back, bit by bit. Does nothing if nothing is fused."""
        self._fused.close()

    def unload(self) -> None:
        """Leaves the pipeline as it was: nothing fused, nothing steered, no hook."""
        self.unfuse()
        self._steering.close()
        self._adapters, self._chosen = {}, AdaptersPerImage(((),), everyone=True)
        close_compiled_hook(*self._model_and_site())

    def _model_and_site(self) -> tuple[Any, str]:
        spec = spec_of(self.pipe)
        return getattr(self.pipe, spec.model), spec.site(backbone(self.pipe))

    def _known(self, name: str) -> str:
        if name not in self._adapters:
            raise ValueError(f"adapter {name!r} is not loaded; loaded: {', '.join(self._adapters) or 'none'}")
        return name

    def _row(self, choice: Choice) -> tuple[Adapter, ...]:
        names = () if choice is None else (choice,) if isinstance(choice, str) else choice
        scales = choice if isinstance(choice, Mapping) else {}
        return tuple(self._adapters[self._known(name)].scale(float(scales.get(name, 1.0))) for name in names)

    def _apply(self) -> None:
        self._steering.close()
        if self._enabled and self._chosen.adapters:
            self._steering.enter_context(steer(self.pipe, self._chosen))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(str(c).replace("|", "\\|") for c in r) + " |" for r in (header, ["---"] * len(header), *rows)) + "\n"


_BODY = """
# Concept modules

Small tensors (RAM and SAM of RespoDiff, [arXiv 2509.15257](https://arxiv.org/abs/2509.15257)) that are added at the bottleneck of a frozen
text-to-image model to steer its images; made with respodiff {version}. No weight of the base model is changed or contained.

{table}
## Use

```python
from respodiff import load_pipeline, steer
from respodiff.steering.hub import Bundle

pipe = load_pipeline("BASE MODEL")
modules = Bundle.from_pretrained("THIS REPOSITORY").modules
with steer(pipe, [modules["{name}"], None]):  # one entry per image
    images = pipe("a doctor", num_images_per_prompt=2).images
```

## Statistics

{statistics}
## Limits

- Made for the base model named above. On another of the same width it may do something else; respodiff warns.
- Added to every prompt: what the prompt itself says of the concept is steered too.
- Labels behind statistics are what a judge perceives in generated images, never facts about people.
- A safety module lowers how often unsafe images are generated; it does not rule them out.
"""
