"""Provides the table of diffusers pipelines: the one place where a pipeline class is described.

A pipeline that is not in the table is refused: which rows of a call are conditional cannot be seen from its size.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any, Literal

from diffusers import DiffusionPipeline

from respodiff import _plugins


class Unsupported(ValueError):
    """A pipeline class that is not in the table."""


@dataclass(frozen=True)
class PipelineSpec:
    """One kind of pipeline.

    Attributes:
        family: how prompts are encoded and the model is called (`respodiff.pipelines.denoiser`).
        passes: row blocks of one call with guidance, in order; without guidance there is the block "cond" alone.
        images: image arguments that the pipeline needs besides the prompt.
        calls: for pipelines that call their model once per condition: local variable with the call's prompt embeddings -> its row blocks.
        steps, guidance: sampler settings where none are given, as the pipeline's documentation has them.
    """

    family: Literal["sd", "sdxl", "sd3", "flux"]
    passes: tuple[str, ...] = ("uncond", "cond")
    images: tuple[str, ...] = ()
    calls: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    steps: int = 50
    guidance: float = 7.5

    @property
    def model(self) -> str:
        """Component that is steered."""
        return "unet" if self.family in ("sd", "sdxl") else "transformer"


SD, SDXL = PipelineSpec("sd"), PipelineSpec("sdxl")
LCM = replace(SD, steps=4, guidance=8.5)
# The second call of SD3 is skip-layer guidance.
SD3 = PipelineSpec("sd3", calls={"prompt_embeds": ("uncond", "cond"), "original_prompt_embeds": ("cond",)}, steps=28, guidance=7.0)
FLUX = PipelineSpec("flux", calls={"prompt_embeds": ("cond",), "negative_prompt_embeds": ("uncond",)}, steps=28, guidance=3.5)
THREE = ("cond", "image", "uncond")  # InstructPix2Pix: text and image, image alone, neither
PLAIN = {"": (), "Img2Img": ("image",), "Inpaint": ("image", "mask_image")}
CONTROLNET = {"": ("image",), "Img2Img": ("image", "control_image"), "Inpaint": ("image", "mask_image", "control_image")}


def _classes(base: PipelineSpec, prefix: str, images: Mapping[str, tuple[str, ...]] = PLAIN) -> dict[str, PipelineSpec]:
    """A text-to-image class and its classes that take images, with the same rows."""
    return {f"{prefix}{kind}Pipeline": replace(base, images=needed) for kind, needed in images.items()}


PIPELINES: dict[str, PipelineSpec] = {
    **_classes(SD, "StableDiffusion"),
    **_classes(SD, "StableDiffusionControlNet", CONTROLNET),
    "LatentConsistencyModelPipeline": LCM,
    "LatentConsistencyModelImg2ImgPipeline": replace(LCM, images=("image",)),
    "StableDiffusionInstructPix2PixPipeline": replace(SD, passes=THREE, images=("image",)),
    **_classes(SDXL, "StableDiffusionXL"),
    **_classes(SDXL, "StableDiffusionXLControlNet", CONTROLNET),
    "StableDiffusionXLInstructPix2PixPipeline": replace(SDXL, passes=THREE, images=("image",)),
    **_classes(SD3, "StableDiffusion3"),
    **_classes(FLUX, "Flux"),
}
"""Class name -> what is known of it; other packages add rows of their own."""


def names() -> tuple[str, ...]:
    """Names of all classes that have a row: the table's, then those of other packages."""
    return (*PIPELINES, *_plugins.names("pipelines", tuple(PIPELINES)))


def spec_of(pipe: Any) -> PipelineSpec:
    """The row for a pipeline. Raises `Unsupported` for other classes and for a subclass with a ``__call__`` of its own."""
    kinds = type(pipe).__mro__
    known = next((i for i, kind in enumerate(kinds) if kind.__name__ in names()), None)
    if known is not None and not any("__call__" in vars(kind) for kind in kinds[:known]):
        return _row(kinds[known].__name__)
    raise Unsupported(
        f"pipeline {type(pipe).__name__} is not supported; supported: {', '.join(names())}; "
        "to add one, put its row (order of its row blocks, family of its prompts) into respodiff.pipelines.registry.PIPELINES, or into a "
        "package of your own (docs/contributing/plugins.md)"
    )


def _row(name: str) -> PipelineSpec:
    if name in PIPELINES:
        return PIPELINES[name]
    found: PipelineSpec = _plugins.load("pipelines", name, lambda row: isinstance(row, PipelineSpec), "a PipelineSpec")
    return found


def backbone(pipe: Any) -> Any:
    """The UNet or transformer that is steered, without the wrapper of ``torch.compile``."""
    model = getattr(pipe, spec_of(pipe).model)
    return getattr(model, "_orig_mod", model)


def site_of(pipe: Any) -> str:
    """Name of the module of `backbone` behind which h is."""
    if spec_of(pipe).model == "unet":
        return "mid_block"
    blocks = len(backbone(pipe).transformer_blocks)
    # Flux goes on with single-stream blocks, twice as many: the last block of two streams is its middle.
    return f"transformer_blocks.{blocks - 1 if spec_of(pipe).family == 'flux' else blocks // 2}"


def caller() -> tuple[Any, Mapping[str, Any]] | None:
    """The diffusers pipeline that is being called in this thread, and the local variables of its call; None outside of one."""
    # Several pipelines and threads may share a model, so that the stack alone tells who calls it.
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "__call__" and isinstance(pipe := frame.f_locals.get("self"), DiffusionPipeline):
            return pipe, frame.f_locals
        frame = frame.f_back
    return None


def row_blocks(pipe: Any, rows: int, call: Mapping[str, Any], context: Any = None) -> dict[str, slice]:
    """Name -> rows of the blocks in a call with ``rows`` rows: "cond" alone at guidance 1 and below, and with embedded guidance (LCM).

    ``call`` holds the local variables of the pipeline's call, ``context`` is the ``encoder_hidden_states`` that the model was given.
    ValueError for embeddings that are none of the pipeline's, if it calls its model per condition.
    """
    spec, name = spec_of(pipe), type(pipe).__name__
    known = [blocks for variable, blocks in spec.calls.items() if variable in call and call[variable] is context]
    if spec.calls and not known:
        raise ValueError(f"{name} called its model with prompt embeddings of its own; which rows are conditional is unknown")
    passes = known[0] if known else spec.passes
    own = "do_classifier_free_guidance"  # a variable of the call, or else a property of the pipeline
    if len(passes) > 1 and not (call[own] if own in call else getattr(pipe, own)):
        passes = ("cond",)
    if rows % len(passes):
        raise ValueError(f"the model was called with {rows} rows, which is not a multiple of the {len(passes)} passes of {name}")
    n = rows // len(passes)
    return {name: slice(i * n, (i + 1) * n) for i, name in enumerate(passes)}
