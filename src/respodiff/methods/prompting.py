"""What can be done with prompts alone: nothing (plain), another prompt, another prompt from step k on, a negative prompt.

Nothing is trained. Before each call of the UNet the text embeddings of the rows in question are replaced by those of the prompt that they
are to have. Every image of a batch may have another.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from respodiff.concepts.prompt_editing import rewriting, rewritten
from respodiff.methods.base import Method
from respodiff.methods.model_call import ModelCall, intercept_calls, warn_once
from respodiff.pipelines.denoiser import encode_with_pooled
from respodiff.steering.adapter import Adapter, AdaptersPerImage
from respodiff.training.config import Rules, Settings, is_finite


@dataclass(frozen=True)
class PromptConfig(Settings):
    """``switch``: share of the steps, 0 to 1, that is drawn with the prompt as it was given; k = round(switch x steps)."""

    rules: ClassVar[Rules] = {"switch": (lambda v: is_finite(v) and 0 <= v <= 1, "0 to 1, the share of steps before the switch")}
    switch: float = 0.0


class Texts:
    """Embeddings of texts as a pipeline makes them, each made once; put in the place of those of a call's rows."""

    def __init__(self, pipe: Any) -> None:
        self.embedded = cache(lambda text: encode_with_pooled(pipe, [text]))

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
    """Another prompt: the concept's words are added to an image's own."""

    scales = False

    @staticmethod
    def apply(pipe: Any, adapters: AdaptersPerImage) -> AbstractContextManager[object]:
        """Conditional rows get the rewritten prompt from step round(switch x steps) on."""
        texts = Texts(pipe)

        def before(call: ModelCall, _args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            found: dict[int, str] = {}
            for i, (row, prompt) in enumerate(zip(call.entries, call.prompts(), strict=True), call.passes["cond"].start):
                for a in row:
                    if call.step >= round(a.settings["switch"] * call.steps):
                        found[i] = rewritten(found.get(i, prompt), *rewriting(a.header.target, a.header.neutral))
            return texts.replaced(kwargs, found)

        return intercept_calls(pipe, adapters, before)


class NegativeAdapter(Adapter):
    """The concept's negative prompt."""

    scales = False

    @staticmethod
    def apply(pipe: Any, adapters: AdaptersPerImage) -> AbstractContextManager[object]:
        """Unconditional rows get the concepts' negative prompts in place of theirs; without guidance there are none, and a warning."""
        texts, warn = Texts(pipe), warn_once()

        def before(call: ModelCall, _args: Any, kwargs: dict[str, Any]) -> dict[str, Any] | None:
            if "uncond" not in call.passes:
                return warn("guidance is off, so that a negative prompt has no effect; draw with guidance above 1")
            rows = enumerate(call.entries, call.passes["uncond"].start)
            return texts.replaced(kwargs, {i: ", ".join(a.header.negative for a in row) for i, row in rows if row})

        return intercept_calls(pipe, adapters, before)


class UnsteeredAdapter(Adapter):
    """Nothing: the unsteered model."""

    scales = False


METHODS = {
    "plain": Method("plain", ("fairness", "safety"), Settings, adapter=UnsteeredAdapter),
    "prompt": Method("prompt", ("fairness",), PromptConfig, adapter=PromptAdapter),
    # No source gives a number: .2 is after the layout is there and before faces are.
    "prompt-switch": Method("prompt-switch", ("fairness",), PromptConfig, adapter=PromptAdapter, defaults=lambda _kind: {"switch": 0.2}),
    "negative": Method("negative", ("safety",), Settings, adapter=NegativeAdapter),
}
