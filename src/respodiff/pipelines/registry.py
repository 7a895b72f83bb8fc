"""Provides the table of diffusers pipelines: the one place where a pipeline class is described.

A pipeline that is not in the table is refused: which rows of a call are conditional cannot be seen from its size.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline, ModularPipeline
from torch import Tensor

from respodiff import _plugins


class Unsupported(ValueError):
    """A pipeline class that is not in the table."""


@dataclass(frozen=True)
class PipelineSpec:
    """One kind of pipeline.

    Attributes:
        model: component that is steered. shown: class whose text-to-image call shows how it is called; empty for the class itself.
        passes: row blocks of one call with guidance, in order; without guidance there is the block "cond" alone.
        images: image arguments that the pipeline needs besides the prompt.
        calls: for pipelines that call their model once per condition: local variable with the call's prompt embeddings -> its row blocks.
        guided_by: argument of the call with the guidance scale, which at ``off`` switches classifier-free guidance off.
        guides: whether classifier-free guidance is used (unless the model embeds a guidance scale). negative: prompt without which there is none.
        time: (a, b): of timestep t of the scheduler the model is told a t + b. sign: its output times this is what the scheduler takes.
        packs: side of the square of latent pixels that makes a token; 0 for a model that takes latents as they are.
        latent_pixels: pixels of the autoencoder's latent that one of ours is wide. multiple: of which sides of images are, in pixels.
        longest: tokens of a prompt that are read where the tokenizer takes more. templated: whether a template around the prompt counts. side: of
            the model's own image in pixels, where no configuration tells.
        call: arguments of every call.
        ragged: whether prompts of one call are padded to the longest of them, so that each is encoded alone. mask: argument that says which
            tokens are read, where a call of one length has none.
        unchecked: why gradient checkpointing does not give the model's own gradients; empty where it does.
        site: list of blocks of the model, and behind which of them h is. stream: which of a block's outputs h is.
        tokens: where those of the image are in a stream that has others too: ``first``, or ``last``, behind the text.
        references: whether tokens of images that are given may follow those of the image that is drawn.
        listed: whether latents and prompts are lists with an entry a row: (C, 1, H, W) and (T, D).
        axes: arguments that have their rows along another dimension than the first.
        area: whether a call of another size is drawn with as many pixels as one of the model's own size.
        untrained: why nothing is trained on the class; empty where it can be. unread: why prompts are not encoded outside of its calls either.
        steps, guidance: sampler settings where none are given, as the pipeline's documentation has them.
    """

    model: Literal["unet", "transformer"] = "unet"
    shown: str = ""
    passes: tuple[str, ...] = ("uncond", "cond")
    images: tuple[str, ...] = ()
    calls: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    guided_by: str = "guidance_scale"
    off: float = 1.0
    guides: bool = True
    negative: str | None = None
    time: tuple[float, float] = (1.0, 0.0)
    sign: float = 1.0
    packs: int = 0
    latent_pixels: int = 1
    multiple: int = 1
    longest: int = 1 << 30
    templated: bool = False
    side: int = 0
    call: Mapping[str, Any] = field(default_factory=dict)
    ragged: bool = False
    mask: str = ""
    unchecked: str = ""
    site: str = "mid_block"
    stream: int = 1
    tokens: Literal["", "first", "last"] = ""
    references: bool = False
    listed: bool = False
    axes: Mapping[str, int] = field(default_factory=dict)
    area: bool = False
    untrained: str = ""
    unread: str = ""
    steps: int = 50
    guidance: float = 7.5

    @property
    def one_text(self) -> bool:
        """Whether a call should hold one prompt alone: padding to a longer one beside it would change its images, as nothing masks it."""
        return self.ragged and not self.mask and not self.listed


SD = PipelineSpec()
LCM = replace(SD, steps=4, guidance=8.5)
PER_CONDITION = {"prompt_embeds": ("cond",), "negative_prompt_embeds": ("uncond",)}
DIT = PipelineSpec("transformer", site="transformer_blocks.MIDDLE")
# The second call of SD3 is skip-layer guidance.
SD3 = replace(DIT, calls={"prompt_embeds": ("uncond", "cond"), "original_prompt_embeds": ("cond",)}, longest=256, steps=28, guidance=7.0)
# Flux goes on with single-stream blocks, twice as many: the last block of two streams is its middle.
FLUX = replace(
    DIT, calls=PER_CONDITION, site="transformer_blocks.LAST", guides=False, time=(1e-3, 0.0), packs=2, longest=512, steps=28, guidance=3.5
)
CHROMA = replace(FLUX, guides=True, unchecked="diffusers leaves its mask out there", steps=35, guidance=5.0)
QWEN = replace(
    DIT,
    calls=PER_CONDITION,
    guided_by="true_cfg_scale",
    negative=" ",
    ragged=True,
    mask="encoder_hidden_states_mask",
    time=(1e-3, 0.0),
    packs=2,
    longest=512,
    guidance=4.0,
)
# The autoencoder's latents are put together in squares of two before noise is added.
FLUX2 = replace(FLUX, packs=1, latent_pixels=2, templated=True, references=True, steps=50, guidance=4.0)
KLEIN = replace(FLUX2, guides=True)
BESIDE = "it reads prompts beside an image; train on Qwen-Image, and steer this one"
QWEN_EDIT = replace(QWEN, references=True, unread=BESIDE, shown="QwenImagePipeline")
BINNED = {"use_resolution_binning": False}  # else sizes are rounded to those of training, and images resized
PIXART = replace(DIT, longest=300, call=BINNED, steps=20, guidance=4.5)
SANA = replace(PIXART, multiple=32, steps=20, guidance=4.5)
# The model is told the share of noise, and its prediction is changed before the scheduler takes it.
SPRINT = replace(
    SANA,
    passes=("cond",),
    guides=False,
    time=(1e-3, 0.0),
    untrained="its model predicts for another sampler; train on SANA, and steer this one",
    steps=2,
)
COGVIEW4 = replace(DIT, calls=PER_CONDITION, stream=0, ragged=True, longest=1024, steps=50, guidance=5.0)
HUNYUAN = replace(DIT, site="blocks.MIDDLE", call=BINNED, longest=256, steps=50, guidance=5.0)
PART = "what is added to a part of a sequence is lost there"
# The model is told the share of the way that is done, and predicts the way back.
Z_IMAGE = replace(
    DIT,
    passes=("cond", "uncond"),
    off=0.0,
    time=(-1e-3, 1.0),
    sign=-1.0,
    site="layers.MIDDLE",
    tokens="first",
    unchecked=PART,
    listed=True,
    ragged=True,
    longest=512,
    templated=True,
    side=1024,
    guidance=5.0,
)
LUMINA2 = replace(
    DIT,
    calls=PER_CONDITION,
    time=(-1e-3, 1.0),
    sign=-1.0,
    site="layers.MIDDLE",
    tokens="last",
    unchecked=PART,
    longest=256,
    templated=True,
    steps=30,
    guidance=4.0,
)
# Goes on with single-stream blocks, twice as many. Sizes that are not square are filled up with tokens behind those of the image.
HIDREAM = replace(
    DIT,
    site="double_stream_blocks.LAST",
    stream=0,
    tokens="first",
    sign=-1.0,
    unchecked="experts give no gradients there",
    axes={"encoder_hidden_states_llama3": 1},
    area=True,
    longest=128,
    steps=50,
    guidance=5.0,
)
MODULAR = "it is made of blocks; train on the same parts in StableDiffusionXLPipeline, and steer this one"
THREE = ("cond", "image", "uncond")  # InstructPix2Pix: text and image, image alone, neither
PLAIN = {"": (), "Img2Img": ("image",), "Inpaint": ("image", "mask_image")}
CONTROLLED = {"": ("control_image",), "Inpaint": ("control_image", "control_mask")}
CONTROLNET = {"": ("image",), "Img2Img": ("image", "control_image"), "Inpaint": ("image", "mask_image", "control_image")}


def _classes(base: PipelineSpec, prefix: str, images: Mapping[str, tuple[str, ...]] = PLAIN) -> dict[str, PipelineSpec]:
    """A text-to-image class and its classes that take images, with the same rows."""
    shown = f"{prefix.removesuffix('ControlNet')}Pipeline"
    return {f"{prefix}{kind}Pipeline": replace(base, images=needed, shown=shown) for kind, needed in images.items()}


PIPELINES: dict[str, PipelineSpec] = {
    **_classes(SD, "StableDiffusion"),
    **_classes(SD, "StableDiffusionControlNet", CONTROLNET),
    "LatentConsistencyModelPipeline": LCM,
    "LatentConsistencyModelImg2ImgPipeline": replace(LCM, images=("image",), shown="LatentConsistencyModelPipeline"),
    "StableDiffusionInstructPix2PixPipeline": replace(SD, passes=THREE, images=("image",), shown="StableDiffusionPipeline"),
    **_classes(SD, "StableDiffusionXL"),
    **_classes(SD, "StableDiffusionXLControlNet", CONTROLNET),
    "StableDiffusionXLInstructPix2PixPipeline": replace(SD, passes=THREE, images=("image",), shown="StableDiffusionXLPipeline"),
    "StableDiffusionXLModularPipeline": replace(SD, calls=PER_CONDITION, unread=MODULAR, shown="StableDiffusionXLPipeline"),
    **_classes(SD3, "StableDiffusion3"),
    **_classes(SD3, "StableDiffusion3ControlNet", {"": ("control_image",), "Inpainting": ("control_image", "control_mask")}),
    **_classes(FLUX, "Flux"),
    "Flux2Pipeline": FLUX2,
    "Flux2KleinPipeline": KLEIN,
    "Flux2KleinInpaintPipeline": replace(KLEIN, images=PLAIN["Inpaint"], shown="Flux2KleinPipeline"),
    **_classes(QWEN, "QwenImage"),
    **_classes(QWEN, "QwenImageControlNet", CONTROLLED),
    "QwenImageEditPipeline": replace(QWEN_EDIT, images=("image",)),
    "QwenImageEditPlusPipeline": replace(QWEN_EDIT, images=("image",)),
    "QwenImageEditInpaintPipeline": replace(QWEN_EDIT, images=PLAIN["Inpaint"]),
    **_classes(CHROMA, "Chroma"),
    # Inpainting reads fewer tokens.
    "ChromaInpaintPipeline": replace(
        CHROMA, images=PLAIN["Inpaint"], shown="ChromaPipeline", longest=256, call={"max_sequence_length": 256}
    ),
    "PixArtSigmaPipeline": PIXART,
    "SanaPipeline": SANA,
    "SanaControlNetPipeline": replace(SANA, images=("control_image",), shown="SanaPipeline"),
    "SanaSprintPipeline": SPRINT,
    "SanaSprintImg2ImgPipeline": replace(SPRINT, images=("image",), shown="SanaSprintPipeline"),
    "CogView4Pipeline": COGVIEW4,
    "CogView4ControlPipeline": replace(COGVIEW4, images=("control_image",), shown="CogView4Pipeline"),
    "HunyuanDiTPipeline": HUNYUAN,
    "HunyuanDiTControlNetPipeline": replace(HUNYUAN, images=("control_image",), shown="HunyuanDiTPipeline"),
    **_classes(Z_IMAGE, "ZImage"),
    **_classes(Z_IMAGE, "ZImageControlNet", {"": ("control_image",)}),
    "Lumina2Pipeline": LUMINA2,
    "HiDreamImagePipeline": HIDREAM,
}
"""Class name -> what is known of it; other packages add rows of their own."""
REFUSED = {
    "Flux2KleinKVPipeline": "images that are given are in its first step alone, before the tokens of the image that is drawn",
    "QwenImageLayeredPipeline": "it draws several layers as one image",
    "ZImageControlNetInpaintPipeline": "diffusers cannot draw several images in a call of it",
    "ZImageOmniPipeline": "tokens of images that are given come before those of the image that is drawn",
}
"""Class name -> why it has no row."""


def names() -> tuple[str, ...]:
    """Names of all classes that have a row: the table's, then those of other packages."""
    return (*PIPELINES, *_plugins.names("pipelines", tuple(PIPELINES)))


def spec_of(pipe: Any) -> PipelineSpec:
    """The row for a pipeline. Raises `Unsupported` for other classes and for a subclass with a ``__call__`` of its own."""
    kinds = type(pipe).__mro__
    known = next((i for i, kind in enumerate(kinds) if kind.__name__ in names()), None)
    if known is not None and not any("__call__" in vars(kind) for kind in kinds[:known]):
        return _row(kinds[known].__name__)
    why = f": {REFUSED[kinds[0].__name__]}" if kinds[0].__name__ in REFUSED else ""
    raise Unsupported(
        f"pipeline {type(pipe).__name__} is not supported{why}; supported: {', '.join(names())}; "
        "to add one, put its row (order of its row blocks, how its model is called) into respodiff.pipelines.registry.PIPELINES, or into a "
        "package of your own (docs/contributing/plugins.md)"
    )


def _row(name: str) -> PipelineSpec:
    if name in PIPELINES:
        return PIPELINES[name]
    found: PipelineSpec = _plugins.load("pipelines", name, lambda row: isinstance(row, PipelineSpec), "a PipelineSpec")
    return found


def call_arguments(pipe: Any, prompts: Sequence[str], guidance: float) -> dict[str, Any]:
    """Arguments of a call for prompts at a guidance scale, as the pipeline's class names them."""
    spec = spec_of(pipe)
    negative = {} if spec.negative is None else {"negative_prompt": [spec.negative] * len(prompts)}
    return {**spec.call, "prompt": list(prompts), spec.guided_by: guidance, **negative}


def backbone(pipe: Any) -> Any:
    """The UNet or transformer that is steered, without the wrapper of ``torch.compile``."""
    model = getattr(pipe, spec_of(pipe).model)
    return getattr(model, "_orig_mod", model)


class Site(str):
    """Name of the module of a model behind which h is; ``stream``: which of its outputs, where it has several.

    ``tokens``: those of the image in a stream that has others too, a slice or (R, N) a row; set before every call, as it depends on what is drawn.
    """

    stream = 1
    tokens: Any = None


def site_of(pipe: Any) -> Site:
    """The site of `backbone` where none is chosen."""
    blocks, _, place = spec_of(pipe).site.partition(".")
    n = len(getattr(backbone(pipe), blocks)) if place else 0
    return _site(pipe, f"{blocks}.{n - 1 if place == 'LAST' else n // 2}" if place else blocks)


def candidates(pipe: Any) -> tuple[Site, ...]:
    """The sites that can be chosen, in the order of a forward pass: all blocks of a UNet, or those of the list that the table names."""
    model, lists = backbone(pipe), [spec_of(pipe).site.partition(".")[0]]
    if spec_of(pipe).model == "unet":
        lists = ["down_blocks", *lists, "up_blocks"]
    numbers = {name: [f".{i}" for i in range(len(found))] if hasattr(found := getattr(model, name), "__len__") else [""] for name in lists}
    return tuple(_site(pipe, name + number) for name in lists for number in numbers[name])


def sites_of(pipe: Any, names: Sequence[str] = ()) -> tuple[Site, ...]:
    """The candidates of those names in the order of a forward pass, or `site_of` without names. ValueError for others."""
    if not names:
        return (site_of(pipe),)
    known = candidates(pipe)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"site is {unknown[0]!r}, which this {type(backbone(pipe)).__name__} has not; allowed: {', '.join(known)}")
    return tuple(site for site in known if site in names)


def _site(pipe: Any, name: str) -> Site:
    site = Site(name)
    site.stream = 0 if name.startswith("down_blocks.") else spec_of(pipe).stream  # the other output is the skips, which stay as they are
    return site


def image_tokens(pipe: Any, latent: Tensor | Sequence[Tensor], mask: Tensor | None) -> Any:
    """`Site.tokens` of a call with a latent (R, C, H, W), (R, N, C), or one (C, 1, H, W) a row, and the mask (R, T) of its text.

    None where all tokens are the image's. Two by two pixels of a latent are a token.
    """
    spec = spec_of(pipe)
    if spec.references:
        found = caller()
        n = found[1]["latents"].shape[1] if found else len(latent[0])
        return None if n == len(latent[0]) else slice(0, n)
    if not spec.tokens:
        return None
    height, width = latent[0].shape[-2:]
    n = height * width // 4
    if spec.tokens == "first":
        return slice(0, n)
    assert mask is not None
    return mask.sum(1)[:, None] + torch.arange(n, device=mask.device)


def caller() -> tuple[Any, Mapping[str, Any]] | None:
    """The diffusers pipeline that is being called in this thread, and the local variables of its call; None outside of one.

    Of a modular pipeline they are those of the running block, and what its state holds.
    """
    # Several pipelines and threads may share a model, so that the stack alone tells who calls it.
    frame: FrameType | None = sys._getframe(1)
    block: Mapping[str, Any] = {}
    while frame is not None:
        if frame.f_code.co_name == "__call__":
            own = frame.f_locals
            if isinstance(pipe := own.get("self"), DiffusionPipeline):
                return pipe, own
            if isinstance(pipe, ModularPipeline):
                return pipe, {**own["state"].values, **block}
            if not block and "block_state" in own:
                block = {**own, **own["block_state"].as_dict()}
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
    ends = call.get("cfg_truncation")
    if len(passes) > 1 and ends is not None and ends < 1:
        raise ValueError(f"cfg_truncation is {ends:g}, by which guidance ends on the way; leave it at 1")
    if rows % len(passes):
        raise ValueError(f"the model was called with {rows} rows, which is not a multiple of the {len(passes)} passes of {name}")
    n = rows // len(passes)
    return {name: slice(i * n, (i + 1) * n) for i, name in enumerate(passes)}
