"""Models of the published sizes of Stable Diffusion 1.4 (512 px, float32) and SDXL (1024 px, bfloat16), with random weights.

    python -m benchmarks.fullsize            (or: make fullsize)

For each: the shape of the site, one training step and one steered image, with seconds and peak memory; a process of its own each, on an
accelerator if there is one. Random weights draw noise: this is about shapes, time and memory. Writes docs/results/fullsize.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from respodiff import TrainConfig, steer, train
from respodiff.cli.console import peak_mib
from respodiff.concepts.concept import Concept
from respodiff.pipelines.bottleneck import site_shape
from respodiff.pipelines.loading import embedded_dir

OUT = Path(__file__).parent.parent / "docs" / "results" / "fullsize.json"
SD14: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
CLIP_L: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G: dict[str, Any] = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
SHAPES = {"sd14": (1280, 8, 8), "sdxl": (1280, 32, 32)}
CONCEPT = Concept("woman", "a woman", "a person", opposites=("a man",))


def filled(cls: Any, config: dict[str, Any], dtype: torch.dtype) -> Any:
    """A model of random weights of the usual size, without making it in float32 first."""
    with torch.device("meta"):
        model = cls(**config)
    model = model.to(dtype).to_empty(device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                bound = 1 / math.sqrt(p[0].numel())
                p.uniform_(-bound, bound)
            else:
                p.fill_(1.0 if name.endswith("weight") else 0.0)
    return model.eval().requires_grad_(False)


def text(config: dict[str, Any], dtype: torch.dtype, projection: int = 0) -> Any:
    whole = CLIPTextConfig(
        vocab_size=49408,
        max_position_embeddings=77,
        projection_dim=projection or 768,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        **config,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(whole).to(dtype).eval().requires_grad_(False)


def pipeline(name: str, device: str, dtype_name: str = "") -> Any:
    dtype = getattr(torch, dtype_name or ("bfloat16" if name == "sdxl" else "float32"))
    tokenizer = CLIPTokenizer.from_pretrained(embedded_dir("pipeline") / "tokenizer", model_max_length=77)
    parts: dict[str, Any] = {
        "vae": filled(AutoencoderKL, {**VAE, "sample_size": 1024 if name == "sdxl" else 512}, dtype),
        "tokenizer": tokenizer,
        "text_encoder": text(CLIP_L, dtype),
        "scheduler": DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
        ),
        "unet": filled(UNet2DConditionModel, SDXL if name == "sdxl" else SD14, dtype),
    }
    if name == "sdxl":
        pipe: Any = StableDiffusionXLPipeline(
            **parts, text_encoder_2=text(CLIP_G, dtype, 1280), tokenizer_2=tokenizer, add_watermarker=False
        )
        pipe.unet.enable_gradient_checkpointing()
    else:
        pipe = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def measure(name: str, device: str) -> dict[str, Any]:
    """One row: build, one training step, one steered image."""
    began = time.perf_counter()
    pipe = pipeline(name, device)
    shape = site_shape(pipe.unet)
    assert shape == SHAPES[name], f"site {shape}, expected {SHAPES[name]}"
    row: dict[str, Any] = {
        "model": name,
        "device": device,
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "parameters_million": round(sum(p.numel() for p in pipe.unet.parameters()) / 1e6),
        "site": list(shape),
        "seconds_build": round(time.perf_counter() - began, 1),
        "mib_built": round(peak_mib(device) or 0),
    }
    # Batch 1, one latent of pure noise, plain target score, RAM alone: the smallest step there is.
    config = TrainConfig(
        iterations=1,
        objective="guided",
        batch=1,
        steps=2,
        rollouts=1,
        rollout_batch=1,
        timesteps="last",
        preservation_weight=0.0,
        refresh_every=1,
        sam_lr=0.0,
        projection=0.0,
    )
    began = time.perf_counter()
    *_, last = train(pipe, CONCEPT, config)
    assert last.module.shape == shape and last.module.ram.abs().max() > 0
    row |= {
        "seconds_step": round(time.perf_counter() - began, 1),
        "forwards_step": last.unet_forwards,
        "mib_step": round(peak_mib(device) or 0),
    }
    began = time.perf_counter()
    with steer(pipe, last.module):
        latents = pipe(
            "a doctor", num_inference_steps=1, guidance_scale=5.0, generator=torch.Generator().manual_seed(0), output_type="latent"
        ).images
    row |= {"seconds_image": round(time.perf_counter() - began, 1), "steps_image": 1, "mib_image": round(peak_mib(device) or 0)}
    assert torch.isfinite(latents).all() and latents.shape[1:] == (
        4,
        shape[1] * (8 if name == "sd14" else 4),
        shape[2] * (8 if name == "sd14" else 4),
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", choices=list(SHAPES))
    parser.add_argument("--row", choices=list(SHAPES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(measure(args.row, args.device)), flush=True)
        return
    rows = json.loads(OUT.read_text())["rows"] if OUT.is_file() else []
    for name in [args.only] if args.only else list(SHAPES):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.fullsize", "--row", name, "--device", args.device],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
        row = json.loads(done.stdout.splitlines()[-1]) | {"torch": torch.__version__, "cpu_cores": os.cpu_count()}
        print(row, flush=True)
        rows = [r for r in rows if (r["model"], r["device"]) != (name, args.device)] + [row]
        about = {"command": "python -m benchmarks.fullsize", "rows": rows}
        OUT.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
