"""What is checked of every method on every text-to-image class, and the settings by which a method is made in moments."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from tests.contracts.pipeline_checks import Maker, Refused
from tests.drawing import draw, same
from tests.method_tools import VIOLENCE, WOMAN
from torch import Tensor

from respodiff.concepts.concept import Concept
from respodiff.methods.base import Method
from respodiff.methods.registry import get_method
from respodiff.steering.steer import steer

TINY: dict[str, Any] = {
    "iterations": 2,
    "batch": 2,
    "steps": 3,
    "rollouts": 2,
    "rollout_batch": 2,
    "ram_lr": 0.05,
    "projection": 0.0,
    "lr": 0.05,
    "warmup": 0,
    "subjects": ("doctor", "nurse"),
    "images": 3,
    "rounds": 1,
}
"""Settings, of which each method gets those that it knows."""
OWN: dict[str, dict[str, Any]] = {
    "esd-x": {"lr": 1e-2},
    "esd-u": {"lr": 1e-3},
    "fdf": {"batch": 4},
    "bact": {"batch": 6, "rollouts": 6, "lr": 2e-3},
}
WITHOUT_EFFECT = {"plain"}


def classify(images: Tensor) -> Tensor:
    """Logits (N, 2), linear in the pixels and centred on the batch, so that both answers occur."""
    logits = (images - 0.5).flatten(1) @ torch.randn(images[0].numel(), 2, generator=torch.Generator().manual_seed(3))
    return 0.1 * (logits - logits.mean(0).detach())


def concept_for(method: Method) -> Concept:
    return WOMAN if "fairness" in method.kinds else VIOLENCE


def settings_for(method: Method) -> Any:
    known = {f.name for f in fields(method.config)}
    return method.settings(concept_for(method).kind, **{**{k: v for k, v in TINY.items() if k in known}, **OWN.get(method.name, {})})


def acts(name: str) -> Callable[[Maker], str]:
    """A method is made, has an effect, none at scale 0, and leaves the pipeline as it was; or it is refused with a reason."""

    def check(make: Maker) -> str:
        method, pipe = get_method(name), make()
        try:
            adapter = method.fit(pipe, concept_for(method), settings_for(method), classify=classify)
            plain = draw(pipe)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                with steer(pipe, adapter):
                    steered = draw(pipe)
        except ValueError as error:  # in the same words for every class and method
            reason = str(error).replace(f"method {name!r}", "the method").replace(type(pipe).__name__, "this class")
            raise Refused(reason) from error
        said = [str(w.message) for w in caught if "guidance is off" in str(w.message)]
        assert torch.equal(steered, plain) == (name in WITHOUT_EFFECT or bool(said)), "an effect, or a reason why there is none"
        with steer(pipe, adapter.scale(0.0)):
            same(draw(pipe), plain, "scale 0")
        same(draw(pipe), plain, "restored afterwards")
        if said:
            raise Refused(said[0])
        return ""

    return check
