"""What can be done with prompts alone: nothing (plain), another prompt, another prompt from step k on, a negative prompt.

Nothing is trained. Before each call of the model the text embeddings of the rows in question are replaced by those of the prompt that they
are to have. Every image of a batch may have another.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from respodiff.concepts.prompt_editing import rewriting, rewritten
from respodiff.methods.base import Method
from respodiff.methods.model_call import ModelCall, intercept_calls
from respodiff.pipelines.capture import filled
from respodiff.pipelines.denoiser import TIME_IDS, encode_prompts
from respodiff.pipelines.registry import spec_of
from respodiff.steering.adapter import Adapter, AdaptersPerImage
from respodiff.training.config import Rules, Settings, is_finite


@dataclass(frozen=True)
class PromptConfig(Settings):
    """``switch``: share of the steps, 0 to 1, that is drawn with the prompt as it was given; k = round(switch x steps)."""

    rules: ClassVar[Rules] = {"switch": (lambda v: is_finite(v) and 0 <= v <= 1, "0 to 1, the share of steps before the switch")}
    switch: float = 0.0


class Texts:
    """What the model is told of texts, each found once as the pipeline does it; put in the place of what a call's rows are told."""

    def __init__(self, pipe: Any) -> None:
        self.mask, self.axes = spec_of(pipe).mask, spec_of(pipe).axes
        self.told = cache(lambda text, size, negative: encode_prompts(pipe, [text], *size, negative=negative)[0])
        self.negative = spec_of(pipe).model == "transformer"  # a UNet is told both in one way

    def replaced(self, call: ModelCall, kwargs: dict[str, Any], texts: dict[int, str], negative: bool = False) -> dict[str, Any]:
        """Arguments of a call, by name, with other texts for the rows that are named; ``negative``: as the pipeline encodes negative prompts.

        ValueError for texts of different lengths in one call, of a model that has no mask for them, and for a call with ``clip_skip``.
        """
        own: dict[str, Any] = {}
        if texts and not negative and call.variables.get("clip_skip") is not None:  # negative prompts are encoded without it in any case
            raise ValueError("the pipeline was called with clip_skip, which this method's own texts are encoded without; leave it out")
        if texts and "txt_seq_lens" in kwargs:
            raise ValueError("this version of diffusers tells Qwen-Image the lengths of prompts beside them: update diffusers to 0.40")
        found = {i: self.told(text, call.size, negative and self.negative) for i, text in texts.items()}

        def value_of(path: str, value: Any) -> Any:
            told = {i: row[path][0] for i, row in found.items() if path in row and path != TIME_IDS}
            if told:
                axis = self.axes.get(path, 0)
                rows = [told[i].to(row) if i in told else row for i, row in enumerate(value.movedim(axis, 0) if axis else value)]
                own[path] = rows if isinstance(value, list) else self._together(rows, told, kwargs, own).movedim(0, axis)
            return own.get(path, value)

        changed = filled(kwargs, value_of)
        return changed | ({self.mask: own[self.mask]} if self.mask in own else {})

    def _together(self, rows: list[Tensor], new: Collection[int], kwargs: Mapping[str, Any], own: dict[str, Any]) -> Tensor:
        """The rows as one tensor; where they differ in length, padded, with a mask in ``own`` of what is read of them."""
        before = kwargs.get(self.mask)
        if len({row.shape for row in rows}) > 1 or before is not None:
            if not self.mask:
                raise ValueError(
                    "prompts of one call have different lengths for this model, which has no mask; draw one at a time (--batch 1)"
                )
            read = [torch.ones(len(row)) if i in new or before is None else before[i].cpu().float() for i, row in enumerate(rows)]
            mask = pad_sequence(read, batch_first=True).to(rows[0].device)
            own[self.mask] = mask.bool() if before is None else mask.to(before.dtype)
            rows = list(pad_sequence(rows, batch_first=True))
        return torch.stack(rows)


class PromptAdapter(Adapter):
    """Another prompt: the concept's words are added to an image's own."""

    scales = False
    transformers = True

    @staticmethod
    def apply(pipe: Any, adapters: AdaptersPerImage) -> AbstractContextManager[object]:
        """Conditional rows get the rewritten prompt from step round(switch x steps) on."""
        if reason := _changes_prompts(pipe):
            raise ValueError(reason)
        texts = Texts(pipe)

        def before(call: ModelCall, kwargs: dict[str, Any]) -> dict[str, Any]:
            found: dict[int, str] = {}
            if "cond" not in call.passes:
                return kwargs
            for i, (row, prompt) in enumerate(zip(call.entries, call.prompts(), strict=True), call.passes["cond"].start):
                for a in row:
                    if call.step >= round(a.settings["switch"] * call.steps):
                        found[i] = rewritten(found.get(i, prompt), *rewriting(a.header.target, a.header.neutral))
            return texts.replaced(call, kwargs, found)

        return intercept_calls(pipe, adapters, before)


class NegativeAdapter(Adapter):
    """The concept's negative prompt."""

    scales = False
    transformers = True

    @staticmethod
    @contextmanager
    def apply(pipe: Any, adapters: AdaptersPerImage) -> Iterator[None]:
        """Unconditional rows get the concepts' negative prompts in place of theirs; without guidance there are none, and a warning."""
        texts, seen = Texts(pipe), set[str]()

        def before(call: ModelCall, kwargs: dict[str, Any]) -> dict[str, Any] | None:
            seen.update(call.passes)
            if "uncond" not in call.passes:
                return None
            rows = enumerate(call.entries, call.passes["uncond"].start)
            return texts.replaced(call, kwargs, {i: ", ".join(a.header.negative for a in row) for i, row in rows if row}, negative=True)

        with intercept_calls(pipe, adapters, before):
            yield
        if seen and "uncond" not in seen:
            warnings.warn("guidance is off, so that a negative prompt has no effect; draw with guidance above 1", stacklevel=2)


class UnsteeredAdapter(Adapter):
    """Nothing: the unsteered model."""

    scales = False
    transformers = True


def _changes_prompts(pipe: Any) -> str:
    return (
        f"{type(pipe).__name__} writes its template into the prompts that it is given, which cannot be told from them"
        if spec_of(pipe).listed
        else ""
    )


METHODS = {
    "plain": Method("plain", ("fairness", "safety"), Settings, adapter=UnsteeredAdapter, transformers=True),
    "prompt": Method("prompt", ("fairness",), PromptConfig, adapter=PromptAdapter, transformers=True, unfit=_changes_prompts),
    # No source gives a number: .2 is after the layout is there and before faces are.
    "prompt-switch": Method(
        "prompt-switch",
        ("fairness",),
        PromptConfig,
        adapter=PromptAdapter,
        transformers=True,
        unfit=_changes_prompts,
        defaults=lambda _concept: {"switch": 0.2},
    ),
    "negative": Method("negative", ("safety",), Settings, adapter=NegativeAdapter, transformers=True),
}
