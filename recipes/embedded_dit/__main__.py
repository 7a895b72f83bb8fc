"""Make a diffusion transformer of the embedded model's world.

    python -m recipes.embedded_dit --out runs/dit                          (one GPU)
    python -m recipes.embedded_dit --out runs/dit-small --miniature        (all stages in small, on a CPU)

Stages: data, transformer, assemble, card. What is done is kept; the same command goes on where a run stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from recipes.embedded_dit.stages import OWN, STAGES, TransformerRecipe, read_config
from recipes.embedded_model.__main__ import LABELLED, chosen, claim, flags, guarded
from recipes.embedded_model.card import weights_folder
from recipes.embedded_model.parts import recipe_digest
from recipes.embedded_model.stages import Recipe


def main(arguments: list[str] | None = None) -> int:
    """Run the recipe; 0 when done, 1 with one line when something stands in the way."""
    made = flags("recipes.embedded_dit", __doc__, STAGES, OWN)
    made.add_argument("--base", default="embedded", help="folder of weights whose autoencoder, text encoder and judges are taken")
    a = made.parse_args(arguments)
    return guarded(a, lambda: _prepared(a), "the steps of the config")


def _prepared(a: argparse.Namespace) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe and its stages as the flags say; ValueError for flags that say nothing sensible."""
    stages, config, base = chosen(a, STAGES), read_config(a.config, a.miniature), weights_folder(a.base)
    images: Path | None = a.images or (LABELLED if a.miniature else None)
    files = {
        "images": images,
        "autoencoder": base / "pipeline" / "vae" / "diffusion_pytorch_model.safetensors",
        "text": base / "pipeline" / "text_encoder" / "model.safetensors",
    }
    claim(a.out, recipe_digest(config, files), a.miniature)
    return TransformerRecipe(config, a.out, 0.0, a.device, a.cache, images, base=base / "pipeline"), stages


if __name__ == "__main__":
    sys.exit(main())
