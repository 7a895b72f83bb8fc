"""RespoDiff: fair and safe text-to-image diffusion by two small tensors at the bottleneck of a frozen UNet (arXiv 2509.15257).

Names are imported when first used, so that ``respodiff --help`` and the measuring half do not wait for diffusers.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from respodiff._version import __version__

if TYPE_CHECKING:
    from respodiff.concepts.concept import Concept as Concept
    from respodiff.concepts.concept import concept as concept
    from respodiff.data.import_images import import_folder as import_folder
    from respodiff.evaluation.evaluate import evaluate as evaluate
    from respodiff.evaluation.judges import load_judge as load_judge
    from respodiff.evaluation.scored_run import load_scored_run as load_scored_run
    from respodiff.generation.config import GenerateConfig as GenerateConfig
    from respodiff.generation.generate import generate as generate
    from respodiff.generation.policies import assign as assign
    from respodiff.generation.prompt_filter import filter_explicit as filter_explicit
    from respodiff.methods.registry import get_method as get_method
    from respodiff.methods.registry import load as load
    from respodiff.methods.registry import load_all as load_all
    from respodiff.pipelines.loading import load_pipeline as load_pipeline
    from respodiff.reports.run_report import report as report
    from respodiff.steering.adapter import Adapter as Adapter
    from respodiff.steering.attach import attach as attach
    from respodiff.steering.module import ConceptModule as ConceptModule
    from respodiff.steering.steer import check_compatible as check_compatible
    from respodiff.steering.steer import steer as steer
    from respodiff.training.attribute import fit_attribute as fit_attribute
    from respodiff.training.config import TrainConfig as TrainConfig
    from respodiff.training.respodiff import fit as fit
    from respodiff.training.respodiff import train as train

# transformers warns twice at every start that torchvision is missing; nothing here uses it.
logging.getLogger("transformers.utils.import_utils").addFilter(lambda record: "requires torchvision" not in record.getMessage())
# diffusers 0.39 tells of its modular pipelines when their class is looked at.
logging.getLogger("diffusers.modular_pipelines").addFilter(lambda record: "experimental feature" not in record.getMessage())
# bitsandbytes, where it is installed, tells at every start that a faster kernel of the hub is not.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "kernels-community" not in record.getMessage())

_HOME = {
    "Adapter": "steering.adapter",
    "Concept": "concepts.concept",
    "ConceptModule": "steering.module",
    "GenerateConfig": "generation.config",
    "TrainConfig": "training.config",
    "assign": "generation.policies",
    "attach": "steering.attach",
    "check_compatible": "steering.steer",
    "concept": "concepts.concept",
    "evaluate": "evaluation.evaluate",
    "fit": "training.respodiff",
    "fit_attribute": "training.attribute",
    "filter_explicit": "generation.prompt_filter",
    "generate": "generation.generate",
    "import_folder": "data.import_images",
    "load": "methods.registry",
    "load_all": "methods.registry",
    "load_judge": "evaluation.judges",
    "load_pipeline": "pipelines.loading",
    "load_scored_run": "evaluation.scored_run",
    "get_method": "methods.registry",
    "report": "reports.run_report",
    "steer": "steering.steer",
    "train": "training.respodiff",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"respodiff.{_HOME[name]}"), name)
    raise AttributeError(f"module 'respodiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
