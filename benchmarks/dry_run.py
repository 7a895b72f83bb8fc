"""FLUX.1-dev and Qwen-Image by `respodiff doctor --dry-run`, from their published configurations alone; fills docs/results.md.

    python -m benchmarks.dry_run            (seconds; no weights)

What the configurations say is written out here: sizes that differ from the defaults of the classes in diffusers and transformers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.provenance import DOCS, provenance
from benchmarks.tables import fill, table
from respodiff.data.run_folder import write_atomic

RESULTS = DOCS / "results" / "dry_run.json"
CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "vocab_size": 49408,
    "projection_dim": 768,
}
T5_XXL = {
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_heads": 64,
    "num_layers": 24,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
}
FLUX_VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 16,
    "layers_per_block": 2,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
QWEN_TEXT = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
QWEN_VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
MODELS: dict[str, tuple[str, dict[str, tuple[str, str, dict[str, Any]]]]] = {
    "FLUX.1-dev": (
        "FluxPipeline",
        {
            "transformer": ("diffusers", "FluxTransformer2DModel", {"guidance_embeds": True}),
            "text_encoder": ("transformers", "CLIPTextModel", {"model_type": "clip_text_model", **CLIP_L}),
            "text_encoder_2": ("transformers", "T5EncoderModel", {"model_type": "t5", **T5_XXL}),
            "vae": ("diffusers", "AutoencoderKL", FLUX_VAE),
        },
    ),
    "Qwen-Image": (
        "QwenImagePipeline",
        {
            "transformer": ("diffusers", "QwenImageTransformer2DModel", {}),
            "text_encoder": (
                "transformers",
                "Qwen2_5_VLForConditionalGeneration",
                {"model_type": "qwen2_5_vl", "text_config": QWEN_TEXT, "vision_config": QWEN_VISION, "tie_word_embeddings": False},
            ),
            "vae": ("diffusers", "AutoencoderKLQwenImage", {}),
        },
    ),
}
"""Model -> class of its pipeline, and part -> library, class, and what its configuration holds besides the class's defaults."""


def write_configs(folder: Path, pipeline: str, parts: dict[str, tuple[str, str, dict[str, Any]]]) -> Path:
    """A diffusers folder without weights."""
    index: dict[str, Any] = {"_class_name": pipeline}
    folder.mkdir(parents=True, exist_ok=True)
    for name, (library, cls, config) in parts.items():
        index[name] = [library, cls]
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps({"_class_name": cls, **config}))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def measured() -> dict[str, Any]:
    """Model -> what the verb says of it."""
    found = {}
    for model, (pipeline, parts) in MODELS.items():
        with TemporaryDirectory() as folder:
            path = write_configs(Path(folder) / "model", pipeline, parts)
            command = [sys.executable, "-m", "respodiff", "doctor", "--model", str(path), "--dry-run", "--json"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[model] = json.loads(done.stdout.splitlines()[-1])
    return found


def as_table(result: dict[str, Any]) -> str:
    lines = [
        [
            model,
            f"`{found['site']}`",
            " x ".join(map(str, found["shape"])),
            *(f"{part['numbers'] / 1e9:.2f}" for part in found["parts"] if part["name"] == "transformer"),
            f"{found['bytes'] / 2**30:.1f}",
        ]
        for model, found in result["models"].items()
    ]
    made = f"`{result['command']}` at commit {result['commit']}, torch {result['torch']}: `respodiff doctor --dry-run`, bfloat16.\n\n"
    return made + table(["model", "site", "module", "10^9 weights of the transformer", "GiB of all parts"], lines)


def main() -> None:
    result = provenance("python -m benchmarks.dry_run") | {"models": measured()}
    write_atomic(RESULTS, json.dumps(result, indent=1) + "\n")
    fill(DOCS / "results.md", "dry-run", as_table(result))
    print(as_table(result))


if __name__ == "__main__":
    main()
