"""Encodes prompts as a pipeline does, and checks their length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from respodiff.pipelines.registry import spec_of


@torch.no_grad()
def encode_prompts(pipe: Any, prompts: Sequence[str]) -> Tensor:
    """Text embeddings (N, T, D) of the prompts, as the pipeline makes them; ValueError for a prompt that would be cut off."""
    if spec_of(pipe).family != "sd":
        return encode_with_pooled(pipe, prompts)[0]
    check_length(pipe, prompts)
    unique = list(dict.fromkeys(prompts))
    ids = pipe.tokenizer(unique, padding="max_length", max_length=pipe.tokenizer.model_max_length, return_tensors="pt").input_ids
    found = pipe.text_encoder(ids.to(pipe.text_encoder.device))[0]
    embedded: Tensor = found[[unique.index(p) for p in prompts]]
    return embedded


@torch.no_grad()
def encode_with_pooled(pipe: Any, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Text embeddings (N, T, D) and pooled embeddings (N, P) for the families that have both, by the pipeline's own encoder.

    The empty prompt is what guidance starts from; checkpoints of SDXL that say so in their configuration want zeros there.
    """
    check_length(pipe, prompts)
    device = pipe._execution_device
    unique = list(dict.fromkeys(prompts))
    family = spec_of(pipe).family
    if family == "flux":
        context, pooled, _ = pipe.encode_prompt(unique, None, device=device)
    else:
        second = {"prompt_2": None, **({"prompt_3": None} if family == "sd3" else {})}
        context, _, pooled, _ = pipe.encode_prompt(unique, **second, device=device, do_classifier_free_guidance=False)
    order = [unique.index(p) for p in prompts]
    context, pooled = context[order], pooled[order]
    if family == "sdxl" and pipe.config.get("force_zeros_for_empty_prompt"):
        filled = torch.tensor([float(bool(p)) for p in prompts], device=context.device, dtype=context.dtype)
        context, pooled = context * filled[:, None, None], pooled * filled[:, None]
    return context, pooled


def check_length(pipe: Any, prompts: Sequence[str]) -> None:
    """ValueError if a prompt has more tokens than the tokenizer takes. Of several tokenizers the one that takes most decides."""
    tokenizers = [t for name in ("tokenizer", "tokenizer_2", "tokenizer_3") if (t := getattr(pipe, name, None)) is not None]
    # T5 is read up to 256 tokens by SD3 and 512 by Flux; its own limit may be a number that stands for none.
    most = {"sd3": 256, "flux": 512}.get(spec_of(pipe).family, 1 << 30)
    tokenizer = max(tokenizers, key=lambda t: t.model_max_length)
    limit = min(tokenizer.model_max_length, most)
    for prompt in dict.fromkeys(prompts):
        n = len(tokenizer(prompt).input_ids)
        if n > limit:
            raise ValueError(f"prompt {prompt[:60]!r}... has {n} tokens; this model takes {limit}, start and end included: shorten it")
