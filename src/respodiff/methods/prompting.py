"""What can be done with prompts alone: nothing (plain), another prompt, another prompt from step k on, a negative prompt.

Nothing is trained. Before each call of the UNet the text embeddings of the rows in question are replaced by those of the prompt that they
are to have. Every image of a batch may have another.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, ClassVar

from respodiff.concepts.concept import Concept
from respodiff.concepts.prompt_editing import rewriting, rewritten
from respodiff.methods.base import Method
from respodiff.methods.model_call import ModelCall, intercept_calls, warn_once
from respodiff.pipelines.text_encoding import encode_prompts, encode_with_pooled
from respodiff.steering.adapter import Adapter, AdaptersPerImage, header_of, require_unet
from respodiff.training.config import Rules, Settings, is_finite
from respodiff.training.state import StepRecord


@dataclass(frozen=True)
class PlainConfig:
    """No settings."""


@dataclass(frozen=True)
class PromptConfig(Settings):
    """How a prompt is rewritten.

    Attributes:
        adjective: word put before the noun of the prompt. suffix: text put after the prompt. Both empty: they follow from the concept.
        switch: share of the steps, 0 to 1, that is drawn with the prompt as it was given; k = round(switch x steps).
    """

    rules: ClassVar[Rules] = {"switch": (lambda v: is_finite(v) and 0 <= v <= 1, "0 to 1, the share of steps before the switch")}
    adjective: str = ""
    suffix: str = ""
    switch: float = 0.0


def built(adapter: Adapter, began: float, loss: float = 0.0) -> Iterator[StepRecord]:
    """The one record of an adapter that no training made."""
    yield StepRecord(1, 1, loss, 0, time.perf_counter() - began, None, lambda: adapter)


def made_at_once(adapter: type[Adapter], name: str, pipe: Any, concept: Concept, config: Any, **_: Any) -> Iterator[StepRecord]:
    """The one record of an adapter without tensors."""
    require_unet(pipe, name)
    return built(adapter(header_of(pipe, name, concept, config)), time.perf_counter())


def text_for(adapters: tuple[Adapter, ...], prompt: str) -> str:
    """The prompt of an image after all its adapters' rewriting, in their order."""
    for a in adapters:
        words, h = (str(a.settings.get("adjective", "")), str(a.settings.get("suffix", ""))), a.header
        prompt = rewritten(prompt, *(words if any(words) else rewriting(h.target, h.neutral)))
    return prompt


class Texts:
    """Embeddings of texts as a pipeline makes them, each made once; put in the place of those of a call's rows."""

    def __init__(self, pipe: Any) -> None:
        pooled = hasattr(pipe, "tokenizer_2")
        self.embedded = cache(lambda text: encode_with_pooled(pipe, [text]) if pooled else (encode_prompts(pipe, [text]), None))

    def replaced(self, kwargs: dict[str, Any], texts: dict[int, str]) -> dict[str, Any]:
        """Keyword arguments of a call with other texts for the rows that are named."""
        context, more = kwargs["encoder_hidden_states"].clone(), dict(kwargs.get("added_cond_kwargs") or {})
        if "text_embeds" in more:  # SDXL's pooled embedding
            more["text_embeds"] = more["text_embeds"].clone()
        for row, text in texts.items():
            found, pooled = self.embedded(text)
            context[row] = found[0].to(context)
            if pooled is not None:
                more["text_embeds"][row] = pooled[0].to(more["text_embeds"])
        return kwargs | {"encoder_hidden_states": context} | ({"added_cond_kwargs": more} if more else {})


class PromptAdapter(Adapter):
    """Another prompt: settings ``adjective``, ``suffix`` and ``switch``."""

    scales = False

    @staticmethod
    @contextmanager
    def apply(pipe: Any, adapters: AdaptersPerImage) -> Iterator[None]:
        """Conditional rows get the rewritten prompt from step round(switch x steps) on."""
        texts = Texts(pipe)

        def before(call: ModelCall, _args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            found = {}
            for i, (row, prompt) in enumerate(zip(call.entries, call.prompts(), strict=True), call.passes["cond"].start):
                if now := tuple(a for a in row if call.step >= round(a.settings["switch"] * call.steps)):
                    found[i] = text_for(now, prompt)
            return texts.replaced(kwargs, found)

        with intercept_calls(pipe, adapters, before):
            yield


class NegativeAdapter(Adapter):
    """The concept's negative prompt."""

    scales = False

    @staticmethod
    @contextmanager
    def apply(pipe: Any, adapters: AdaptersPerImage) -> Iterator[None]:
        """Unconditional rows get the concepts' negative prompts in place of theirs; without guidance there are none, and a warning."""
        texts, warn = Texts(pipe), warn_once()

        def before(call: ModelCall, _args: Any, kwargs: dict[str, Any]) -> dict[str, Any] | None:
            if "uncond" not in call.passes:
                return warn("guidance is off, so that a negative prompt has no effect; draw with guidance above 1")
            rows = enumerate(call.entries, call.passes["uncond"].start)
            return texts.replaced(kwargs, {i: ", ".join(a.header.negative for a in row) for i, row in rows if row})

        with intercept_calls(pipe, adapters, before):
            yield


class UnsteeredAdapter(Adapter):
    """Nothing: the unsteered model."""

    scales = False


def _method(name: str, kinds: tuple[str, ...], config: Any, adapter: type[Adapter], **defaults: float) -> Method:
    return Method(name, kinds, config, partial(made_at_once, adapter, name), adapter, lambda _kind: defaults, trains=False)


METHODS = {
    "plain": _method("plain", ("fairness", "safety"), PlainConfig, UnsteeredAdapter),
    "prompt": _method("prompt", ("fairness",), PromptConfig, PromptAdapter),
    # No source gives a number: .2 is after the layout is there and before faces are.
    "prompt-switch": _method("prompt-switch", ("fairness",), PromptConfig, PromptAdapter, switch=0.2),
    "negative": _method("negative", ("safety",), PlainConfig, NegativeAdapter),
}
