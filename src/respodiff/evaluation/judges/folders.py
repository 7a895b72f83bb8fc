"""Finds, checks and loads the folders of transformers models that judges are made of, on this machine or the hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from respodiff._bars import without_bars
from respodiff.evaluation.judges.base import files_digest, package_version

# No pickled weights; and only the files that transformers reads, as some repositories hold five copies of a model.
FILES = (
    *("*config.json", "tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    *("spiece.model", "tokenizer.model", "chat_template.*", "model*.safetensors*"),
)


@dataclass(frozen=True)
class ModelFolders:
    """What the folder of a kind of judge holds.

    Attributes:
        kind: the word before the colon of its sources. what: its models in words. allowed: its sources, for messages.
        classes: model type -> class of transformers. auto: the class for every other type; empty allows none.
        install: what to run where a package is missing.
    """

    kind: str
    what: str
    allowed: str
    classes: Mapping[str, str] = field(default_factory=dict)
    auto: str = ""
    install: str = "install it"

    def find(self, source: str) -> Path:
        """The folder of a source; a hub id, at the commit or branch after @, is looked up in the local cache, then downloaded.

        Raises:
            ValueError: no folder and no hub id.
            FileNotFoundError: no such folder, or the hub cannot be reached.
        """
        name = source.removeprefix(f"{self.kind}:")
        folder = Path(name).expanduser()
        if name and folder.is_dir():  # Path("") is the current folder
            return folder
        if not name or ":" in name or (name == source and "/" not in name):
            raise ValueError(f"judge is {source!r}; allowed for {self.what}: {self.allowed}; write {self.kind}:ID for a model of the hub")
        name, _, revision = name.partition("@")
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise FileNotFoundError(f"judge folder {name!r} does not exist; allowed: {self.allowed}; check the path")
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(FILES)))
        except Exception as error:  # the hub client raises from requests, httpx, OSError and its own families
            why = f"the hub gave no answer ({type(error).__name__}); allowed: {self.allowed}; download it once or give its folder"
            raise FileNotFoundError(f"judge {source!r} is neither a folder nor in the local cache, and {why}") from error

    def check(self, folder: Path) -> dict[str, Any]:
        """The model's configuration; ValueError for a folder with another model, or without weights that are safe to read."""
        try:
            config = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"judge folder {folder} has no readable config.json; allowed: {self.allowed}") from error
        kind = config.get("model_type")
        if not self.auto and kind not in self.classes:
            raise ValueError(f"judge folder {folder} holds a {kind!r} model, not {self.what}; allowed: {self.allowed}")
        if not any(folder.glob("*.safetensors")):
            pickles = sorted(file.name for file in folder.glob("*.bin"))
            hub = folder.parent.parent.name.removeprefix("models--").replace("--", "/") if folder.parent.name == "snapshots" else ""
            source, to = (hub, hub.rpartition("/")[2]) if hub else (str(folder), str(folder))
            parts = [self._class(kind), *(["AutoProcessor"] if hub else [])]  # a folder has the other files already
            convert = "; ".join(f"transformers.{part}.from_pretrained({source!r}).save_pretrained({to!r})" for part in parts)
            if pickles or hub:
                which = f" ({pickles[0]})" if pickles else ""
                has = f"has its weights as a pickle{which}" if pickles else "has no *.safetensors, its weights may be a pickle"
                raise ValueError(f"judge folder {folder} {has}, which is never read; if you trust it, convert it once: {convert}")
            raise ValueError(
                f"judge folder {folder} has no weights (*.safetensors); give a complete folder, or another revision: {self.kind}:ID@REVISION"
            )
        return config

    def _class(self, model_type: Any) -> str:
        return self.classes.get(model_type, self.auto)

    def load(self, folder: Path, device: str = "cpu") -> Any:
        """The model: float32, in eval mode, without gradients. ValueError for weights that do not fill it."""
        import torch
        import transformers

        cls = getattr(transformers, self._class(self.check(folder)["model_type"]))
        given: dict[str, Any] = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True, "output_loading_info": True}
        with self.reading(folder), without_bars(transformers):
            model, found = cls.from_pretrained(folder, **given)
            if missing := sorted(found["missing_keys"]):  # transformers would fill them with random numbers
                raise ValueError(f"its weights lack {missing[0]}, which {type(model).__name__} has")
        model.requires_grad_(False)
        return model.train(False).to(device)

    def image_processor(self, folder: Path) -> Any:
        """The image processor, always the one of PIL: the one of torchvision gives other pixels, so labels would hang on what is installed."""
        # The name in `transformers` itself asks for torchvision below 5.18.
        from transformers.models.auto.image_processing_auto import AutoImageProcessor

        with self.reading(folder):
            return AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)

    @contextmanager
    def reading(self, folder: Path) -> Iterator[None]:
        """While the block runs, what transformers says of a broken folder becomes one line; RuntimeError for a package that it lacks."""
        from safetensors import SafetensorError

        try:
            yield
        except ImportError as error:
            raise RuntimeError(
                f"judge folder {folder} needs a package that is not installed ({_first(error)[:80]}); {self.install}"
            ) from error
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"judge folder {folder} cannot be loaded ({_first(error)}); give a complete folder of {self.what}") from error

    def digest(self, folder: Path, more: bytes = b"") -> str:
        """As `files_digest`, of the weights and of every other file that transformers reads: preprocessing, tokenizer, chat template."""
        return files_digest(sorted({path for pattern in (*FILES, "*.safetensors") for path in folder.glob(pattern)}), more)


def resizer(processor: Any, side: int, device: Any) -> Callable[[Any], Any]:
    """An image processor as a differentiable function of images (N, 3, H, W) in [0, 1]: resized as they are (bicubic), without a crop."""
    import torch
    from torch.nn.functional import interpolate

    mean, std = (torch.tensor(x, device=device).view(1, 3, 1, 1) for x in (processor.image_mean, processor.image_std))

    def prepare(images: Any) -> Any:
        pixels = interpolate(images.to(device), (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        return (pixels - mean) / std

    return prepare


def version_of(folder: Path) -> str:
    """A judge's `version`: that of transformers, and the commit of a folder that came from the hub."""
    return package_version("transformers") + f", revision {folder.name}" * (folder.parent.name == "snapshots")


def _first(error: Exception) -> str:
    """The first line of a message that is not empty."""
    return next((line for text in str(error).splitlines() if (line := text.strip())), type(error).__name__)[:200]
