"""ESD, erased stable diffusion (ICCV 2023): the model's own weights, trained to predict away from a phrase.

    mean (e_student(z, c) - [e(z, c) - eta (e(z, c) - e0)])^2,   z from rollouts of the frozen model for the phrase c

esd-x trains every linear and convolution layer of cross-attention (``attn2``), esd-u every other one. In a transformer that attends to image and
text together esd-x trains what projects the text, or all of the attention where that is one. A concept's negative prompt may hold
several phrases, separated by commas: they take turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, ClassVar

import torch
from torch import nn

from respodiff.concepts.concept import Concept
from respodiff.methods.base import MakeHeader, Method, phrases
from respodiff.methods.concept_slider import score_loss
from respodiff.methods.weight_edits import WeightEditAdapter, quantised_weights, swapped
from respodiff.pipelines.denoiser import Denoiser, repeat
from respodiff.steering.adapter import Adapter
from respodiff.training.config import NOT_NEGATIVE, POSITIVE, OptimizerConfig, RolloutConfig, Rules
from respodiff.training.diagnostics import share, with_verdict
from respodiff.training.rollouts import Latents, mix_seed, predict, preserved, rollout
from respodiff.training.state import Tensors, fit_tensors, open_model


@dataclass(frozen=True)
class EsdConfig(OptimizerConfig, RolloutConfig):
    """Settings of the optimiser and of rollouts, eta (``target_guidance``), and the weight of preservation; 0 switches it off."""

    rules: ClassVar[Rules] = {"target_guidance": POSITIVE, "preservation_weight": NOT_NEGATIVE}
    batch: int = 4
    lr: float = 5e-5
    target_guidance: float = 2.0
    preservation_weight: float = 0.0


READS_TEXT = ("attn.add_", "attn2", ".attn", ".attention.")  # beside the first, attn2 is a second attention of the image to itself (SD 3.5)
"""Parts of the names of layers that read the text; the first that a model has counts."""


def trained_names(model: nn.Module, method: str) -> list[str]:
    """Names of the parameters that a variant trains: of linear and convolution layers that read the text (esd-x), or of the others (esd-u)."""
    layers = [
        (path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d) and ".lora_" not in path
    ]
    mark = next(mark for mark in READS_TEXT if any(mark in path for path, _ in layers))
    chosen = [(path, module) for path, module in layers if (mark in path) is (method == "esd-x")]
    return [f"{path}.{leaf}" for path, module in chosen for leaf, _ in module.named_parameters()]


def phrase_pools(model: Denoiser, concept: Concept, config: EsdConfig) -> list[Latents]:
    """A pool for every phrase of the concept's negative prompt: rollouts of the frozen model, with targets that lead away from it."""
    kept, roll, pools = model.encode(concept.preserve if config.preservation_weight else ()), partial(rollout, model, config=config), []
    for i, c in enumerate(model.encode(phrases(concept.negative))):
        seed = mix_seed(mix_seed(config.seed, i), 0, 0)
        z, t = roll(config.rollouts, mix_seed(seed, 2, 0), c)
        e_c, e_0 = (predict(model, z, t, y, config.rollout_batch) for y in (c, model.empty))
        target, keep = e_c - config.target_guidance * (e_c - e_0), preserved(model, kept, config, seed, roll)
        pools.append(Latents(z, t, repeat(c, len(z)), target, keep=keep, seed=seed))
    return pools


def _make(method: str, pipe: Any, concept: Concept, config: EsdConfig, *, header: MakeHeader, resume: Any, **_: Any) -> Iterator[Any]:
    model = open_model(pipe, config)
    if model.dtype != torch.float32:
        raise ValueError(f"dtype is {model.dtype}; steps of {config.lr:g} are lost in it: train {method} in float32 (--dtype float32)")
    before = {name: model.model.get_parameter(name).detach() for name in trained_names(model.model, method)}
    about, pools = header(resolution=model.size), cache(partial(phrase_pools, model, concept, config))
    active, phrase = partial(swapped, model.model), phrases(concept.negative)[0]

    def verdict(adapter: Adapter, values: Tensors) -> Adapter:
        size = partial(share, ((adapter.tensors[k], w) for k, w in before.items()))
        return with_verdict(model, adapter, (phrase, phrase, ""), lambda _: active(values), size)

    return fit_tensors(
        model,
        before,
        lambda i, _: pools()[i % len(pools())],
        score_loss(model, active, config.preservation_weight),
        config,
        lambda after: WeightEditAdapter(about, {k: v - before[k].cpu() for k, v in after.items()}),
        resume=resume,
        refresh_every=1,
        keep=False,
        verdict=verdict,
    )


METHODS = {
    name: Method(name, ("safety",), EsdConfig, partial(_make, name), WeightEditAdapter, transformers=True, unfit=quantised_weights)
    for name in ("esd-x", "esd-u")
}
