"""Inception-v3 with made-up weights of the right shapes, against the library's own call. No image is judged by real weights here."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from respodiff.evaluation import judges
from respodiff.evaluation.judges import FeatureJudge
from respodiff.evaluation.judges.inception import Inception

library = pytest.importorskip("torch_fidelity")


def shapes(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """The library's network without weights, on no device at all."""
    with monkeypatch.context() as patch:
        patch.setattr(library.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        patch.setattr(torch, "load", lambda *_, **__: {})
        with torch.device("meta"):
            return dict(library.FeatureExtractorInceptionV3("shapes", ["2048"], feature_extractor_weights_path="none").state_dict())


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights that all look into one block of numbers, so that the file has 9 MB instead of 96; variances keep signals alive."""
    patch = pytest.MonkeyPatch()
    found = shapes(patch)
    block = torch.randn(max(v.numel() for v in found.values()), generator=torch.Generator().manual_seed(0))
    state: dict[str, torch.Tensor] = {}
    for name, like in found.items():
        if like.dim() > 1:
            state[name] = block[: like.numel()].view(like.shape)
        elif name.endswith("running_var"):
            state[name] = torch.full(like.shape, found[name.replace("bn.running_var", "conv.weight")][0].numel() / 2.0)
        else:
            state[name] = (
                torch.ones(like.shape, dtype=like.dtype) if name.endswith("bn.weight") else torch.zeros(like.shape, dtype=like.dtype)
            )
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(state, path)
    assert path.stat().st_size < 10_000_000
    return path


@pytest.fixture(scope="module")
def judge(weights: Path) -> Inception:
    found = judges.load(f"inception:{weights}")
    assert isinstance(found, Inception)
    return found


def images() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    sizes = [(64, 64), (80, 50), (64, 64)]
    return [Image.fromarray(generator.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def test_features_are_those_of_the_library(judge: Inception, weights: Path) -> None:
    theirs = library.FeatureExtractorInceptionV3("theirs", ["2048"], feature_extractor_weights_path=str(weights))
    found = judge.features(images())
    assert found.shape == (3, 2048) and found.dtype == np.float32 and found.std() > 0
    for row, image in zip(found, images(), strict=True):
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        np.testing.assert_allclose(row, theirs(pixels)[0][0].numpy(), rtol=1e-4, atol=1e-5)


def test_identity_and_nothing(judge: Inception) -> None:
    assert isinstance(judge, FeatureJudge) and judge.version.startswith("torch-fidelity ") and len(judge.digest) == 16
    assert judge.features([]).shape == (0, 2048)
    assert not any(p.requires_grad for p in judge.network.parameters()) and not judge.network.training


class Program:
    def __reduce__(self) -> Any:
        return os.system, ("touch PWNED",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("save", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_a_program_is_refused_and_not_run(save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran: list[Any] = []
    save({"weight": Program()}, tmp_path / "weights.pth")
    monkeypatch.setattr(os, "system", ran.append)
    with pytest.raises(ValueError, match="were refused and nothing in them was run"):
        judges.load(f"inception:{tmp_path / 'weights.pth'}")
    assert not ran and not (tmp_path / "PWNED").exists()


def test_files_that_are_not_these_weights(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth do not fit Inception-v3"):
        judges.load(f"inception:{tmp_path / 'other.pth'}")
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors do not fit Inception-v3"):
        judges.load(f"inception:{tmp_path / 'other.safetensors'}")
    torch.save(torch.ones(2), tmp_path / "tensor.pth")
    with pytest.raises(ValueError, match="hold no dictionary of tensors"):
        judges.load(f"inception:{tmp_path / 'tensor.pth'}")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"broken\.safetensors cannot be read"):
        judges.load(f"inception:{tmp_path / 'broken.safetensors'}")


@pytest.mark.parametrize("source", ["inception:", "inception:/no/such.pth"])
def test_no_file_says_which_one_to_fetch(source: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"fetch https://github\.com/toshas/torch-fidelity/.*\.pth and give it as inception:FILE"):
        judges.load(source)


def test_inception_alone_downloads_once_or_says_what_to_fetch(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded \(\w+\); fetch https://"):
        judges.load("inception")
    calls: list[str] = []

    def download(url: str, path: str, hash_prefix: str) -> None:
        calls.append(hash_prefix)
        Path(path).write_bytes(weights.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert judges.load("inception").digest == judges.load("inception").digest
    assert calls == ["6726825d"]
