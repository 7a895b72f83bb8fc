"""UCE, Unified Concept Editing (WACV 2024): keys and values of cross-attention changed in closed form, for erasing and for debiasing.

W is a weight of ``attn2.to_k`` or ``attn2.to_v``, c the text embedding of a phrase at its last subject token. With edits E that are to give
v* and phrases P that are to stay,

    W* = (lam W + sum_E a v* c^T + sum_P b (W c) c^T) (lam I + sum_E a c c^T + sum_P b c c^T)^-1

Erasing takes v* = W c_guide with the neutral prompt's c_guide, debiasing v* = W c + sum_j delta_j W a_j with the alternatives a_j and
delta_j = desired - measured share, summed over rounds. As v* = W c' in both, W* = W M with one matrix M for all layers: M - I is stored.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from respodiff.concepts.concept import Concept
from respodiff.data.records import noise_seed
from respodiff.methods.base import Classify, MakeHeader, Method, SubjectConfig, built, phrases
from respodiff.methods.weight_edits import WeightEditAdapter
from respodiff.pipelines.denoiser import encode_prompts
from respodiff.pipelines.latents import latent_shape, to_pipeline_format
from respodiff.pipelines.registry import backbone
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
def phrase(pipe: Any, text: str) -> Tensor:
    """c (D,), float64 on the CPU: the embedding of a phrase at the last token before the end. ValueError for an empty phrase."""
    last = len(pipe.tokenizer(text).input_ids) - 2
    if last < 1:
        raise ValueError(f"phrase {text!r} is empty; give a text whose last word is what is to be changed")
    found: Tensor = encode_prompts(pipe, [text])[0]["encoder_hidden_states"][0, last].double().cpu()
    return found


def edit(sources: Tensor, targets: Tensor, kept: Tensor, config: UceConfig) -> Tensor:
    """M - I (D, D) from the phrases c (E, D), what they are to become c' (E, D), and those that stay (P, D)."""
    a, b, eye = config.edit_weight, config.keep_weight, torch.eye(sources.shape[1], dtype=sources.dtype)
    stay = config.lam * eye + b * kept.T @ kept
    right, left = stay + a * sources.T @ sources, stay + a * targets.T @ sources
    change: Tensor = torch.linalg.solve(right, left.T).T - eye  # M right = left, and right is symmetric
    return change


def _embedded(pipe: Any, texts: Sequence[str]) -> Tensor:
    width = backbone(pipe).config.cross_attention_dim
    return torch.stack([phrase(pipe, t) for t in texts]) if texts else torch.zeros(0, width, dtype=torch.float64)


def _erase(pipe: Any, concept: Concept, config: UceConfig, header: Header) -> Iterator[StepRecord]:
    began = time.perf_counter()
    sources = _embedded(pipe, [*phrases(concept.negative), *config.phrases])
    change = edit(sources, phrase(pipe, concept.neutral).expand_as(sources), _embedded(pipe, concept.preserve), config)
    if change.norm() < NOTHING:
        raise ValueError(
            f"negative prompt {concept.negative!r} of concept {concept.name!r} has the embedding of its neutral prompt {concept.neutral!r}, "
            "so that nothing would be erased; give another"
        )
    return built(WeightEditAdapter(header, {"edit": change.float()}), time.perf_counter() - began, change.norm().item())


def _debias(pipe: Any, concept: Concept, config: UceConfig, header: Header, classify: Classify) -> Iterator[StepRecord]:
    began, classes = time.perf_counter(), (concept.target, *concept.opposites)
    forwards = len(config.subjects) * config.images * config.steps * (1 + (config.guidance > 1))  # of a round
    sources = _embedded(pipe, [config.form.format(s) for s in config.subjects])
    attributes, kept = _embedded(pipe, classes), _embedded(pipe, concept.preserve)
    pushes = torch.zeros(len(sources), len(classes), dtype=torch.float64)
    made = WeightEditAdapter(header, {"edit": torch.zeros(sources.shape[1], sources.shape[1])})
    for i in range(config.rounds):
        with steer(pipe, made):
            counts = torch.stack([_counts(pipe, prompt, i, config, classify, len(classes)) for prompt in config.prompts])
        delta = 1 / len(classes) - counts / config.images
        largest = delta.abs().max().item()
        if largest >= config.tolerance:
            pushes += delta
            made = WeightEditAdapter(header, {"edit": edit(sources, sources + pushes @ attributes, kept, config).float()})
        last = i + 1 if largest < config.tolerance else config.rounds
        yield StepRecord(i + 1, last, largest, forwards * (i + 1), time.perf_counter() - began, None, lambda made=made: made)  # type: ignore[misc]
        if i + 1 == last:
            return


@torch.no_grad()
def _counts(pipe: Any, prompt: str, number: int, config: UceConfig, classify: Classify, classes: int) -> Tensor:
    """How many images of one prompt show each alternative (K,); their noise depends on seed, prompt and round."""
    generator = torch.Generator().manual_seed(noise_seed(config.seed, prompt, number))
    z = torch.randn(config.images, *latent_shape(pipe), generator=generator)
    call = {"num_inference_steps": config.steps, "guidance_scale": config.guidance, "output_type": "pt"}
    images = pipe([prompt] * config.images, latents=to_pipeline_format(pipe, z), **call).images
    return torch.bincount(classify(images.float()).argmax(1).cpu(), minlength=classes).double()


def _make(pipe: Any, concept: Concept, config: UceConfig, *, header: MakeHeader, classify: Any, **_: Any) -> Iterator[StepRecord]:
    args = (pipe, concept, config, header())
    return _erase(*args) if concept.kind == "safety" else _debias(*args, classify)


METHODS = {"uce": Method("uce", ("fairness", "safety"), UceConfig, _make, WeightEditAdapter, needs_classifier=("fairness",))}
