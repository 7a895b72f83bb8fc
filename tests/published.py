"""Provides what published configurations say of each family, for tiny models that are cut down from them.

Widths, depths, vocabularies, levels of autoencoders and the lengths of CLIP's and T5's tokenizers are cut; all that is named here is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Published:
    """What is known of one model.

    Attributes:
        model: hub id that it is of.
        same: path in the pipeline's parts -> value that the tiny model has too.
        shares: paths with published numbers, or lists of such, that keep their proportions when they are cut.
        missing: part that is not here -> why.
    """

    model: str
    same: Mapping[str, Any]
    shares: Sequence[Mapping[str, Any]] = ()
    missing: Mapping[str, str] = field(default_factory=dict)


FLUX_VAE = {"vae.latent_channels": 16, "vae.scaling_factor": 0.3611, "vae.shift_factor": 0.1159}
SDXL_VAE = {"vae.latent_channels": 4, "vae.scaling_factor": 0.13025}
BETAS = {"scheduler.beta_start": 0.00085, "scheduler.beta_schedule": "scaled_linear", "scheduler.steps_offset": 1}
FLOW = {"scheduler._class_name": "FlowMatchEulerDiscreteScheduler"}
DYNAMIC = {**FLOW, "scheduler.use_dynamic_shifting": True, "scheduler.base_shift": 0.5, "scheduler.base_image_seq_len": 256}
FLUX_STEPS = {**DYNAMIC, "scheduler.shift": 3.0, "scheduler.max_shift": 1.15, "scheduler.max_image_seq_len": 4096}
ROPE = {"transformer.attention_head_dim": 128, "transformer.axes_dims_rope": (16, 56, 56)}
FLUX2 = {
    "transformer.patch_size": 1,
    "transformer.in_channels": 128,
    "transformer.out_channels": None,
    "transformer.mlp_ratio": 3.0,
    "transformer.rope_theta": 2000,
    "vae._class_name": "AutoencoderKLFlux2",
    "vae.latent_channels": 32,
    "vae.patch_size": (2, 2),
    "vae.batch_norm_eps": 1e-4,
    **FLUX_STEPS,
}
FLUX2_ROPE = {"transformer.attention_head_dim": 128, "transformer.axes_dims_rope": (32, 32, 32, 32)}
SD3 = {
    "transformer.patch_size": 2,
    "transformer.in_channels": 16,
    "transformer.out_channels": 16,
    "vae.latent_channels": 16,
    "vae.scaling_factor": 1.5305,
    "vae.shift_factor": 0.0609,
}
SD3_SIZES = {"transformer.joint_attention_dim": 4096, "transformer.pooled_projection_dim": 2048}
SANA = {
    "transformer.patch_size": 1,
    "transformer.in_channels": 32,
    "transformer.out_channels": 32,
    "transformer.mlp_ratio": 2.5,
    "transformer.attention_bias": False,
    "transformer.norm_elementwise_affine": False,
    "vae._class_name": "AutoencoderDC",
    "vae.latent_channels": 32,
    "vae.scaling_factor": 0.41407,
}
SANA_SIZES = (
    {"transformer.num_attention_heads": 70, "transformer.num_cross_attention_heads": 20},
    {"transformer.attention_head_dim": 32, "transformer.cross_attention_head_dim": 112},
)
STEPS = "no published scheduler_config.json was found"

PUBLISHED: dict[str, Published] = {
    "StableDiffusionPipeline": Published(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        {
            **BETAS,
            "scheduler.beta_end": 0.012,
            "scheduler.set_alpha_to_one": False,
            "scheduler.clip_sample": False,
            "vae.latent_channels": 4,
        },
    ),
    "StableDiffusionXLPipeline": Published(
        "stabilityai/stable-diffusion-xl-base-1.0",
        {**SDXL_VAE, **BETAS, "scheduler.beta_end": 0.012, "scheduler.prediction_type": "epsilon", "unet.addition_embed_type": "text_time"},
    ),
    "StableDiffusion3Pipeline": Published(
        "stabilityai/stable-diffusion-3-medium-diffusers",
        {**SD3, "transformer.qk_norm": None, "transformer.dual_attention_layers": ()},
        (SD3_SIZES, {"transformer.sample_size": 128, "transformer.pos_embed_max_size": 192}),
        {"scheduler": STEPS},
    ),
    "StableDiffusion3Pipeline, as 3.5": Published(
        "stabilityai/stable-diffusion-3.5-medium",
        {**SD3, "transformer.qk_norm": "rms_norm"},
        (SD3_SIZES, {"transformer.sample_size": 128, "transformer.pos_embed_max_size": 384}),
        {"scheduler": STEPS},
    ),
    "FluxPipeline": Published(
        "black-forest-labs/FLUX.1-dev",
        {"transformer.patch_size": 1, "transformer.in_channels": 64, "transformer.guidance_embeds": True, **FLUX_VAE, **FLUX_STEPS},
        (ROPE,),
    ),
    "Flux2Pipeline": Published("black-forest-labs/FLUX.2-dev", {**FLUX2, "transformer.guidance_embeds": True}, (FLUX2_ROPE,)),
    "Flux2KleinPipeline": Published(
        "black-forest-labs/FLUX.2-klein-base-4B", {**FLUX2, "transformer.guidance_embeds": False}, (FLUX2_ROPE,)
    ),
    "QwenImagePipeline": Published(
        "Qwen/Qwen-Image",
        {
            "transformer.patch_size": 2,
            "transformer.in_channels": 64,
            "transformer.out_channels": 16,
            "transformer.guidance_embeds": False,
            "vae.z_dim": 16,
            "vae.latents_mean.0": -0.7571,
            "vae.latents_mean.15": -0.2921,
            **DYNAMIC,
            "scheduler.shift": 1.0,
            "scheduler.max_shift": 0.9,
            "scheduler.max_image_seq_len": 8192,
            "scheduler.shift_terminal": 0.02,
        },
        (ROPE,),
    ),
    "ChromaPipeline": Published(
        "lodestones/Chroma1-HD",
        {
            "transformer.patch_size": 1,
            "transformer.in_channels": 64,
            **FLUX_VAE,
            **FLOW,
            "scheduler.shift": 3.0,
            "scheduler.use_dynamic_shifting": False,
        },
        (ROPE,),
    ),
    "PixArtSigmaPipeline": Published(
        "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
        {
            "transformer.patch_size": 2,
            "transformer.in_channels": 4,
            "transformer.out_channels": 8,
            "transformer.norm_type": "ada_norm_single",
            "transformer.attention_bias": True,
            "transformer.use_additional_conditions": False,
            "transformer.interpolation_scale": 2,
            **SDXL_VAE,
            "scheduler._class_name": "DPMSolverMultistepScheduler",
            "scheduler.algorithm_type": "dpmsolver++",
            "scheduler.prediction_type": "epsilon",
            "scheduler.solver_order": 2,
        },
    ),
    "SanaPipeline": Published(
        "Efficient-Large-Model/Sana_1600M_1024px_diffusers",
        {
            **SANA,
            "transformer.qk_norm": None,
            "transformer.guidance_embeds": False,
            "transformer.timestep_scale": 1.0,
            "scheduler._class_name": "DPMSolverMultistepScheduler",
            "scheduler.algorithm_type": "dpmsolver++",
            "scheduler.prediction_type": "flow_prediction",
            "scheduler.use_flow_sigmas": True,
            "scheduler.flow_shift": 3.0,
        },
        SANA_SIZES,
    ),
    "SanaSprintPipeline": Published(
        "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers",
        {
            **SANA,
            "transformer.qk_norm": "rms_norm_across_heads",
            "transformer.guidance_embeds": True,
            "scheduler._class_name": "SCMScheduler",
            "scheduler.prediction_type": "trigflow",
            "scheduler.sigma_data": 0.5,
        },
        SANA_SIZES,
        {"transformer.timestep_scale": "it was not found; the tiny model has 1000, so that times of 0 to 1 differ"},
    ),
    "CogView4Pipeline": Published(
        "THUDM/CogView4-6B",
        {
            "transformer.patch_size": 2,
            "transformer.in_channels": 16,
            "transformer.out_channels": 16,
            "vae.latent_channels": 16,
            "vae.scaling_factor": 1.0,
            "vae.use_quant_conv": False,
            **FLOW,
            "scheduler.use_dynamic_shifting": True,
            "scheduler.base_shift": 0.25,
            "scheduler.max_shift": 0.75,
            "scheduler.base_image_seq_len": 256,
            "scheduler.time_shift_type": "linear",
        },
        ({"transformer.time_embed_dim": 512, "transformer.condition_dim": 256},),
    ),
    "HunyuanDiTPipeline": Published(
        "Tencent-Hunyuan/HunyuanDiT-v1.2-Diffusers",
        {
            "transformer.patch_size": 2,
            "transformer.in_channels": 4,
            "transformer.learn_sigma": True,
            "transformer.mlp_ratio": 4.3637,
            "transformer.pooled_projection_dim": 1024,
            "transformer.text_len": 77,
            "transformer.text_len_t5": 256,
            "transformer.use_style_cond_and_image_meta_size": False,
            **SDXL_VAE,
            "scheduler._class_name": "DDPMScheduler",
            "scheduler.prediction_type": "v_prediction",
            **BETAS,
            "scheduler.beta_end": 0.018,
            "scheduler.timestep_spacing": "leading",
            "scheduler.clip_sample": False,
        },
    ),
    "ZImagePipeline": Published(
        "Tongyi-MAI/Z-Image",
        {
            "transformer.all_patch_size": (2,),
            "transformer.in_channels": 16,
            "transformer.qk_norm": True,
            "transformer.rope_theta": 256.0,
            "transformer.t_scale": 1000.0,
            **FLOW,
            "scheduler.shift": 6.0,
            "scheduler.use_dynamic_shifting": False,
        },
        ({"transformer.axes_dims": (32, 48, 48)}, {"transformer.n_heads": 30, "transformer.n_kv_heads": 30}),
        {"vae": "no published config.json was found; the tiny model has that of FLUX.1"},
    ),
    "Lumina2Pipeline": Published(
        "Alpha-VLLM/Lumina-Image-2.0",
        {
            "transformer.patch_size": 2,
            "transformer.in_channels": 16,
            "transformer.out_channels": None,
            "transformer.scaling_factor": 1.0,
            "transformer.norm_eps": 1e-5,
            **FLUX_VAE,
            **FLOW,
            "scheduler.shift": 6.0,
            "scheduler.use_dynamic_shifting": False,
        },
        ({"transformer.axes_dim_rope": (32, 32, 32)}, {"transformer.num_attention_heads": 24, "transformer.num_kv_heads": 8}),
    ),
    "HiDreamImagePipeline": Published(
        "HiDream-ai/HiDream-I1-Full",
        {
            "transformer.patch_size": 2,
            "transformer.in_channels": 16,
            "transformer.out_channels": 16,
            "transformer.num_routed_experts": 4,
            "transformer.num_activated_experts": 2,
            "transformer.force_inference_output": False,
            **FLUX_VAE,
            "scheduler._class_name": "UniPCMultistepScheduler",
            "scheduler.prediction_type": "flow_prediction",
            "scheduler.use_flow_sigmas": True,
            "scheduler.flow_shift": 3.0,
            "scheduler.solver_order": 2,
        },
        (
            {"transformer.attention_head_dim": 128, "transformer.axes_dims_rope": (64, 32, 32)},
            {"transformer.num_layers": 16, "transformer.num_single_layers": 32},
            {"transformer.caption_channels": (4096, 4096)},
        ),
    ),
}
"""Name of a tiny pipeline -> what is published of its model; classes that take images share it with their text-to-image class."""


def values(name: str, part: str) -> dict[str, Any]:
    """What is published of a part, as arguments of its class."""
    start = f"{part}."
    found = {path.removeprefix(start): value for path, value in PUBLISHED[name].same.items() if path.startswith(start)}
    return {key: value for key, value in found.items() if "." not in key and key != "_class_name"}
