"""Q16 with the embedded CLIP model and made-up vectors."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from respodiff.evaluation import judges
from respodiff.evaluation.judges import ClipJudge, FlagJudge
from respodiff.evaluation.judges.q16 import Q16

VECTORS = np.random.default_rng(0).standard_normal((2, 192)).astype(np.float16)
LABELLED = Path(__file__).parents[2] / "data" / "labelled"


@pytest.fixture(scope="module")
def clip() -> ClipJudge:
    return ClipJudge.load()


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [Image.open(LABELLED / name) for name in ("0004.webp", "0095.webp", "0286.webp", "0332.webp")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The embedded CLIP model in a folder of its own."""
    return Path(shutil.copytree(judges.judge_folder("embedded"), tmp_path / "clip"))


def write(path: Path, vectors: np.ndarray) -> Path:
    save_file({"prompts": vectors}, path)
    return path


@pytest.mark.parametrize("array", [VECTORS[0], VECTORS[:, :100], VECTORS[[0, 1, 1]], VECTORS * 0, VECTORS * np.float16(np.nan)])
def test_vectors_that_cannot_be(clip: ClipJudge, array: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"allowed: two finite vectors \(2, 192\)"):
        Q16(clip, array, "q16:here", "0")


def test_a_pickle_is_not_read(folder: Path) -> None:
    for name in ("prompts.p", "prompts.safetensors"):
        (folder / name).write_bytes(b"cos\nsystem\n(S'touch PWNED'\ntR.")
    with pytest.raises(ValueError, match=r"has no readable tensor 'prompts'.*run: respodiff convert prompts\.p --q16"):
        judges.load_judge(f"q16:{folder}")
    save_file({"other": VECTORS}, folder / "prompts.safetensors")
    with pytest.raises(ValueError, match="has no readable tensor 'prompts'"):
        judges.load_judge(f"q16:{folder}")


@pytest.mark.slow
def test_probability_is_the_softmax_of_scaled_cosines(clip: ClipJudge, images: list[Image.Image]) -> None:
    judge = Q16(clip, VECTORS, "q16:here", "0")
    p = torch.nn.functional.normalize(torch.from_numpy(VECTORS).float(), dim=-1)
    wanted = (100 * torch.from_numpy(clip.embed_images(images)) @ p.T).softmax(-1)[:, 1]
    np.testing.assert_allclose(judge.scores(images), wanted.numpy(), atol=1e-5)
    assert isinstance(judge, FlagJudge) and judge.threshold == 0.5 and "0.5 or more" in judge.rule


def test_text_vectors_flag_what_they_say(clip: ClipJudge, images: list[Image.Image]) -> None:
    judge = Q16(clip, clip.embed_texts(["a cloud with rain", "a dagger"]) * 22, "q16:here", "0")
    scores = judge.scores([images[3], images[2]])
    assert scores[0] is not None and scores[1] is not None and scores[0] < 0.5 < scores[1]


@pytest.mark.filterwarnings("ignore:judge q16")
def test_a_broken_image_is_unknown(clip: ClipJudge, images: list[Image.Image]) -> None:
    buffer = io.BytesIO()
    images[0].save(buffer, "png")
    judge = Q16(clip, VECTORS, "q16:here", "0")
    whole = judge.scores(images[:2])
    scores = judge.scores([images[0], Image.open(io.BytesIO(buffer.getvalue()[:3000])), images[1]])
    assert scores[1] is None
    np.testing.assert_allclose([scores[0], scores[2]], whole, atol=1e-5)


@pytest.mark.slow
def test_sources(folder: Path) -> None:
    (folder / "prompts.p").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"has no prompts\.safetensors; .*run: respodiff convert prompts\.p --q16"):
        judges.load_judge(f"q16:{folder}")
    write(folder.parent / "prompts.safetensors", VECTORS)
    found = judges.load_judge(f"q16:{folder}")
    assert isinstance(found, Q16) and found.name == f"q16:{folder}" and len(found.digest) == 16
    write(folder / "prompts.safetensors", VECTORS)
    assert judges.load_judge(f"q16:{folder}").digest == found.digest  # where the vectors come from makes no difference
    save_file({"prompts": VECTORS * 2}, folder / "prompts.safetensors")
    assert judges.load_judge(f"q16:{folder}").digest != found.digest


def test_wrong_sources(folder: Path, tmp_path: Path) -> None:
    for source in ("q16:/no/such/folder", "q16", "q16:", f"q16:{folder}"):
        with pytest.raises(FileNotFoundError, match="allowed: q16:DIR"):
            judges.load_judge(source)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty" / "prompts.safetensors", VECTORS)
    with pytest.raises(ValueError, match=r"no readable config\.json"):
        judges.load_judge(f"q16:{tmp_path / 'empty'}")
