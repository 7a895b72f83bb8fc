"""The CLIP judge: compares an image with texts.

``100 x cosine`` is the logit of the original CLIP and the unit of the paper's alignment scores; a model's own learned temperature is left
out, so that judges stay comparable.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from respodiff._bars import without_bars
from respodiff.concepts.concept import Attribute, Concept
from respodiff.evaluation.judges.base import BATCH, UNKNOWN, Judge, JudgeInput, Score, files_digest, package_version, vectors_of
from respodiff.evaluation.judges.texts import LOGIT_SCALE, Floats, LabellingTask, choose, class_texts, image_text, placeholders

if TYPE_CHECKING:
    from PIL import Image
    from transformers import CLIPModel, CLIPProcessor

    from respodiff.data.records import ImageRecord

T = TypeVar("T")
EMBEDDED = {"embedded": "judge", "embedded-b": "judge-b"}
"""The shipped judges by name, and their folders: the second has another architecture and seed, so that two can be compared."""
ALLOWED = "'embedded', 'embedded-b', a folder with a CLIP model, clip:DIR-OR-ID, or clip:ID@REVISION"
# CLIP, and CLIP's objective with any two towers.
KINDS = {"clip": "CLIPModel", "vision-text-dual-encoder": "VisionTextDualEncoderModel"}
# No pickled weights; and only the files that transformers reads, as some repositories hold five copies of a model.
_HUB_FILES = ["*config.json", "tokenizer.json", "vocab.json", "merges.txt", "model*.safetensors*"]


def judge_folder(source: str) -> Path:
    """The folder that holds a judge's files; a hub id, at the commit or branch after @, is looked up in the local cache, then downloaded.

    Errors as `load_judge`.
    """
    if source in EMBEDDED:
        return Path(str(files("respodiff"))) / "embedded" / EMBEDDED[source]
    name = source.removeprefix("clip:")
    folder = Path(name).expanduser()
    if name and folder.is_dir():  # Path("") is the current folder
        return folder
    if not name or ":" in name or (name == source and "/" not in name):
        raise ValueError(f"judge is {source!r}; allowed, to compare images with texts: {ALLOWED}; write clip:ID for a model of the hub")
    name, _, revision = name.partition("@")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"judge folder {name!r} does not exist; allowed: {ALLOWED}; check the path")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub client raises from requests, httpx, OSError and its own families
        why = f"the hub gave no answer ({type(error).__name__}); allowed: {ALLOWED}; download it once or give its folder"
        raise FileNotFoundError(f"judge {source!r} is neither a folder nor in the local cache, and {why}") from error


def load_judge(source: str = "embedded") -> tuple[CLIPModel, CLIPProcessor]:
    """The judge as plain transformers objects, float32 and in eval mode.

    Args:
        source: ``embedded``, ``embedded-b``, a folder, or a hub id (``ID@REVISION`` for one commit); ``clip:`` in front is accepted.

    Raises:
        ValueError: the source is none of these, or no CLIP model.
        FileNotFoundError: no such folder, or the hub cannot be reached.
    """
    folder = judge_folder(source)
    kind = _check_folder(folder)
    import torch
    import transformers
    from safetensors import SafetensorError
    from transformers import AutoImageProcessor as Images
    from transformers import AutoTokenizer, CLIPProcessor

    try:
        with without_bars(transformers):
            kinds = getattr(transformers, KINDS[kind])
            model = kinds.from_pretrained(folder, dtype=torch.float32, local_files_only=True, use_safetensors=True)
        # Always the PIL resize: the torchvision one gives other pixels, so labels would hang on what is installed.
        images = Images.from_pretrained(folder, backend="pil", local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"judge folder {folder} cannot be loaded ({reason}); give a complete CLIP folder") from error
    model.requires_grad_(False)
    return model.train(False), CLIPProcessor(image_processor=images, tokenizer=tokenizer)


def _check_folder(folder: Path) -> str:
    """The model type of a judge's folder; ValueError for one that holds no CLIP model."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError) as error:
        raise ValueError(f"judge folder {folder} has no readable config.json; allowed: {ALLOWED}") from error
    if kind not in KINDS:
        raise ValueError(f"judge folder {folder} holds a {kind!r} model, not a CLIP model; allowed: {ALLOWED}")
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(file.name for file in folder.glob("*.bin"))
        convert = f"transformers.{KINDS[kind]}.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        raise ValueError(
            f"judge folder {folder} has its weights as a pickle ({pickles[0]}), which is never read; if you trust it, convert it once: {convert}"
            if pickles
            else f"judge folder {folder} has no weights (*.safetensors); give a complete folder, or another revision: clip:ID@REVISION"
        )
    return str(kind)


class ClipJudge(Judge):
    """A CLIP model that compares images with texts, loaded when it is first used: a run that is scored already needs none.

    >>> ClipJudge.load().name
    'embedded'
    """

    kind = "texts"

    def __init__(self, folder: Path, name: str, device: str = "cpu") -> None:
        _check_folder(folder)
        self.folder, self.name, self.device = folder, name, device
        self.digest = files_digest(sorted(folder.glob("*.safetensors")))
        self.version = package_version("transformers") + f", revision {folder.name}" * (folder.parent.name == "snapshots")

    @classmethod
    def load(cls, source: str = "embedded", device: str = "cpu") -> ClipJudge:
        """A judge by the names that `load_judge` takes."""
        return cls(judge_folder(source), source, device)

    @cached_property
    def _loaded(self) -> tuple[CLIPModel, CLIPProcessor]:
        model, processor = load_judge(f"clip:{self.folder}")
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

    def asked(self, task: LabellingTask) -> dict[str, Any]:
        return {"class_template": task.class_template, "min_margin": task.min_margin, "subjects": list(task.subjects)}

    def score(self, images: Sequence[JudgeInput], task: LabellingTask) -> list[Score]:
        """Labels, subject, unsafe and alignment of every image, and its vector as `Score.features`."""
        texts = task.prompts or tuple(sorted({item.record.prompt for item in images}))
        prompts = dict(zip(texts, self._text_vectors(texts), strict=True))
        vectors = vectors_of(images, self.embed_images, self.name)
        return [self._score(item.record, vector, task, prompts) for item, vector in zip(images, vectors, strict=True)]

    def _score(self, record: ImageRecord, vector: Floats | None, task: LabellingTask, prompts: dict[str, Floats]) -> Score:
        words, subjects = task.vocabulary, task.subjects
        if vector is None:
            return Score(record.id, {a.name: UNKNOWN for a in task.attributes}, problem="failed")
        subject = unsafe = None
        if subjects:
            texts = tuple(words.text(name) if words else image_text(name) for name in subjects)
            subject = subjects[int(np.argmax(self._text_vectors(texts) @ vector))]
        if words and words.unsafe:
            texts = tuple(image_text(name) for name in (*words.unsafe, *words.safe))
            unsafe = int(np.argmax(self._text_vectors(texts) @ vector)) < len(words.unsafe)
        return Score(
            id=record.id,
            labels={a.name: self._label(a, record.group, vector, task) for a in task.attributes},
            subject=subject,
            subject_correct=None if record.subject is None else subject == record.subject,
            unsafe=unsafe,
            alignment=LOGIT_SCALE * float(prompts[record.prompt] @ vector),
            features=vector,
        )

    def _label(self, attribute: Attribute, group: str, vector: Floats, task: LabellingTask) -> str:
        texts = tuple(class_texts(attribute.concepts, task.class_template, group if "group" in placeholders(task.class_template) else ""))
        logits = LOGIT_SCALE * (self._text_vectors(texts) @ vector)
        best = int(choose(logits[None], task.min_margin)[0][0])
        return UNKNOWN if best < 0 else attribute.names[best]

    @cached_property
    def _text_vectors(self) -> Callable[[tuple[str, ...]], Floats]:
        """`embed_texts`, once for each list of texts."""
        return cache(self.embed_texts)


def classifier(source: str, chosen: Concept, device: str) -> Callable[[Any], Any] | None:
    """A judge as a differentiable classifier of a concept's alternatives: images (N, 3, H, W) in [0, 1] -> logits (N, K); None for "".

    Images are resized as they are (bicubic), without the crop that a judge makes of images that are not square. Errors as `load_judge`.
    """
    if not source:
        return None
    import torch
    from torch.nn.functional import interpolate

    judge = ClipJudge.load(source, device)
    model, look = judge.model, judge.processor.image_processor
    texts = torch.from_numpy(judge.embed_texts([chosen.target, *chosen.opposites])).to(device)
    mean, std = (torch.tensor(x, device=device).view(1, 3, 1, 1) for x in (look.image_mean, look.image_std))
    side = model.config.vision_config.image_size

    def classify(images: Any) -> Any:
        pixels = interpolate(images.to(device), (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        found = model.visual_projection(model.vision_model(pixel_values=(pixels - mean) / std).pooler_output)
        return LOGIT_SCALE * (found / found.norm(dim=-1, keepdim=True)) @ texts.T

    return classify
