"""What can be done with prompts alone: nothing (plain), another prompt, another prompt from step k on, a negative prompt.

Nothing is trained. The pipeline encodes the prompt that it is given; before each call of the UNet the text embeddings of the rows in
question are replaced by those of the prompt that they are to have. Every image of a batch may have another.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from respodiff.concepts.concept import Concept
from respodiff.concepts.prompt_editing import rewriting, rewritten
from respodiff.data.checks import is_finite
from respodiff.methods.base import Classify, Method
from respodiff.methods.model_call import ModelCall, intercept_calls
from respodiff.pipelines.text_encoding import encode_prompts, encode_with_pooled
from respodiff.steering.adapter import Adapter, AdaptersPerImage, header_of, require_unet
from respodiff.training.config import Rules, Settings
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


@dataclass(frozen=True)
class SwitchConfig(PromptConfig):
    """`PromptConfig` with a later switch. No source gives a number: .2 is after the layout is there and before faces are."""

    switch: float = 0.2


def built(adapter: Adapter, began: float) -> Iterator[StepRecord]:
    """The one record of an adapter that is there at once."""
    yield StepRecord(1, 1, 0.0, 0, time.perf_counter() - began, None, lambda: adapter)


def _make(
    adapter: type[Adapter],
    name: str,
    pipe: Any,
    concept: Concept,
    config: Any,
    *,
    classify: Classify | None,
    resume: dict[str, Tensor] | None,
) -> Iterator[StepRecord]:
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
        self.pipe, self.made = pipe, {}  # type: Any, dict[str, tuple[Tensor, Tensor | None]]

    def embedded(self, text: str, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """Context (1, T, D) and, for SDXL, pooled embedding (1, P)."""
        if text not in self.made:
            pooled = hasattr(self.pipe, "tokenizer_2")
            self.made[text] = encode_with_pooled(self.pipe, [text]) if pooled else (encode_prompts(self.pipe, [text]), None)
        context, pool = self.made[text]
        return context.to(like), None if pool is None else pool.to(like)

    def replaced(self, kwargs: dict[str, Any], texts: dict[int, str]) -> dict[str, Any]:
        """Keyword arguments of a call with other texts for the rows that are named."""
        out = {**kwargs, "encoder_hidden_states": kwargs["encoder_hidden_states"].clone()}
        if (kwargs.get("added_cond_kwargs") or {}).get("text_embeds") is not None:
            out["added_cond_kwargs"] = {**kwargs["added_cond_kwargs"], "text_embeds": kwargs["added_cond_kwargs"]["text_embeds"].clone()}
        for row, text in texts.items():
            context, pooled = self.embedded(text, out["encoder_hidden_states"])
            out["encoder_hidden_states"][row] = context[0]
            if pooled is not None:
                out["added_cond_kwargs"]["text_embeds"][row] = pooled[0]
        return out


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
            for i, (row, prompt) in enumerate(zip(call.entries, call.prompts(), strict=True)):
                now = tuple(a for a in row if call.step >= round(a.settings["switch"] * call.steps))
                if now:
                    found[call.passes["cond"].start + i] = text_for(now, prompt)
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
        texts, warned = Texts(pipe), [False]

        def before(call: ModelCall, _args: Any, kwargs: dict[str, Any]) -> dict[str, Any] | None:
            if "uncond" not in call.passes:
                if not warned[0]:
                    warnings.warn("guidance is off, so that a negative prompt has no effect; draw with guidance above 1", stacklevel=2)
                    warned[0] = True
                return None
            start = call.passes["uncond"].start
            return texts.replaced(
                kwargs, {start + i: ", ".join(a.header.negative for a in row) for i, row in enumerate(call.entries) if row}
            )

        with intercept_calls(pipe, adapters, before):
            yield


class UnsteeredAdapter(Adapter):
    """Nothing: the unsteered model."""

    scales = False


def _method(name: str, kinds: tuple[str, ...], config: Any, adapter: type[Adapter]) -> Method:
    return Method(name, kinds, config, partial(_make, adapter, name), adapter, trains=False)


METHODS = {
    "plain": _method("plain", ("fairness", "safety"), PlainConfig, UnsteeredAdapter),
    "prompt": _method("prompt", ("fairness",), PromptConfig, PromptAdapter),
    "prompt-switch": _method("prompt-switch", ("fairness",), SwitchConfig, PromptAdapter),
    "negative": _method("negative", ("safety",), PlainConfig, NegativeAdapter),
}
