"""Shows that the transformer of config.toml learns at all: eight images of the package, again and again, on a CPU in minutes.

python -m recipes.embedded_dit.one_batch --steps 150
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from recipes.embedded_dit.stages import read_config
from recipes.embedded_dit.transformer import FlowTask, make_transformer
from recipes.embedded_model.autoencoder import latents_of
from recipes.embedded_model.loop import Loop, say
from recipes.embedded_model.models import load_part
from recipes.embedded_model.tokens import load_tokenizer
from recipes.embedded_model.world import Caption
from respodiff.data.tables import read_table
from respodiff.pipelines.loading import embedded_dir

IMAGES = 8
DRAWS = 16
"""Batches that an error is averaged over, the same before and after."""


def main() -> None:
    """Train, and say the errors before and after, and with every image under the caption of another."""
    parser = argparse.ArgumentParser(prog="python -m recipes.embedded_dit.one_batch", description=main.__doc__)
    parser.add_argument("--steps", type=int, default=150)
    steps = parser.parse_args().steps
    base, pictures = embedded_dir("pipeline"), embedded_dir("pictures")
    rows = [row for _, row in read_table(pictures / "labels.csv", ["file", "gender", "tone", "subject"]) if row["tone"]][:IMAGES]
    pixels = torch.from_numpy(np.stack([np.array(Image.open(pictures / row["file"]).convert("RGB")) for row in rows])).permute(0, 3, 1, 2)
    captions = [Caption(i, f"{row['gender']} {row['subject']}, {row['tone']} skin") for i, row in enumerate(rows)]
    coder, text, size = load_part(base, "vae"), load_part(base, "text_encoder"), read_config()["models"]["transformer"]
    torch.manual_seed(0)
    network = make_transformer(coder.config.latent_channels, text.config.hidden_size, **size)
    pairs = (latents_of(coder, pixels, 1), coder.config.scaling_factor, captions)
    task = FlowTask(network, text, load_tokenizer(base / "tokenizer"), *pairs, IMAGES)

    @torch.no_grad()
    def error() -> float:
        generator = torch.Generator().manual_seed(1)
        return sum(task(generator).item() for _ in range(DRAWS)) / DRAWS

    before, began = error(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        Loop("one batch", Path(folder) / "state.safetensors", lr=5e-4, warmup=20, steps=steps).run(network, task)
    seconds, after = time.process_time() - began, error()
    task.texts = task.texts.roll(1, 0)
    say(f"{network.num_parameters():,} numbers, {steps} steps of {IMAGES} in {seconds:.0f} s of CPU time")
    say(f"mean squared error {before:.3f} before, {after:.3f} after, {error():.3f} with captions exchanged (n = {DRAWS * IMAGES})")


if __name__ == "__main__":
    main()
