"""UCE, Unified Concept Editing (WACV 2024): keys and values of cross-attention changed in closed form, for erasing and for debiasing.

W is a weight of ``attn2.to_k`` or ``attn2.to_v``, c what it is multiplied by at the last token of a phrase: the text as the model itself has
projected and normalised it. Where the states of two text encoders follow one another (HunyuanDiT) a phrase has a c in each. With edits E that
are to give v* and phrases P that are to stay,

    W* = (lam W + sum_E a v* c^T + sum_P b (W c) c^T) (lam I + sum_E a c c^T + sum_P b c c^T)^-1

Erasing takes v* = W c_guide with the neutral prompt's c_guide, debiasing v* = W c + sum_j delta_j W a_j with the alternatives a_j and
delta_j = desired - measured share, summed over rounds. As v* = W c' in both, W* = W M with one matrix M for all layers: M - I is stored.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from respodiff.concepts.concept import Concept
from respodiff.data.records import noise_seed
from respodiff.methods.base import Classify, MakeHeader, Method, SubjectConfig, built, phrases
from respodiff.methods.weight_edits import WeightEditAdapter, cross_attention, quantised_weights, without_cross_attention
from respodiff.pipelines.bottleneck import eager
from respodiff.pipelines.denoiser import Condition, Denoiser
from respodiff.pipelines.latents import latent_shape, to_pipeline_format
from respodiff.pipelines.registry import call_arguments
from respodiff.steering.serialization import Header
from respodiff.steering.steer import steer
from respodiff.training.config import COUNT, NOT_NEGATIVE, POSITIVE, SEED, Rules
from respodiff.training.state import StepRecord

NOTHING = 1e-6
"""Norm of M - I that is that of rounding."""


@dataclass(frozen=True)
class UceConfig(SubjectConfig):
    """Settings, by the letters above; weights and rounds are the authors'.

    Attributes:
        lam, edit_weight, keep_weight: lam, a and b.
        subjects: what is debiased. form: how a subject is put as a phrase. draw: prompt that its shares are measured on.
        images: images a subject and round. steps, guidance: of these images.
        rounds: at most so many. tolerance: ends when every |delta| is below it.
        phrases: further ones to be erased, beside those of the concept's negative prompt (separated by commas there). seed: of the images.
    """

    rules: ClassVar[Rules] = {
        **dict.fromkeys(("edit_weight", "keep_weight", "tolerance", "guidance"), NOT_NEGATIVE),
        **dict.fromkeys(("images", "steps", "rounds"), COUNT),
        **{"lam": POSITIVE, "seed": SEED},
        "form": SubjectConfig.rules["draw"],
    }
    lam: float = 0.5
    edit_weight: float = 1.0
    keep_weight: float = 1.0
    form: str = "{}"
    images: int = 10
    steps: int = 20
    guidance: float = 7.5
    rounds: int = 30
    tolerance: float = 0.05
    phrases: tuple[str, ...] = ()
    seed: int = 0


@torch.no_grad()
def phrase(model: Denoiser, text: str) -> Tensor:
    """c (N, D), float64 on the CPU: what keys and values are made of at the last token of a phrase, in the states of each of N text encoders.

    ValueError for an empty phrase, and for a model that does not read the states one after the other, the same in all layers.
    """
    (told,) = model.encode([text])
    states, masks = ([told[path] for path in sorted(told) if part in path] for part in ("encoder_hidden_states", "mask"))
    ends, start = [], 0
    for i, found in enumerate(states):
        tokenizer = getattr(model.pipe, ("tokenizer", "tokenizer_2")[i])
        ids, special = tokenizer(text).input_ids, set(tokenizer.all_special_ids)
        if special.issuperset(ids):
            raise ValueError(f"phrase {text!r} is empty; give a text whose last word is what is to be changed")
        behind = next(k for k, token in enumerate(reversed(ids)) if token not in special)
        read = int(masks[i].nonzero()[:, -1].max()) + 1 if masks else found.shape[1] if tokenizer.padding_side == "left" else len(ids)
        ends.append(start + read - 1 - behind)
        start += found.shape[1]
    seen = _inputs(model, told)
    if any(x.shape[:2] != (1, start) or not torch.equal(x, seen[0]) for x in seen):
        raise ValueError(
            f"layers of {type(model.model).__name__} read different texts, and 'uce' has one matrix for all; use another method"
        )
    return seen[0][0, ends].cpu().double()


def _inputs(model: Denoiser, condition: Condition) -> list[Tensor]:
    """What every weight of cross-attention is multiplied by (1, T, D), in one call of the model."""
    seen: list[Tensor] = []
    with eager(model.model), ExitStack() as stack:
        for name in cross_attention(model.model):
            layer = model.model.get_submodule(name.removesuffix(".weight"))
            stack.callback(layer.register_forward_pre_hook(lambda _, args: seen.append(args[0])).remove)
        model(torch.zeros(1, *model.latent, device=model.device, dtype=model.dtype), torch.zeros((), device=model.device), condition)
    return seen


def edit(sources: Tensor, targets: Tensor, kept: Tensor, config: UceConfig) -> Tensor:
    """M - I (D, D) from the phrases c (..., D), what they are to become c' (..., D), and those that stay (..., D)."""
    sources, targets, kept = (x.flatten(0, -2) for x in (sources, targets, kept))
    a, b, eye = config.edit_weight, config.keep_weight, torch.eye(sources.shape[1], dtype=sources.dtype)
    stay = config.lam * eye + b * kept.T @ kept
    right, left = stay + a * sources.T @ sources, stay + a * targets.T @ sources
    change: Tensor = torch.linalg.solve(right, left.T).T - eye  # M right = left, and right is symmetric
    return change


def _embedded(model: Denoiser, texts: Sequence[str]) -> Tensor:
    """c (E, N, D) of several phrases."""
    width = model.model.get_parameter(cross_attention(model.model)[0]).shape[1]
    return torch.stack([phrase(model, t) for t in texts]) if texts else torch.zeros(0, 1, width, dtype=torch.float64)


def _erase(model: Denoiser, concept: Concept, config: UceConfig, header: Header) -> Iterator[StepRecord]:
    began = time.perf_counter()
    sources, kept = (_embedded(model, texts) for texts in ([*phrases(concept.negative), *config.phrases], concept.preserve))
    change = edit(sources, phrase(model, concept.neutral).expand_as(sources), kept, config)
    if change.norm() < NOTHING:
        raise ValueError(
            f"negative prompt {concept.negative!r} of concept {concept.name!r} has the embedding of its neutral prompt {concept.neutral!r}, "
            "so that nothing would be erased; give another"
        )
    made = WeightEditAdapter(header, {"edit": change.float()})
    return built(made, time.perf_counter() - began, change.norm().item(), model.forwards)


def _debias(model: Denoiser, concept: Concept, config: UceConfig, header: Header, classify: Classify) -> Iterator[StepRecord]:
    began, classes = time.perf_counter(), (concept.target, *concept.opposites)
    forwards = len(config.subjects) * config.images * config.steps * (1 + (config.guidance > 1))  # of a round
    subjects = [config.form.format(s) for s in config.subjects]
    sources, attributes, kept = (_embedded(model, texts) for texts in (subjects, classes, concept.preserve))
    pushes = torch.zeros(len(sources), len(classes), dtype=torch.float64)
    made = WeightEditAdapter(header, {"edit": torch.zeros(sources.shape[2], sources.shape[2])})
    for i in range(config.rounds):
        with steer(model.pipe, made):
            counts = torch.stack([_counts(model.pipe, prompt, i, config, classify, len(classes)) for prompt in config.prompts])
        delta = 1 / len(classes) - counts / config.images
        largest = delta.abs().max().item()
        if largest >= config.tolerance:
            pushes += delta
            targets = sources + torch.einsum("ek,knd->end", pushes, attributes)
            made = WeightEditAdapter(header, {"edit": edit(sources, targets, kept, config).float()})
        last, done = i + 1 if largest < config.tolerance else config.rounds, model.forwards + forwards * (i + 1)
        yield StepRecord(i + 1, last, largest, done, time.perf_counter() - began, None, lambda made=made: made)  # type: ignore[misc]
        if i + 1 == last:
            return


@torch.no_grad()
def _counts(pipe: Any, prompt: str, number: int, config: UceConfig, classify: Classify, classes: int) -> Tensor:
    """How many images of one prompt show each alternative (K,); their noise depends on seed, prompt and round."""
    generator = torch.Generator().manual_seed(noise_seed(config.seed, prompt, number))
    z = torch.randn(config.images, *latent_shape(pipe), generator=generator)
    call = {**call_arguments(pipe, [prompt] * config.images, config.guidance), "num_inference_steps": config.steps, "output_type": "pt"}
    images = pipe(latents=to_pipeline_format(pipe, z), **call).images
    return torch.bincount(classify(images.float()).argmax(1).cpu(), minlength=classes).double()


def _make(pipe: Any, concept: Concept, config: UceConfig, *, header: MakeHeader, classify: Any, **_: Any) -> Iterator[StepRecord]:
    args = (Denoiser(pipe), concept, config, header())
    return _erase(*args) if concept.kind == "safety" else _debias(*args, classify)


METHODS = {
    "uce": Method(
        "uce",
        ("fairness", "safety"),
        UceConfig,
        _make,
        WeightEditAdapter,
        needs_classifier=("fairness",),
        transformers=True,
        unfit=lambda pipe: without_cross_attention(pipe) or quantised_weights(pipe),
    )
}
