"""Tiny pipelines with random weights, of every class in `respodiff.pipelines.registry`, made from the real configuration classes.

Images are 32 x 32 (UNets: 3 levels, latents 16 x 16) and draw in milliseconds. Their images are noise; what they show is plumbing: rows,
shapes, schedulers, dtypes. They are seeded: the same call gives the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    LCMScheduler,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusionXLAutoBlocks,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from tests.published import values
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from respodiff.pipelines.loading import embedded_dir
from respodiff.pipelines.registry import PIPELINES

SIZE = 32

diffusers.utils.logging.set_verbosity_error()  # notices about the tiny configurations
transformers.utils.logging.set_verbosity_error()


_small = [False]


@contextmanager
def small() -> Iterator[None]:
    """UNets made meanwhile have two levels and attention in the mid block alone, for what takes long otherwise."""
    _small[0] = True
    try:
        yield
    finally:
        _small[0] = False


def unet(**changes: Any) -> UNet2DConditionModel:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "sample_size": SIZE // 2,
        "layers_per_block": 1,
        "block_out_channels": (16, 32, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
    }
    config |= changes
    if _small[0]:
        config |= {"block_out_channels": (16, 32), "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
        if isinstance(config.get("transformer_layers_per_block"), tuple):
            config["transformer_layers_per_block"] = (1, 1)
    return UNet2DConditionModel(**config).eval()


def unet_xl(**changes: Any) -> UNet2DConditionModel:
    config: dict[str, Any] = {
        "down_block_types": ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "transformer_layers_per_block": (1, 1, 1),
        "projection_class_embeddings_input_dim": 6 * 8 + 32,
        "cross_attention_dim": 64,
    }
    return unet(**{**config, **changes})


def vae(**changes: Any) -> AutoencoderKL:
    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=SIZE,
        **changes,
    ).eval()


def text_encoder(projection: bool = False, seed: int = 2, tokens: int = 32) -> Any:
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        hidden_size=32,
        intermediate_size=32,
        projection_dim=32,
        num_attention_heads=2,
        num_hidden_layers=2,
        vocab_size=2049,
        max_position_embeddings=tokens,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(embedded_dir("pipeline") / "tokenizer")


def t5() -> dict[str, Any]:
    torch.manual_seed(4)
    config = T5Config(vocab_size=64, d_model=32, d_ff=32, d_kv=8, num_heads=2, num_layers=1)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *((c, -3.0) for c in "abcdefghijklmnopqrstuvwxyz")]
    return {"encoder": T5EncoderModel(config).eval(), "tokenizer": T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=64)}


def controlnet(model: UNet2DConditionModel) -> ControlNetModel:
    torch.manual_seed(5)
    net = ControlNetModel.from_unet(model, conditioning_channels=3)
    # from_unet starts at zero, without effect; and the default embedding is made for pixels at 8 times the latent's size.
    net.controlnet_cond_embedding = torch.nn.Conv2d(3, 16, 3, stride=2, padding=1)
    for block in [*net.controlnet_down_blocks, net.controlnet_mid_block]:
        torch.nn.init.normal_(block.weight, std=0.3)
    return net.eval()


def scheduler(**changes: Any) -> DDIMScheduler:
    """Stable Diffusion 1.4's."""
    ends: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    return DDIMScheduler(**{**ends, "clip_sample": False, "set_alpha_to_one": False, **changes})


def sd(cls: str = "StableDiffusionPipeline", **changes: Any) -> Any:
    """A pipeline of the Stable Diffusion 1.x / 2.x family; ``changes`` go to the UNet."""
    extra = {"StableDiffusionInstructPix2PixPipeline": 8}.get(cls)
    model = unet(**({"in_channels": extra} if extra else {}), **changes)
    parts: dict[str, Any] = {
        "vae": vae(),
        "text_encoder": text_encoder(),
        "tokenizer": tokenizer(),
        "unet": model,
        "scheduler": scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    if "ControlNet" in cls:
        parts["controlnet"] = controlnet(model)
    return _quiet(getattr(diffusers, cls)(**parts))


def blackening(pipe: Any) -> Any:
    """The pipeline with a safety checker that dislikes every image."""
    torch.manual_seed(6)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    eye = CLIPConfig(vision_config={**size, "image_size": 16, "patch_size": 8}, text_config=size, projection_dim=16)
    checker = StableDiffusionSafetyChecker(eye)
    checker.concept_embeds_weights.data.fill_(-9.0)
    reader = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    parts = {**pipe.components, "safety_checker": checker.eval(), "feature_extractor": reader}
    return _quiet(type(pipe)(**parts, requires_safety_checker=True))


def lcm(cls: str = "LatentConsistencyModelPipeline") -> Any:
    """A consistency model: guidance is embedded, there is no unconditional block."""
    pipe = sd(cls, time_cond_proj_dim=8)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    return pipe


def inpaint_9() -> Any:
    """An inpainting checkpoint: mask and masked image are channels of the UNet."""
    return sd("StableDiffusionInpaintPipeline", in_channels=9)


def sd_v() -> Any:
    """As Stable Diffusion 2.x at 768 pixels: v-prediction."""
    pipe = sd(use_linear_projection=True)
    pipe.scheduler = scheduler(prediction_type="v_prediction")
    return pipe


def sdxl(cls: str = "StableDiffusionXLPipeline", **changes: Any) -> Any:
    extra = {"StableDiffusionXLInstructPix2PixPipeline": 8}.get(cls)
    model = unet_xl(**({"in_channels": extra} if extra else {}), **changes)
    parts: dict[str, Any] = {
        "vae": vae(**values("StableDiffusionXLPipeline", "vae")),
        "text_encoder": text_encoder(),
        "tokenizer": tokenizer(),
        "text_encoder_2": text_encoder(True, 3),
        "tokenizer_2": tokenizer(),
        "unet": model,
        "scheduler": scheduler(),
        "add_watermarker": False,
    }
    if "ControlNet" in cls:
        parts["controlnet"] = controlnet(model)
    return _quiet(getattr(diffusers, cls)(**parts))


def sd3(cls: str = "StableDiffusion3Pipeline", **changes: Any) -> Any:
    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=SIZE // 2,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=128,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        **{**values("StableDiffusion3Pipeline", "transformer"), "pos_embed_max_size": 24, **changes},
    ).eval()
    more = {}
    if "ControlNet" in cls:
        torch.manual_seed(5)
        net = SD3ControlNetModel.from_config({**model.config, "num_layers": 1, "extra_conditioning_channels": int("Inpaint" in cls)})
        for block in [net.pos_embed_input.proj, *net.controlnet_blocks]:
            torch.nn.init.normal_(block.weight, std=0.3)
        more = {"controlnet": net.eval()}
    t = t5()
    t["encoder"] = T5EncoderModel(T5Config(vocab_size=64, d_model=128, d_ff=32, d_kv=8, num_heads=2, num_layers=1)).eval()
    return _quiet(
        getattr(diffusers, cls)(
            transformer=model,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae(**values("StableDiffusion3Pipeline", "vae")),
            text_encoder=text_encoder(True),
            tokenizer=tokenizer(),
            text_encoder_2=text_encoder(True, 3),
            tokenizer_2=tokenizer(),
            text_encoder_3=t["encoder"],
            tokenizer_3=t["tokenizer"],
            **more,
        )
    )


def sd35() -> Any:
    """As Stable Diffusion 3.5 medium: normed queries and keys, a second attention in the first half of the blocks."""
    return sd3(qk_norm="rms_norm", dual_attention_layers=(0, 1), pos_embed_max_size=48)


def modular(cls: str = "StableDiffusionXLModularPipeline") -> Any:
    """SDXL as blocks, whose guider calls the UNet once per condition."""
    plain = sdxl()
    pipe = StableDiffusionXLAutoBlocks().init_pipeline()
    pipe.update_components(**{name: part for name, part in plain.components.items() if name in pipe.component_names and part is not None})
    return _quiet(pipe)


def flux(cls: str = "FluxPipeline", guidance_embeds: bool = True) -> Any:
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 14, 14),
        **{**values("FluxPipeline", "transformer"), "guidance_embeds": guidance_embeds},
    ).eval()
    t = t5()
    pipe = getattr(diffusers, cls)(
        transformer=model,
        scheduler=FlowMatchEulerDiscreteScheduler(**values("FluxPipeline", "scheduler")),
        vae=vae(**values("FluxPipeline", "vae")),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        text_encoder_2=t["encoder"],
        tokenizer_2=t["tokenizer"],
    )
    pipe.default_sample_size = SIZE // 2
    return _quiet(pipe)


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _transformer(cls: str) -> Any:
    from tests.tiny_transformers import make  # which imports this module

    return make(cls)


def _maker(cls: str) -> Callable[[], Any]:
    starts = {"LatentConsistency": lcm, "StableDiffusionXLModular": modular, "StableDiffusionXL": sdxl, "StableDiffusion3": sd3}
    starts |= {"FluxI": flux, "FluxP": flux}
    if PIPELINES[cls].model == "transformer" and not cls.startswith(tuple(starts)):
        return lambda: _transformer(cls)
    for start, make in starts.items():
        if cls.startswith(start):
            return lambda: make(cls)
    return lambda: sd(cls)


TINY_PIPELINES: dict[str, Callable[[], Any]] = {
    **{cls: _maker(cls) for cls in PIPELINES},
    "StableDiffusionPipeline, v-prediction": sd_v,
    "StableDiffusionInpaintPipeline, 9 channels": inpaint_9,
    "StableDiffusionPipeline, embedded guidance": lambda: sd(time_cond_proj_dim=8),
    "StableDiffusion3Pipeline, as 3.5": sd35,
    "FluxPipeline, no embedded guidance": lambda: flux(guidance_embeds=False),
}
"""Name of a row of the table -> a fresh pipeline."""
