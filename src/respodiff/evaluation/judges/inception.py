"""Inception-v3, whose 2048 pooled features are what the FID is measured on.

Library torch-fidelity (Apache-2.0), extra ``fid``; the weights (TensorFlow 2015, Apache-2.0) are a file of its release v0.2.0, whose digest is
checked whenever it is loaded, and which is read as tensors alone.

Images are resized to 299 x 299 as TensorFlow 1 does; figures of "clean-fid", which resizes otherwise, are another scale.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from respodiff._device import chosen_device
from respodiff.data.run_folder import file_digest
from respodiff.evaluation.judges.base import FeatureJudge, files_digest, optional, package_version
from respodiff.evaluation.judges.texts import Floats

if TYPE_CHECKING:
    from PIL import Image

FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
ALLOWED = f"allowed: inception:{FILE}, the file at {URL}; fetch it"
WIDTH = 2048
_BATCH = 32


class Inception(FeatureJudge):
    """Turns images into the 2048 features of Inception-v3's last pooling.

    Args:
        network: maps uint8 (B, 3, H, W) to a tuple with one tensor (B, 2048).
    """

    def __init__(self, network: Any, name: str, version: str, digest: str, device: str = "cpu") -> None:
        self.network, self.name, self.version, self.digest, self.device = network, name, version, digest, device

    @classmethod
    def load(cls, source: str, device: str = "cpu") -> Inception:
        """Load ``inception:FILE``; ValueError for any file but the published one, RuntimeError if the package is not installed."""
        library = optional("torch_fidelity", "torch-fidelity", "fid")
        import torch

        safe = io.BytesIO()  # the library's own reader runs pickles: it is given one of tensors that were read safely
        torch.save(torch.load(published(source), map_location="cpu", weights_only=True), safe)
        safe.seek(0)
        network = library.FeatureExtractorInceptionV3("inception-v3", [str(WIDTH)], feature_extractor_weights_path=safe)
        device, version = chosen_device(device), package_version("torch-fidelity")
        return cls(network.to(device), source, version, files_digest([], f"{SHA256} {version}".encode()), device)

    def features(self, images: Sequence[Image.Image]) -> Floats:
        """float32 (N, 2048) of images of any size, in their order; each size goes through the network in batches of its own."""
        import torch

        out = np.zeros((len(images), WIDTH), dtype=np.float32)
        sizes: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, image in enumerate(images):
            sizes[image.size].append(i)
        with torch.inference_mode():
            for part in (rows[start : start + _BATCH] for rows in sizes.values() for start in range(0, len(rows), _BATCH)):
                pixels = np.stack([np.array(images[i].convert("RGB"), dtype=np.uint8) for i in part])
                batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device)
                out[part] = self.network(batch)[0].float().cpu().numpy()
        return out


def published(source: str) -> Path:
    """The file of ``inception:FILE``; FileNotFoundError for none, ValueError for another one than was published."""
    path = Path(source.removeprefix("inception:") or "?").expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"judge {source!r} has no weights file {str(path)!r}; {ALLOWED}")
    if (found := file_digest(path)) != SHA256:
        raise ValueError(
            f"weights {path.name} are not Inception-v3's, or have changed (SHA-256 {found}, published {SHA256}); {ALLOWED} again"
        )
    return path
