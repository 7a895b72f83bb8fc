"""RespoDiff itself: our default and the paper's preset (`respodiff.training.respodiff`); the adapter is a `ConceptModule`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from respodiff.concepts.concept import Concept
from respodiff.methods.base import Method
from respodiff.pipelines.denoiser import flow_matching
from respodiff.training.config import TrainConfig
from respodiff.training.respodiff import train


def _make(name: str, pipe: Any, concept: Concept, config: Any, *, resume: Any, **_: Any) -> Iterator[Any]:
    return train(pipe, concept, config, resume=resume, method=name)


def _method(name: str, **more: Any) -> Method:
    return Method(name, ("fairness", "safety"), TrainConfig, partial(_make, name), resumes=True, transformers=True, **more)


def _counts_ddim_steps(pipe: Any) -> str:
    return (
        ""
        if not flow_matching(pipe.scheduler)
        else f"the paper's labels count DDIM steps, which {type(pipe).__name__} does not take; use respodiff"
    )


METHODS = {
    "respodiff": _method("respodiff", presets=TrainConfig.preset),
    "respodiff-paper": _method(
        "respodiff-paper", defaults=lambda concept: vars(TrainConfig.preset("paper", concept)), unfit=_counts_ddim_steps
    ),
}
