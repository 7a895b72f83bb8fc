"""Inception-v3, whose 2048 pooled features are what the FID is measured on.

Library torch-fidelity (Apache-2.0), extra ``fid``; the weights (TensorFlow 2015, Apache-2.0) are a file of its release v0.2.0. The library's
own reader of that file runs whatever a pickle says, so the weights are read here, by torch's reader of weights, and assigned over.

Images are resized to 299 x 299 as TensorFlow 1 does; figures of "clean-fid", which resizes otherwise, are another scale.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from respodiff.evaluation.judges.base import Floats, files_digest, optional, package_version
from respodiff.evaluation.judges.tensor_pickle import Refused, load_torch

if TYPE_CHECKING:
    from PIL import Image

FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
FETCH = f"fetch {URL} and give it as inception:FILE"
WIDTH = 2048
_BATCH = 32


class Inception:
    """Turns images into the 2048 features of Inception-v3's last pooling.

    Args:
        network: maps uint8 (B, 3, H, W) to a tuple with one tensor (B, 2048).
    """

    def __init__(self, network: Any, name: str, version: str, digest: str, device: str = "cpu") -> None:
        self.network, self.name, self.version, self.digest, self.device = network, name, version, digest, device

    @classmethod
    def load(cls, source: str, device: str = "cpu") -> Inception:
        """Load ``inception:FILE`` (.pth or .safetensors), or ``inception`` alone: the copy in torch's cache, downloaded if there is none.

        Raises:
            ValueError: a file that is not these weights; nothing in it is executed.
            FileNotFoundError: no such file, or no network.
            RuntimeError: the package is not installed.
        """
        library = optional("torch_fidelity", "torch-fidelity", "fid")
        path = _cached() if source == "inception" else Path(source.removeprefix("inception:") or "?").expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"judge {source!r} has no weights file {str(path)!r}; allowed: inception:FILE; {FETCH}")
        network = _network(library, _weights(path), path).to(device)
        return cls(network, source, package_version("torch-fidelity"), files_digest([path]), device)

    def features(self, images: Sequence[Image.Image]) -> Floats:
        """float32 (N, 2048) of images of any size, in their order; each size goes through the network in batches of its own."""
        import torch

        out = np.zeros((len(images), WIDTH), dtype=np.float32)
        sizes: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, image in enumerate(images):
            sizes[image.size].append(i)
        with torch.inference_mode():
            for rows in sizes.values():
                for start in range(0, len(rows), _BATCH):
                    part = rows[start : start + _BATCH]
                    pixels = np.stack([np.array(images[i].convert("RGB"), dtype=np.uint8) for i in part])
                    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device)
                    out[part] = self.network(batch)[0].float().cpu().numpy()
        return out


def _weights(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors: dict[str, Any] = load_file(path)
            return tensors
        except SafetensorError as error:
            raise ValueError(f"weights {path.name} cannot be read ({str(error)[:100]}); allowed: inception:FILE; {FETCH}") from None
    try:
        found = load_torch(path)
    except Refused as error:
        raise ValueError(f"weights {path.name} were refused and nothing in them was run: the file {error}; {FETCH}") from None
    if not isinstance(found, dict) or not all(hasattr(v, "dtype") for v in found.values()):
        raise ValueError(f"weights {path.name} hold no dictionary of tensors; allowed: inception:FILE; {FETCH}")
    return found


def _network(library: Any, weights: dict[str, Any], path: Path) -> Any:
    """The library's network; what its own reader is given is a file in memory, written here, of tensors that have been read safely."""
    import torch

    safe = io.BytesIO()
    torch.save(dict(weights), safe)
    safe.seek(0)
    try:
        network = library.FeatureExtractorInceptionV3("inception-v3", [str(WIDTH)], feature_extractor_weights_path=safe)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"weights {path.name} do not fit Inception-v3 ({reason}); allowed: inception:FILE; {FETCH}") from None
    return network


def _cached() -> Path:
    """The weights in torch's cache; downloaded, with their digest checked, where they are not yet."""
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(URL, str(path), hash_prefix=FILE.removesuffix(".pth").rpartition("-")[2])
    except Exception as error:  # urllib, ssl and sockets raise from families of their own
        raise FileNotFoundError(f"weights of Inception-v3 could not be downloaded ({type(error).__name__}); {FETCH}") from error
    return path
