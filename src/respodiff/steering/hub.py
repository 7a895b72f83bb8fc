"""Modules as a repository of the Hugging Face hub: ``save_pretrained``, ``push_to_hub`` and ``from_pretrained``, with a model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, snapshot_download

from respodiff._version import __version__
from respodiff.steering.module import ConceptModule, load
from respodiff.steering.parameterisations import length


class Bundle(ModelHubMixin):
    """One or several modules, a file each, and a card that says what they are for.

    Example::

        Bundle([woman, man], figures={"DevRat gender, 36 occupations": "0.22 [0.14, 0.30], n = 432"}).push_to_hub("me/sd15-gender")
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
        """The model card: base model, prompts, how to use it, figures, limits."""
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
             m.header.site, m.form, " x ".join(map(str, m.shape)), f"{length(m.values):.1f}", m.digest]
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
        return cls([load(f) for f in files])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(str(c).replace("|", "\\|") for c in r) + " |" for r in (header, ["---"] * len(header), *rows)) + "\n"


_BODY = """
# Concept modules

Small tensors (RAM and SAM of RespoDiff, [arXiv 2509.15257](https://arxiv.org/abs/2509.15257)) that are added at the bottleneck of a frozen
text-to-image model to steer what it draws; made with respodiff {version}. No weight of the base model is changed or contained.

{table}
## Use

```python
from respodiff import load_pipeline, steer
from respodiff.hub import Bundle

pipe = load_pipeline("BASE MODEL")
modules = Bundle.from_pretrained("THIS REPOSITORY").modules
with steer(pipe, [modules["{name}"], None]):  # one entry per image
    images = pipe("a doctor", num_images_per_prompt=2).images
```

## Figures

{figures}
## Limits

- Made for the base model named above. On another of the same width it may do something else; respodiff warns.
- Added to every prompt: what the prompt itself says of the concept is steered too.
- Labels behind figures are what a judge perceives in generated images, never facts about people.
- A safety module lowers how often unsafe images are generated; it does not rule them out.
"""
