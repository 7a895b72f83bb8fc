"""Inception-v3 with made-up weights of the right shapes, against the library's own call. No image is judged by real weights here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from respodiff.evaluation import judges
from respodiff.evaluation.judges import FeatureJudge
from respodiff.evaluation.judges.inception import Inception
from respodiff.steering.convert import write_safetensors

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
    """Random weights, converted as the published file is; variances keep signals alive."""
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
    write_safetensors(path, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


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
    theirs = library.FeatureExtractorInceptionV3("theirs", ["2048"], feature_extractor_weights_path=str(weights.with_suffix(".pth")))
    found = judge.features(images())
    assert found.shape == (3, 2048) and found.dtype == np.float32 and found.std() > 0
    for row, image in zip(found, images(), strict=True):
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        np.testing.assert_allclose(row, theirs(pixels)[0][0].numpy(), rtol=1e-4, atol=1e-5)


def test_identity_and_nothing(judge: Inception) -> None:
    assert isinstance(judge, FeatureJudge) and judge.version.startswith("torch-fidelity ") and len(judge.digest) == 16
    assert judge.features([]).shape == (0, 2048)
    assert not any(p.requires_grad for p in judge.network.parameters()) and not judge.network.training


def test_files_that_are_not_these_weights(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth are not Inception-v3's.*run: respodiff convert .*\.pth --to safetensors"):
        judges.load(f"inception:{tmp_path / 'other.pth'}")
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors are not Inception-v3's"):
        judges.load(f"inception:{tmp_path / 'other.safetensors'}")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"broken\.safetensors are not Inception-v3's"):
        judges.load(f"inception:{tmp_path / 'broken.safetensors'}")


@pytest.mark.parametrize("source", ["inception", "inception:", "inception:/no/such.safetensors"])
def test_no_file_says_which_one_to_fetch(source: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"fetch https://github\.com/toshas/torch-fidelity/.*\.pth, run: respodiff convert"):
        judges.load(source)
