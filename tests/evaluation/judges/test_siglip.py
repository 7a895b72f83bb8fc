"""SigLIP and SigLIP 2 as judges, with tiny random models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel

import tiny_judges
from command import last_json, respodiff
from painted import GENDER, coloured, paint
from respodiff.concepts.concept import Concept
from respodiff.data.records import ImageRecord
from respodiff.evaluation import judges
from respodiff.evaluation.judges import JudgeInput, LabellingTask
from respodiff.evaluation.judges.siglip import SiglipJudge

TEXTS = ["a woman", "a man"]
IMAGES = [coloured(colour, size) for colour in ((0, 0, 0), (255, 0, 0), (0, 255, 255), (255, 255, 255)) for size in ((16, 16), (20, 40))]


@pytest.fixture(scope="module", params=["siglip", "siglip2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return getattr(tiny_judges, request.param)(tmp_path_factory.mktemp("model") / request.param)


@pytest.fixture(scope="module")
def judge(folder: Path) -> SiglipJudge:
    found = judges.load_judge(f"siglip:{folder}")
    assert isinstance(found, SiglipJudge)
    return found


def labels(judge: SiglipJudge, images: list[Image.Image], min_margin: float = 0.0) -> list[str]:
    shown = [JudgeInput(ImageRecord(id=f"r{i}", file="", prompt="a cook", prompt_id="cook"), image) for i, image in enumerate(images)]
    return [s.labels["gender"] for s in judge.score(shown, LabellingTask((GENDER,), min_margin=min_margin))]


def test_logits_are_those_of_transformers(judge: SiglipJudge, folder: Path) -> None:
    """Against the model's own forward pass: the sigmoid of its logits is the probability that a text fits."""
    model = AutoModel.from_pretrained(folder).eval()
    words = judge.processor.tokenizer(TEXTS, padding="max_length", max_length=12, padding_side="right", return_tensors="pt")
    with torch.inference_mode():
        wanted = model(input_ids=words["input_ids"], **judge.processor.image_processor(IMAGES, return_tensors="pt")).logits_per_image
    found = judge.logits(IMAGES, TEXTS)
    assert found.shape == (len(IMAGES), 2) and found.dtype == np.float32
    np.testing.assert_allclose(1 / (1 + np.exp(-found)), wanted.sigmoid(), atol=1e-5)
    assert labels(judge, IMAGES) == [("woman", "man")[i] for i in wanted.argmax(1)]
    np.testing.assert_allclose(np.linalg.norm(judge.embed_images(IMAGES), axis=1), 1, atol=1e-5)
    assert judge.logits([], TEXTS).shape == (0, 2)


def test_texts_are_in_lower_case_and_of_one_length(judge: SiglipJudge) -> None:
    vectors = judge.embed_texts(["A Woman", "a woman", "a woman " * 30])
    assert np.array_equal(vectors[0], vectors[1]) and not np.allclose(vectors[1], vectors[2], atol=1e-2)
    np.testing.assert_allclose(judge.embed_texts(["a woman"]), vectors[1:2], atol=1e-6)


def test_a_margin_is_in_log_odds(judge: SiglipJudge) -> None:
    lead = np.ptp(judge.logits(IMAGES[:1], TEXTS)[0])
    assert labels(judge, IMAGES[:1], float(lead * 0.99)) != ["unknown"] and labels(judge, IMAGES[:1], float(lead * 1.01)) == ["unknown"]


def test_digest_is_that_of_the_weights_and_answers_are_the_same_in_every_run(judge: SiglipJudge, folder: Path) -> None:
    again = SiglipJudge.load(f"siglip:{folder}")
    assert again.digest == judge.digest and len(judge.digest) == 16 and judge.kind == "texts"
    assert np.array_equal(again.logits(IMAGES, TEXTS), judge.logits(IMAGES, TEXTS))


def test_it_teaches_methods_that_learn_from_images(judge: SiglipJudge, folder: Path) -> None:
    woman = Concept("woman", "a woman", opposites=("a man",), attribute="gender")
    if folder.name == "siglip2":
        with pytest.raises(ValueError, match="patches of any shape"):
            judges.classifier(judge.name, woman, "cpu")
        return
    classify = judges.classifier(judge.name, woman, "cpu")
    images = torch.stack([torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1) / 255 for image in IMAGES[::2]]).requires_grad_()
    found = classify(images) if classify else None
    wanted = judge.logits(IMAGES[::2], TEXTS)
    assert found is not None and np.abs(np.diff(found.detach().numpy()) - np.diff(wanted)).max() < 1e-3
    found[:, 0].sum().backward()
    assert images.grad is not None and images.grad.abs().max() > 0


def test_evaluate_and_calibrate(judge: SiglipJudge, tmp_path: Path) -> None:
    seen = labels(judge, [coloured((0, 0, 0)), coloured((255, 0, 0))])
    paint(tmp_path / "run", [("cook", None, (0, 0, 0)), ("guard", None, (1, 0, 0))])
    for i, red in enumerate((0, 255)):
        coloured((red, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "labels.csv").write_text("file,gender\n0.png,woman\n1.png,man\n")
    made = last_json(
        respodiff("calibrate", str(tmp_path / "labels.csv"), "--judge", judge.name, "--out", str(tmp_path / "c.json"), "--json")
    )
    assert made["accuracy"]["gender"] == ((seen[0] == "woman") + (seen[1] == "man")) / 2
    assert list(json.loads((tmp_path / "c.json").read_text())) == [judge.digest]
    found: dict[str, Any] = last_json(respodiff("evaluate", str(tmp_path / "run"), "--judge", judge.name, "--json"))
    assert found["counts"]["gender"]["cook"][seen[0]] == found["counts"]["gender"]["guard"][seen[1]] == 1
    assert found["subject_accuracy"] is not None and -100 <= found["alignment"]["mean"] <= 100


def test_folders_that_hold_no_siglip(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'clip' model, not a SigLIP model"):
        judges.load_judge(f"siglip:{judges.judge_folder('embedded')}")
    with pytest.raises(ValueError, match="'siglip' model, not a CLIP model"):
        judges.load_judge(f"clip:{tiny_judges.siglip(tmp_path / 's')}")
    (tmp_path / "s" / "model.safetensors").rename(tmp_path / "s" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin.*SiglipModel\.from_pretrained"):
        judges.load_judge(f"siglip:{tmp_path / 's'}")
