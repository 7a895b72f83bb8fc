"""Provides modules as a repository of the Hugging Face hub: a file each, and a model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, snapshot_download

from respodiff._version import __version__
from respodiff.steering.module import ConceptModule


class Bundle(ModelHubMixin):
    """Modules with statistics for their model card; ``save_pretrained`` and ``push_to_hub`` are those of `ModelHubMixin`.

    Example::

        Bundle([woman, man], statistics={"DevRat gender, 36 occupations": "0.22 [0.14, 0.30], n = 432"}).push_to_hub("me/sd15-gender")
        woman = Bundle.from_pretrained("me/sd15-gender").modules["woman"]
    """

    def __init__(self, modules: Sequence[ConceptModule] = (), *, statistics: Mapping[str, str] | None = None, license: str = "") -> None:
        self.modules: dict[str, ConceptModule] = {}
        for m in modules:
            if not m.name or set(m.name) & set("/\\:") or m.name.startswith("."):
                raise ValueError(f"module name {m.name!r} cannot be a file name; rename the concept")
            if m.name in self.modules:
                raise ValueError(f"two modules are called {m.name!r}; give each concept once")
            self.modules[m.name] = m
        self.statistics, self.license = dict(statistics or {}), license

    def card(self) -> str:
        """The model card: base model, prompts, how to use it, statistics, limits."""
        data = ModelCardData(
            library_name="respodiff",
            base_model=sorted({m.header.base_model for m in self.modules.values() if "/" in m.header.base_model}) or None,
            license=self.license or None,
            pipeline_tag="text-to-image",
            tags=["respodiff", "fairness", "safety", "diffusion", "h-space"],
        )
        return str(ModelCard.from_template(data, template_str=_CARD, version=__version__, modules=self.modules, statistics=self.statistics))

    def _save_pretrained(self, save_directory: Path) -> None:
        if not self.modules:
            raise ValueError("the bundle is empty; give at least one module")
        for name, module in self.modules.items():
            module.save(save_directory / f"{name}.safetensors")
        ModelCard(self.card()).save(save_directory / "README.md")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Bundle:
        """Modules of a folder or a hub repository; options of `huggingface_hub.snapshot_download`: revision, token, cache_dir, ..."""
        source = str(pretrained_model_name_or_path)
        folder = Path(source)
        if not folder.is_dir():
            try:
                folder = Path(snapshot_download(source, allow_patterns=["*.safetensors"], **options))
            except (OSError, ValueError) as error:
                reason = str(error).strip().splitlines()[0][:200]
                raise ValueError(f"modules {source!r} cannot be had: {reason} - give a folder, or a hub id (needs network)") from error
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ValueError(f"{source!r} holds no module file (*.safetensors); give a folder or hub id that Bundle.push_to_hub made")
        return cls([ConceptModule.load(f) for f in files])


_CARD = """\
---
{{ card_data }}
---

# Concept modules

Small tensors (RAM and SAM of RespoDiff, [arXiv 2509.15257](https://arxiv.org/abs/2509.15257)) that are added at the bottleneck of a frozen
text-to-image model to steer its images; made with respodiff {{ version }}. No weight of the base model is changed or contained.

| concept | kind | target | neutral | negative | base model | site | form | shape | r + s, norm | digest |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
{%- for m in modules.values() %}{% set h = m.header %}
| {{ [m.name, h.kind, h.target, h.neutral, h.negative or "-", h.base_model or "not recorded", h.site, m.form, m.shape | join(" x "),
"-" if m.reads_h else "%.1f" % m.delta.norm().item(), m.digest] | map("replace", "|", "\\\\|") | join(" | ") }} |
{%- endfor %}

## Use

```python
from respodiff import load_pipeline, steer
from respodiff.steering.hub import Bundle

pipe = load_pipeline("BASE MODEL")
modules = Bundle.from_pretrained("THIS REPOSITORY").modules
with steer(pipe, [modules["{{ modules | first | default("NAME") }}"], None]):  # one entry per image
    images = pipe("a doctor", num_images_per_prompt=2).images
```

## Statistics
{% if statistics %}
| what | found |
| --- | --- |
{%- for what, found in statistics.items() %}
| {{ what | replace("|", "\\\\|") }} | {{ found | replace("|", "\\\\|") }} |
{%- endfor %}
{% else %}
None were given: measure before you rely on it.
{% endif %}
## Limits

- Made for the base model named above. On another of the same width it may do something else; respodiff warns.
- Added to every prompt: what the prompt itself says of the concept is steered too.
- Labels behind statistics are what a judge perceives in generated images, never facts about people.
- A safety module lowers how often unsafe images are generated; it does not rule them out.
"""
