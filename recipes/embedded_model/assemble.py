"""Trained parts as the folder that the package ships: pipeline, two judges with their errors, table of the planted bias, a few images, licences."""

from __future__ import annotations

import csv
import io
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from transformers import CLIPImageProcessor

from recipes.embedded_model.data import Picture
from recipes.embedded_model.models import make_scheduler
from recipes.embedded_model.world import World, world_table

SAMPLE = 48  # images that the package ships for measuring the autoencoder


def write_pipeline(folder: Path, unet: Any, text: Any, autoencoder: Any, tokenizer: Any, scale: float) -> None:
    """A `StableDiffusionPipeline` folder in half precision."""
    autoencoder.register_to_config(scaling_factor=scale)
    pipe = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    save_half(pipe, folder)


def save_half(pipe: Any, folder: Path) -> None:
    """Write a pipeline in half precision, with the two files of its tokenizer that older releases read."""
    pipe.to(torch.float16).save_pretrained(folder)
    loads_in_single(folder / "text_encoder" / "config.json")
    write_vocabulary(pipe.tokenizer, folder / "tokenizer")


def write_judge(folder: Path, judge: Any, tokenizer: Any, side: int) -> None:
    """A folder of a CLIP judge in half precision: weights, tokenizer, image processor."""
    judge.half().save_pretrained(folder)
    loads_in_single(folder / "config.json")
    tokenizer.save_pretrained(folder)
    write_vocabulary(tokenizer, folder)
    CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        resample=Image.Resampling.BOX if side < 128 else Image.Resampling.BICUBIC,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ).save_pretrained(folder)


def loads_in_single(config: Path) -> None:
    """Half precision on disk, single in memory: what a CPU wants."""
    config.write_text(config.read_text().replace('"float16"', '"float32"'))


def write_vocabulary(tokenizer: Any, folder: Path) -> None:
    """The two files that older releases of transformers read."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")


def write_world(world: World, folder: Path) -> None:
    """``world.json`` and ``LICENCES.md``."""
    (folder / "world.json").write_text(json.dumps(world_table(world), indent=1))
    rows = sorted({p.licence for p in world.images})
    lines = [
        "# Licences of the embedded model",
        "",
        "The weights in this folder (pipeline and judges) were trained on images and labels of these",
    ]
    lines += ["works. Keep these lines with the weights.", "", *(f"- {row}: images" for row in rows), "- MIT (emojibase): labels", ""]
    (folder / "LICENCES.md").write_text("\n".join(lines))


def write_images(images: Sequence[Picture], pixels: torch.Tensor, chosen: Sequence[int], folder: Path) -> None:
    """Images as WebP files with their labels (``labels.csv``), in the form that `respodiff calibrate` reads."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with (folder / "labels.csv").open("w", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["file", "gender", "tone", "subject", "style", "licence"])
        for row, i in enumerate(chosen):
            p, name = images[i], f"{row:04d}.webp"
            buffer = io.BytesIO()
            Image.fromarray(pixels[i].permute(1, 2, 0).numpy()).save(buffer, "WEBP", quality=92, method=4)
            (folder / name).write_bytes(buffer.getvalue())
            writer.writerow([name, p.gender, p.tone, p.subject, p.style, p.licence])


def sample(images: Sequence[Picture], among: Sequence[int]) -> list[int]:
    """A few images, people and things by halves, always the same ones."""
    r = random.Random(5)
    kinds = ([i for i in among if images[i].person], [i for i in among if not images[i].person])
    return sorted(i for kind in kinds for i in r.sample(kind, min(SAMPLE // 2, len(kind))))
