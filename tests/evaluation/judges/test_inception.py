"""Inception-v3 with made-up weights of the right shapes, against the library's own call. No image is judged by real weights here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from respodiff.data.run_folder import file_digest
from respodiff.evaluation import judges
from respodiff.evaluation.judges import FeatureJudge, inception
from respodiff.evaluation.judges.inception import Inception


@pytest.fixture(scope="module")
def library() -> Any:
    return pytest.importorskip("torch_fidelity")


def shapes(library: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """The library's network without weights, on no device at all."""
    with monkeypatch.context() as patch:
        patch.setattr(library.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        patch.setattr(torch, "load", lambda *_, **__: {})
        with torch.device("meta"):
            return dict(library.FeatureExtractorInceptionV3("shapes", ["2048"], feature_extractor_weights_path="none").state_dict())


@pytest.fixture(scope="module")
def weights(library: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the right shapes; variances keep signals alive."""
    found = shapes(library, pytest.MonkeyPatch())
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
    return path


@pytest.fixture(scope="module")
def judge(weights: Path) -> Inception:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "SHA256", file_digest(weights))
        found = judges.load_judge(f"inception:{weights}")
    assert isinstance(found, Inception)
    return found


def images() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    sizes = [(64, 64), (80, 50), (64, 64)]
    return [Image.fromarray(generator.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def test_features_are_those_of_the_library(library: Any, judge: Inception, weights: Path) -> None:
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


def test_any_file_but_the_published_one_is_refused_also_one_that_was_good_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / inception.FILE
    assert inception.FILE.endswith(f"-{inception.SHA256[:8]}.pth") and len(inception.SHA256) == 64
    monkeypatch.setattr(inception, "optional", lambda *_: None)
    torch.save({"weight": torch.ones(2)}, path)
    with pytest.raises(
        ValueError, match=rf"weights {inception.FILE} are not Inception-v3's, or have changed \(SHA-256 {file_digest(path)}"
    ):
        judges.load_judge(f"inception:{path}")
    monkeypatch.setattr(inception, "SHA256", file_digest(path))
    assert inception.published(f"inception:{path}") == path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="or have changed"):
        judges.load_judge(f"inception:{path}")


@pytest.mark.parametrize("source", ["inception", "inception:", "inception:/no/such.pth"])
def test_no_file_says_which_one_to_fetch(source: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"allowed: inception:weights-.*\.pth, the file at https://github\.com/.*; fetch it"):
        inception.published(source)
