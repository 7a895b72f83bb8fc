"""The networks, by their sizes in ``config.toml``: all of classes that diffusers and transformers load by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    MobileNetV1Config,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from recipes.embedded_model.data import SIZE
from recipes.embedded_model.tokens import LENGTH


def make_autoencoder(widths: list[int], latent: int) -> AutoencoderKL:
    """128 x 128 x 3 to `latent` x 16 x 16 and back."""
    levels = len(widths)
    return AutoencoderKL(
        block_out_channels=tuple(widths),
        layers_per_block=1,
        latent_channels=latent,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=min(16, *widths),
        sample_size=SIZE,
    )


def make_unet(widths: list[int], latent: int, text: int, heads: int) -> UNet2DConditionModel:
    """Noise prediction on latents of 16 x 16; all levels but the lowest attend to the text."""
    low = len(widths) - 1
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent,
        out_channels=latent,
        layers_per_block=1,
        block_out_channels=tuple(widths),
        down_block_types=("CrossAttnDownBlock2D",) * low + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * low,
        cross_attention_dim=text,
        attention_head_dim=heads,
        norm_num_groups=32 if all(w % 32 == 0 for w in widths) else 8,
    )


def make_scheduler() -> DPMSolverMultistepScheduler:
    """DPM++ 2M on Stable Diffusion 1.x's schedule, from its last timestep on."""
    return DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="trailing"
    )


def load_part(pipeline: Path, name: str) -> Any:
    """A network of a pipeline's folder, in single precision."""
    classes = {"vae": AutoencoderKL, "unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}
    return classes[name].from_pretrained(pipeline / name, torch_dtype=torch.float32, local_files_only=True)


def _text(vocab: int, width: int, layers: int) -> dict[str, Any]:
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return {
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": LENGTH,
        "projection_dim": width,
        **ends,
    }


def make_text_encoder(vocab: int, width: int, layers: int) -> CLIPTextModel:
    """The text encoder of the pipeline."""
    return CLIPTextModel(CLIPTextConfig(**_text(vocab, width, layers)))


def make_judge(vocab: int, size: dict[str, Any]) -> torch.nn.Module:
    """A judge: CLIP's two towers, the eye a small convolutional network (``eye = "convolutions"``) or a transformer (``"patches"``)."""
    text = CLIPTextConfig(**_text(vocab, size["text_width"], size["text_layers"]))
    if size["eye"] == "convolutions":
        depth = size["depth"]
        eye = MobileNetV1Config(
            depth_multiplier=depth, image_size=size["size"], tf_padding=False, layer_norm_eps=1e-3, hidden_size=max(int(1024 * depth), 8)
        )
        both = VisionTextDualEncoderConfig.from_vision_text_configs(eye, text, projection_dim=size["projection"])
        two_towers: torch.nn.Module = VisionTextDualEncoderModel(both)
        return two_towers
    vision = CLIPVisionConfig(
        hidden_size=size["width"],
        intermediate_size=4 * size["width"],
        num_hidden_layers=size["layers"],
        num_attention_heads=4,
        image_size=size["size"],
        patch_size=size["patch"],
        projection_dim=size["projection"],
    )
    clip: torch.nn.Module = CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=size["projection"])
    )
    return clip
