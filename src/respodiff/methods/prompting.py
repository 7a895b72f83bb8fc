"""What can be done with prompts alone: nothing (plain), another prompt, another prompt from step k on, a negative prompt.

Nothing is trained. Before each call of the model the text embeddings of the rows in question are replaced by those of the prompt that they
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
from respodiff.pipelines.capture import filled, flat
from respodiff.pipelines.denoiser import TIME_IDS, encode_prompts
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
        self.told = cache(lambda text: encode_prompts(pipe, [text])[0])

    def replaced(self, kwargs: dict[str, Any], texts: dict[int, str]) -> dict[str, Any]:
        """Keyword arguments of a call with other texts for the rows that are named."""
        own = {path: value.clone() for path, value in flat(kwargs).items() if path != TIME_IDS}
        for row, text in texts.items():
            for path, value in self.told(text).items():
                if path in own:
                    own[path][row] = value[0].to(own[path])
        return filled(kwargs, lambda path, value: own.get(path, value))


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
    "plain": Method("plain", ("fairness", "safety"), Settings, adapter=UnsteeredAdapter, transformers=True),
    "prompt": Method("prompt", ("fairness",), PromptConfig, adapter=PromptAdapter, transformers=True),
    # No source gives a number: .2 is after the layout is there and before faces are.
    "prompt-switch": Method(
        "prompt-switch", ("fairness",), PromptConfig, adapter=PromptAdapter, transformers=True, defaults=lambda _kind: {"switch": 0.2}
    ),
    "negative": Method("negative", ("safety",), Settings, adapter=NegativeAdapter, transformers=True),
}
