"""RespoDiff: fair and safe text-to-image diffusion by two small tensors at the bottleneck of a frozen UNet (arXiv 2509.15257).

Names are imported when first used, so that ``respodiff --help`` and the measuring half do not wait for diffusers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from respodiff._version import __version__

if TYPE_CHECKING:
    from respodiff.concepts import Attribute, Concept, attribute, concept, load_concepts
    from respodiff.config import TrainConfig
    from respodiff.evaluation import evaluate
    from respodiff.generation import GenerateConfig, generate
    from respodiff.judges import load_judge
    from respodiff.module_file import ConceptModule, load
    from respodiff.pipelines import load_pipeline
    from respodiff.policies import assign
    from respodiff.steering import steer
    from respodiff.training import fit, train

_HOME = {
    "Attribute": "concepts",
    "Concept": "concepts",
    "attribute": "concepts",
    "concept": "concepts",
    "load_concepts": "concepts",
    "TrainConfig": "config",
    "evaluate": "evaluation",
    "GenerateConfig": "generation",
    "generate": "generation",
    "load_judge": "judges",
    "ConceptModule": "module_file",
    "load": "module_file",
    "load_pipeline": "pipelines",
    "assign": "policies",
    "steer": "steering",
    "fit": "training",
    "train": "training",
}

__all__ = [
    "Attribute",
    "Concept",
    "ConceptModule",
    "GenerateConfig",
    "TrainConfig",
    "__version__",
    "assign",
    "attribute",
    "concept",
    "evaluate",
    "fit",
    "generate",
    "load",
    "load_concepts",
    "load_judge",
    "load_pipeline",
    "steer",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"respodiff.{_HOME[name]}"), name)
    raise AttributeError(f"module 'respodiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
