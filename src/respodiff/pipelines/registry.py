"""Provides the table of diffusers pipelines: the one place where a pipeline class is described.

A pipeline that is not in the table is refused: which rows of a call are conditional cannot be seen from its size.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any, Literal

from diffusers import DiffusionPipeline

Family = Literal["sd", "sdxl", "sd3", "flux"]
Guided = Callable[[Any, Mapping[str, Any]], bool]


def guided_by_property(pipe: Any, _call: Mapping[str, Any]) -> bool:
    """As the pipeline says: false at guidance 1 and below, and for models with an embedded guidance (LCM)."""
    return bool(pipe.do_classifier_free_guidance)


def guided_by_local(_pipe: Any, call: Mapping[str, Any]) -> bool:
    """For pipelines that keep it in a local variable of the call."""
    return bool(call["do_classifier_free_guidance"])


def never_guided(_pipe: Any, _call: Mapping[str, Any]) -> bool:
    """Guidance is distilled into the model, or the unconditional prediction is a call of its own."""
    return False


class Unsupported(ValueError):
    """A pipeline class that is not in the table."""


@dataclass(frozen=True)
class PipelineSpec:
    """One kind of pipeline.

    Attributes:
        family: how prompts are encoded and the model is called (`respodiff.pipelines.denoiser`).
        passes: row blocks of one call with guidance, in order; without guidance there is the block "cond" alone.
        guided: (pipeline, local variables of its call) -> whether guidance is on.
        images: image arguments that the pipeline needs besides the prompt.
        calls: for pipelines that call their model once per condition: local variable that holds the prompt embeddings of the call ->
            row blocks of such a call (None: those of ``passes`` and ``guided``).
        steps, guidance: sampler settings where none are given, as the pipeline's documentation has them.
    """

    family: Family
    passes: tuple[str, ...] = ("uncond", "cond")
    guided: Guided = guided_by_property
    images: tuple[str, ...] = ()
    calls: Mapping[str, tuple[str, ...] | None] = field(default_factory=dict)
    steps: int = 50
    guidance: float = 7.5

    @property
    def model(self) -> str:
        """Component that is steered."""
        return "unet" if self.family in ("sd", "sdxl") else "transformer"

    def site(self, model: Any) -> str:
        """Name of the module behind which h is."""
        if self.model == "unet":
            return "mid_block"
        blocks = len(model.transformer_blocks)
        # Flux goes on with single-stream blocks, twice as many: the last block of two streams is its middle.
        return f"transformer_blocks.{blocks // 2 if self.family == 'sd3' else blocks - 1}"


SD, SDXL = PipelineSpec("sd"), PipelineSpec("sdxl")
LCM = replace(SD, steps=4, guidance=8.5)
SD3_CALLS = {"prompt_embeds": None, "original_prompt_embeds": ("cond",)}  # the second: skip-layer guidance
SD3 = PipelineSpec("sd3", calls=SD3_CALLS, steps=28, guidance=7.0)
FLUX_CALLS = {"prompt_embeds": ("cond",), "negative_prompt_embeds": ("uncond",)}
FLUX = PipelineSpec("flux", guided=never_guided, calls=FLUX_CALLS, steps=28, guidance=3.5)
THREE = ("cond", "image", "uncond")  # InstructPix2Pix: text and image, image alone, neither


def _with_images(base: PipelineSpec, prefix: str) -> dict[str, PipelineSpec]:
    """A text-to-image class and its classes that take images, with the same rows."""
    return {
        f"{prefix}Pipeline": base,
        f"{prefix}Img2ImgPipeline": replace(base, images=("image",)),
        f"{prefix}InpaintPipeline": replace(base, images=("image", "mask_image")),
    }


def _with_controlnet(base: PipelineSpec, prefix: str) -> dict[str, PipelineSpec]:
    return {
        f"{prefix}Pipeline": replace(base, images=("image",)),
        f"{prefix}Img2ImgPipeline": replace(base, images=("image", "control_image")),
        f"{prefix}InpaintPipeline": replace(base, images=("image", "mask_image", "control_image")),
    }


PIPELINES: dict[str, PipelineSpec] = {
    **_with_images(SD, "StableDiffusion"),
    **_with_controlnet(SD, "StableDiffusionControlNet"),
    "LatentConsistencyModelPipeline": LCM,
    "LatentConsistencyModelImg2ImgPipeline": replace(LCM, images=("image",)),
    "StableDiffusionInstructPix2PixPipeline": replace(SD, passes=THREE, images=("image",)),
    **_with_images(SDXL, "StableDiffusionXL"),
    **_with_controlnet(SDXL, "StableDiffusionXLControlNet"),
    "StableDiffusionXLInstructPix2PixPipeline": replace(SDXL, passes=THREE, guided=guided_by_local, images=("image",)),
    **_with_images(SD3, "StableDiffusion3"),
    **_with_images(FLUX, "Flux"),
}
"""Class name -> what is known of it."""


def spec_of(pipe: Any) -> PipelineSpec:
    """The table's row for a pipeline.

    Raises:
        Unsupported: its class is not in the table, or is a subclass with a ``__call__`` of its own.
    """
    for kind in type(pipe).__mro__:
        if kind.__name__ in PIPELINES:
            own = [k for k in type(pipe).__mro__[: type(pipe).__mro__.index(kind)] if "__call__" in vars(k)]
            if not own:
                return PIPELINES[kind.__name__]
            break
    raise Unsupported(
        f"pipeline {type(pipe).__name__} is not supported; supported: {', '.join(PIPELINES)}; "
        "to add one, put its row (order of its row blocks, family of its prompts) into respodiff.pipelines.registry.PIPELINES"
    )


def backbone(pipe: Any) -> Any:
    """The UNet or transformer that is steered, without the wrapper of ``torch.compile``."""
    model = getattr(pipe, spec_of(pipe).model)
    return getattr(model, "_orig_mod", model)


def site_of(pipe: Any) -> str:
    """Name of the module of `backbone` behind which h is."""
    return spec_of(pipe).site(backbone(pipe))


def caller() -> tuple[Any, Mapping[str, Any]] | None:
    """The diffusers pipeline that is being called in this thread, and the local variables of its call; None outside of one.

    Several pipelines and threads may share a model, so that the stack alone tells who calls it.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "__call__" and isinstance(pipe := frame.f_locals.get("self"), DiffusionPipeline):
            return pipe, frame.f_locals
        frame = frame.f_back
    return None


def conditional_rows(pipe: Any, rows: int, call: Mapping[str, Any], context: Any = None) -> slice | None:
    """The conditional rows among the ``rows`` rows of a call; None if there are none.

    Args:
        call: local variables of the pipeline's call. context: the ``encoder_hidden_states`` that the model was given.
    """
    row = spec_of(pipe)
    passes: tuple[str, ...] | None = None
    if row.calls:
        names = [name for name in row.calls if name in call and call[name] is context]
        if not names:
            raise ValueError(
                f"{type(pipe).__name__} called its model with prompt embeddings of its own; which rows are conditional is unknown"
            )
        passes = row.calls[names[0]]
    if passes is None:
        passes = row.passes if row.guided(pipe, call) else ("cond",)
    if rows % len(passes):
        raise ValueError(
            f"the model was called with {rows} rows, which is not a multiple of the {len(passes)} passes of {type(pipe).__name__}"
        )
    if "cond" not in passes:
        return None
    n = rows // len(passes)
    start = passes.index("cond") * n
    return slice(start, start + n)
