"""SLD, Safe Latent Diffusion (CVPR 2023): a third prediction, for a text of what is not wanted, bends guidance away from it. No training.

Per sampler step, elementwise, as the authors' code does it (the paper's text has max(1, .) for the scale; the code clamps to at most 1):

    scale = min(1, s_S |e(p) - e(S)|);   mu = 0 where e(p) - e(S) >= lambda, else scale
    g = mu (e(S) - e0) + s_m nu;         nu <- beta nu + (1 - beta) g
    e = e0 + w (e(p) - e0 - g)  from step ``warmup`` on, before that plain guidance

The pipeline's own guidance gives this e when g is taken from e(p).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from respodiff.concepts.concept import Concept
from respodiff.methods.base import Method, phrases
from respodiff.methods.model_call import ModelCall, intercept_calls, take_rows, warn_once
from respodiff.methods.prompting import Texts
from respodiff.pipelines.denoiser import check_length
from respodiff.pipelines.registry import backbone, spec_of
from respodiff.steering.adapter import Adapter, AdaptersPerImage
from respodiff.training.config import NOT_NEGATIVE, Rules, Settings, is_finite

TEXT = (
    "hate, harassment, violence, suffering, humiliation, harm, suicide, sexual, nudity, bodily fluids, blood, obscene gestures, "
    "illegal activity, drug use, theft, vandalism, weapons, child abuse, brutality, cruelty"
)
"""What the authors steer away from."""


@dataclass(frozen=True)
class SldConfig(Settings):
    """Settings: s_S is ``guidance_scale``, lambda ``threshold``, s_m ``momentum``; the defaults are the authors' medium.

    Nothing is bent in the first ``warmup`` of 50 steps; of another number of steps, in the same share.
    """

    rules: ClassVar[Rules] = {
        **dict.fromkeys(("warmup", "guidance_scale", "threshold", "momentum"), NOT_NEGATIVE),
        "beta": (lambda v: is_finite(v) and 0 <= v < 1, "0 to below 1"),
    }
    warmup: int = 10
    guidance_scale: float = 1000.0
    threshold: float = 0.01
    momentum: float = 0.3
    beta: float = 0.4


PRESETS: dict[str, dict[str, Any]] = {
    "sld-weak": {"warmup": 15, "guidance_scale": 20.0, "threshold": 0.0, "momentum": 0.0, "beta": 0.0},
    "sld-medium": {},
    "sld-strong": {"warmup": 7, "guidance_scale": 2000.0, "threshold": 0.025, "momentum": 0.5, "beta": 0.7},
    "sld-max": {"warmup": 0, "guidance_scale": 5000.0, "threshold": 1.0, "momentum": 0.5, "beta": 0.7},
}


def safety_guidance(e0: Tensor, ep: Tensor, es: Tensor, nu: Tensor, config: SldConfig) -> tuple[Tensor, Tensor]:
    """(g, new nu) from the predictions for the empty prompt, the prompt and the safety text, all (B, C, H, W)."""
    scale = ((ep - es).abs() * config.guidance_scale).clamp(max=1.0)
    mu = torch.where(ep - es >= config.threshold, torch.zeros_like(scale), scale)
    g = mu * (es - e0) + config.momentum * nu
    return g, config.beta * nu + (1 - config.beta) * g


def unfit(pipe: Any) -> str:
    """Says so where a pipeline does not call its model once for both conditions; empty where it does."""
    if spec_of(pipe).guides and spec_of(pipe).calls.get("prompt_embeds") != ("cond",) and not (spec_of(pipe).listed or spec_of(pipe).axes):
        return ""
    if spec_of(pipe).axes:
        return f"SLD takes the rows of a call apart, which this method cannot do for {type(pipe).__name__}; use a negative prompt"
    return f"SLD compares rows of one call, which {type(pipe).__name__} does not make; use a negative prompt"


class SafetyGuidanceAdapter(Adapter):
    """A text to steer away from, with the settings of `SldConfig`."""

    extra_forward = True
    transformers = True

    @staticmethod
    def apply(pipe: Any, adapters: AdaptersPerImage) -> AbstractContextManager[object]:
        """One more forward per step for the images that have an entry; their conditional prediction becomes e(p) - scale g.

        ValueError for a pipeline that calls its model once for each condition.
        """
        if reason := unfit(pipe):
            raise ValueError(reason)
        texts, warn, nu = Texts(pipe), warn_once(), torch.zeros(0)
        away = {row: fitting(pipe, [a.header.negative for a in row]) for row in dict.fromkeys(adapters.rows) if row}

        def after(call: ModelCall, kwargs: dict[str, Any], e: Tensor) -> Tensor | None:
            nonlocal nu
            if "uncond" not in call.passes:
                return warn("guidance is off, so that SLD has nothing to bend; draw with guidance above 1")
            images = [i for i, row in enumerate(call.entries) if row]
            if call.step == 0 or len(nu) != len(call.entries):
                nu = torch.zeros_like(e[call.passes["cond"]], dtype=torch.float32)
            index = torch.tensor(images, device=e.device)
            cond, uncond = (index + call.passes[name].start for name in ("cond", "uncond"))
            named = texts.replaced(call, take_rows(kwargs, len(e), cond), dict(enumerate(away[call.entries[i]] for i in images)))
            es = backbone(pipe)(**named)[0].float()
            e0, ep = e[uncond].float(), e[cond].float()
            out = e.clone()
            for row, i in enumerate(images):
                a = call.entries[i][0]
                config = SldConfig(**a.settings)
                g, nu[i] = safety_guidance(e0[row], ep[row], es[row], nu[i], config)
                g = g * a.weight * (call.step >= round(config.warmup * call.steps / 50))
                out[call.passes["cond"].start + i] = (ep[row] - g).to(e.dtype)
            return out

        return intercept_calls(pipe, adapters, after=after)


def fitting(pipe: Any, texts: Sequence[str]) -> str:
    """The texts together, without repeats; phrases at the end that the model would not read are left out, with a warning."""
    parts = list(dict.fromkeys(part for text in texts for part in phrases(text)))
    for n in range(len(parts), 0, -1):
        try:
            check_length(pipe, [", ".join(parts[:n])])
        except ValueError:
            continue
        if n < len(parts):
            warnings.warn(f"the safety text is longer than this model reads: from {parts[n]!r} on it is left out", stacklevel=4)
        return ", ".join(parts[:n])
    raise ValueError(f"the safety text {', '.join(texts)[:60]!r} has no phrase that this model can read; give shorter ones")


EVERYTHING = Concept("unsafe", "a scene", "a scene", TEXT, "safety")
"""The authors' whole list, where no concept is named."""


def _method(name: str) -> Method:
    defaults, adapter = PRESETS[name], SafetyGuidanceAdapter
    return Method(
        name,
        ("safety",),
        SldConfig,
        adapter=adapter,
        transformers=True,
        unfit=unfit,
        defaults=lambda _concept: defaults,
        default_concept=EVERYTHING,
    )


METHODS = {name: _method(name) for name in PRESETS}
