"""RespoDiff: fair and safe text-to-image diffusion by two small tensors at the bottleneck of a frozen UNet (arXiv 2509.15257).

Names are imported when first used, so that ``respodiff --help`` and the measuring half do not wait for diffusers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from respodiff._version import __version__

if TYPE_CHECKING:
    from respodiff.concepts import Concept, concept
    from respodiff.config import GenerateConfig, TrainConfig
    from respodiff.evaluation import evaluate
    from respodiff.gate import gated
    from respodiff.generation import generate
    from respodiff.imports import import_folder
    from respodiff.judges import load_judge
    from respodiff.methods import applied, method
    from respodiff.module_file import ConceptModule, load
    from respodiff.pipelines import load_pipeline
    from respodiff.policies import assign
    from respodiff.reporting import report
    from respodiff.steering import steer
    from respodiff.training import fit, train

_HOME = {
    "Concept": "concepts",
    "concept": "concepts",
    "TrainConfig": "config",
    "evaluate": "evaluation",
    "GenerateConfig": "config",
    "applied": "methods",
    "method": "methods",
    "gated": "gate",
    "generate": "generation",
    "import_folder": "imports",
    "load_judge": "judges",
    "ConceptModule": "module_file",
    "load": "module_file",
    "load_pipeline": "pipelines",
    "assign": "policies",
    "report": "reporting",
    "steer": "steering",
    "fit": "training",
    "train": "training",
}

__all__ = [
    "Concept",
    "ConceptModule",
    "GenerateConfig",
    "TrainConfig",
    "__version__",
    "applied",
    "assign",
    "concept",
    "evaluate",
    "fit",
    "gated",
    "generate",
    "import_folder",
    "load",
    "load_judge",
    "load_pipeline",
    "method",
    "report",
    "steer",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"respodiff.{_HOME[name]}"), name)
    raise AttributeError(f"module 'respodiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
