"""The CLIP judge: compares an image with texts.

``100 x cosine`` is the logit of the original CLIP and the unit of the paper's alignment scores; a model's own learned temperature is left
out, so that judges stay comparable.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from respodiff.evaluation.judges.base import ALLOWED, BATCH, EMBEDDED, files_digest, package_version
from respodiff.evaluation.judges.kinds import TextJudge
from respodiff.evaluation.judges.texts import LOGIT_SCALE, Floats

if TYPE_CHECKING:
    from PIL import Image
    from transformers import CLIPModel, CLIPProcessor

T = TypeVar("T")
# CLIP, and CLIP's objective with any two towers.
KINDS = {"clip": "CLIPModel", "vision-text-dual-encoder": "VisionTextDualEncoderModel"}
# No pickled weights; and only the files that transformers reads, as some repositories hold five copies of a model.
_HUB_FILES = ["*config.json", "tokenizer.json", "vocab.json", "merges.txt", "model*.safetensors*"]


def judge_folder(source: str) -> Path:
    """The folder that holds a judge's files; a hub id is looked up in the local cache, then downloaded. Errors as `load_judge`."""
    if source in EMBEDDED:
        return Path(str(files("respodiff"))) / "embedded" / EMBEDDED[source]
    name = source.removeprefix("clip:")
    folder = Path(name).expanduser()
    if name and folder.is_dir():  # Path("") is the current folder
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"judge folder {name!r} does not exist; allowed: {ALLOWED}; check the path")
    if not name or (name == source and "/" not in name):
        raise ValueError(f"judge must be {ALLOWED}, got {source!r}; write clip:{name or 'ID'} for a model of the hub")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub client raises from requests, httpx, OSError and its own families
        raise FileNotFoundError(
            f"judge {name!r} is neither a folder nor in the local cache, and the hub gave no answer "
            f"({type(error).__name__}); allowed: {ALLOWED}; download it once or give its folder"
        ) from error


def load_judge(source: str = "embedded") -> tuple[CLIPModel, CLIPProcessor]:
    """The judge as plain transformers objects, float32 and in eval mode.

    Args:
        source: ``embedded``, ``embedded-b``, a folder, or a hub id; ``clip:`` in front is accepted.

    Raises:
        ValueError: the source is none of these, or no CLIP model.
        FileNotFoundError: no such folder, or the hub cannot be reached.
    """
    return _load_folder(judge_folder(source))


def _check_folder(folder: Path) -> str:
    """The model type of a judge's folder; ValueError for one that holds no CLIP model."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError) as error:
        raise ValueError(f"judge folder {folder} has no readable config.json; allowed: {ALLOWED}") from error
    if kind not in KINDS:
        raise ValueError(f"judge folder {folder} holds a {kind!r} model, not a CLIP model; allowed: {ALLOWED}")
    return str(kind)


def _load_folder(folder: Path) -> tuple[CLIPModel, CLIPProcessor]:
    kind = _check_folder(folder)
    import torch
    import transformers
    from transformers import AutoImageProcessor as Images
    from transformers import AutoTokenizer, CLIPProcessor

    try:
        model = getattr(transformers, KINDS[kind]).from_pretrained(folder, dtype=torch.float32, local_files_only=True, use_safetensors=True)
        # Always the PIL resize: the torchvision one gives other pixels, so labels would hang on what is installed.
        images = Images.from_pretrained(folder, backend="pil", local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"judge folder {folder} cannot be loaded ({reason}); give a complete CLIP folder") from error
    processor = CLIPProcessor(image_processor=images, tokenizer=tokenizer)
    model.requires_grad_(False)
    return model.train(False), processor


def weights_digest(folder: Path) -> str:
    """First 16 hex digits of the SHA-256 over a folder's safetensors files in name order."""
    return files_digest(sorted(folder.glob("*.safetensors")))


class ClipJudge(TextJudge):
    """A CLIP model that compares images with texts, loaded when it is first used: a run that is scored already needs none.

    >>> ClipJudge.load().name
    'embedded'
    """

    def __init__(self, folder: Path, name: str, device: str = "cpu") -> None:
        _check_folder(folder)
        self.folder, self.name, self.device = folder, name, device
        self.digest = weights_digest(folder)
        self.version = package_version("transformers")

    @classmethod
    def load(cls, source: str = "embedded", device: str = "cpu") -> ClipJudge:
        """A judge by the names that `load_judge` takes."""
        return cls(judge_folder(source), source, device)

    @cached_property
    def _loaded(self) -> tuple[CLIPModel, CLIPProcessor]:
        model, processor = _load_folder(self.folder)
        return model.to(self.device), processor

    @property
    def model(self) -> CLIPModel:
        return self._loaded[0]

    @property
    def processor(self) -> CLIPProcessor:
        return self._loaded[1]

    def embed_images(self, images: Sequence[Image.Image]) -> Floats:
        """Unit vectors (N, D) of RGB images of any size, in batches."""

        def embed(batch: Sequence[Image.Image]) -> Any:
            pixels = self.processor.image_processor([image.convert("RGB") for image in batch], return_tensors="pt")["pixel_values"]
            return self.model.visual_projection(self.model.vision_model(pixel_values=pixels.to(self.model.device)).pooler_output)

        return self._in_batches(images, embed)

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """Unit vectors (K, D) of texts; what exceeds the tokenizer's length (32 or 77) is cut off."""

        def embed(batch: Sequence[str]) -> Any:
            tokens = self.processor.tokenizer(list(batch), padding="max_length", truncation=True, return_tensors="pt")
            return self.model.text_projection(self.model.text_model(**tokens.to(self.model.device)).pooler_output)

        return self._in_batches(texts, embed)

    def logits(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Floats:
        """``100 x cosine`` of every image with every text: (N, K) in [-100, 100]."""
        logits: Floats = np.float32(LOGIT_SCALE) * (self.embed_images(images) @ self.embed_texts(texts).T)
        return logits

    def _in_batches(self, items: Sequence[T], embed: Callable[[Sequence[T]], Any]) -> Floats:
        import torch

        out = [np.zeros((0, int(self.model.visual_projection.out_features)), dtype=np.float32)]
        with torch.inference_mode():
            for start in range(0, len(items), BATCH):
                features = embed(items[start : start + BATCH])
                out.append((features / features.norm(dim=-1, keepdim=True)).float().cpu().numpy())
        return np.concatenate(out)
