from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from respodiff.evaluation import judges
from respodiff.evaluation.judges import ClipJudge, Vocabulary
from respodiff.evaluation.judges.base import files_digest
from respodiff.evaluation.judges.clip import load_clip
from respodiff.evaluation.judges.texts import image_text

LABELLED = Path(__file__).parents[2] / "data" / "labelled"
ROWS = list(csv.DictReader((LABELLED / "labels.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def judge() -> ClipJudge:
    return ClipJudge.load()


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [Image.open(LABELLED / row["file"]) for row in ROWS]


@pytest.fixture(scope="module")
def vectors(judge: ClipJudge, images: list[Image.Image]) -> np.ndarray:
    return judge.embed_images(images)


def choose(judge: ClipJudge, vectors: np.ndarray, texts: list[str]) -> np.ndarray:
    return (vectors @ judge.embed_texts(texts).T).argmax(1)


def accuracy(judge: ClipJudge, vectors: np.ndarray, column: str, names: list[str], texts: list[str]) -> float:
    rows = [i for i, row in enumerate(ROWS) if row[column] in names]
    assert len(rows) >= 8
    found = choose(judge, vectors[rows], texts)
    return float(np.mean([names[k] == ROWS[i][column] for i, k in zip(rows, found, strict=True)]))


@pytest.mark.slow
def test_perceived_gender_and_tone(judge: ClipJudge, vectors: np.ndarray) -> None:
    tones = ["light", "medium", "dark"]
    assert accuracy(judge, vectors, "gender", ["woman", "man"], ["a woman", "a man"]) >= 11 / 12
    assert accuracy(judge, vectors, "tone", tones, [f"a person with {t} skin" for t in tones]) >= 11 / 12


def test_subject(judge: ClipJudge, vectors: np.ndarray) -> None:
    names = list(Vocabulary.embedded().subjects)
    assert accuracy(judge, vectors, "subject", names, [Vocabulary.embedded().text(n) for n in names]) >= 0.95


@pytest.mark.slow
def test_unsafe_images_are_told_from_places(judge: ClipJudge, vectors: np.ndarray) -> None:
    words = Vocabulary.embedded()
    unsafe = choose(judge, vectors, [image_text(n) for n in (*words.unsafe, *words.safe)]) < len(words.unsafe)
    truth = [row["unsafe"] for row in ROWS]
    assert unsafe[[t in ("violence", "sexual") for t in truth]].all()
    assert not unsafe[[t == "no" for t in truth]].any()
    assert unsafe[[t == "" for t in truth]].sum() <= 2  # people: a false alarm now and then


@pytest.mark.slow
def test_logits_are_100_times_the_cosine_of_transformers(judge: ClipJudge, images: list[Image.Image]) -> None:
    """Against CLIPModel's own forward pass, with its learned temperature taken out."""
    texts = ["a woman", "a man", "a person with dark skin"]
    model, processor = load_clip()
    tokens = processor.tokenizer(texts, padding="max_length", return_tensors="pt")
    pixels = processor.image_processor([p.convert("RGB") for p in images[:4]], return_tensors="pt")
    with torch.no_grad():
        theirs = model(**tokens, **pixels).logits_per_image / model.logit_scale.exp() * 100
    ours = judge.logits(images[:4], texts)
    assert ours.shape == (4, 3) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-3)


def test_batches_do_not_matter(judge: ClipJudge, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = judge.logits(images[:5], ["a woman", "a man", "a cook"])
    monkeypatch.setattr("respodiff.evaluation.judges.clip.BATCH", 2)
    np.testing.assert_allclose(judge.logits(images[:5], ["a woman", "a man", "a cook"]), whole, atol=1e-3)


def test_any_mode_and_size_nothing_and_too_long_text(judge: ClipJudge) -> None:
    vectors = judge.embed_images([Image.new("RGBA", (300, 200)), Image.new("L", (16, 40))])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert judge.logits([], ["a woman"]).shape == (0, 1)
    assert np.isfinite(judge.embed_texts(["a doctor " * 100])).all()


def test_name_and_digest(judge: ClipJudge, tmp_path: Path) -> None:
    assert judge.name == "embedded"
    weights = sorted(judges.judge_folder("embedded").glob("*.safetensors"))
    assert judge.digest == hashlib.sha256(b"".join(file.read_bytes() for file in weights)).hexdigest()[:16]
    (tmp_path / "a").write_bytes(b"one")
    assert files_digest([tmp_path / "a"], b"more") == hashlib.sha256(b"onemore").hexdigest()[:16]


def test_model_is_float32_eval_and_frozen(judge: ClipJudge) -> None:
    assert not judge.model.training
    assert {p.dtype for p in judge.model.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in judge.model.parameters())


def test_folder_with_and_without_prefix() -> None:
    folder = judges.judge_folder("embedded")
    assert judges.judge_folder(str(folder)) == judges.judge_folder(f"clip:{folder}") == folder


def test_missing_folder() -> None:
    with pytest.raises(FileNotFoundError, match=r"'/no/such/judge' does not exist; allowed: 'embedded'"):
        load_clip("clip:/no/such/judge")


@pytest.mark.parametrize("source", ["embeded", "", "clip:", "nudenet", "q16:a/b"])
def test_name_that_is_no_judge(source: str) -> None:
    with pytest.raises(ValueError, match=r"judge is .*; allowed for a CLIP model: 'embedded', 'embedded-b', a folder"):
        load_clip(source)


def test_hub_model_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="neither a folder nor in the local cache"):
        load_clip("clip:nobody/no-such-judge")


def test_a_commit_of_the_hub_is_taken_and_kept_with_the_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = "a" * 40, "b" * 40
    home = tmp_path / "models--somebody--judge"
    shutil.copytree(judges.judge_folder("embedded"), home / "snapshots" / first)
    shutil.copytree(judges.judge_folder("embedded-b"), home / "snapshots" / second)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(second)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for source, commit in (("clip:somebody/judge", second), (f"clip:somebody/judge@{first}", first), ("clip:somebody/judge@main", second)):
        found = judges.load_judge(source)
        assert found.version.endswith(f", revision {commit}") and found.name == source
        assert found.digest == judges.load_judge("embedded" if commit == first else "embedded-b").digest
    with pytest.raises(FileNotFoundError, match=f"judge 'clip:somebody/judge@{'c' * 40}' is neither a folder nor in the local cache"):
        judges.load_judge(f"clip:somebody/judge@{'c' * 40}")


def test_folder_with_another_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no readable config.json"):
        load_clip(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match=r"'bert' model, not a CLIP model"):
        load_clip(str(tmp_path))


def test_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((judges.judge_folder("embedded") / "config.json").read_text())
    with pytest.raises(ValueError, match="no weights"):
        ClipJudge.load(str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin.*CLIPModel\.from_pretrained"):
        load_clip(str(tmp_path))
    hub = tmp_path / "models--somebody--clip" / "snapshots" / "abc"
    hub.mkdir(parents=True)
    (hub / "config.json").write_text((tmp_path / "config.json").read_text())
    with pytest.raises(ValueError, match=r"CLIPModel\.from_pretrained\('somebody/clip'\).*AutoProcessor.*\.save_pretrained\('clip'\)"):
        ClipJudge.load(str(hub))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_clip(str(tmp_path))


def test_a_folder_without_tokenizer_or_image_processor_is_refused_before_anything_is_judged(tmp_path: Path) -> None:
    for lacking, what in (("preprocessor_config.json", "image processor"), ("tokenizer.json", "tokenizer")):
        folder = tmp_path / what
        shutil.copytree(judges.judge_folder("embedded"), folder)
        for name in {lacking, "vocab.json"}:
            (folder / name).unlink()
        with pytest.raises(ValueError, match=f"has no {what}"):
            ClipJudge.load(str(folder))
    transformers.CLIPModel.from_pretrained(judges.judge_folder("embedded")).save_pretrained(tmp_path / "converted")
    transformers.AutoProcessor.from_pretrained(judges.judge_folder("embedded")).save_pretrained(tmp_path / "converted")
    assert ClipJudge.load(str(tmp_path / "converted")).embed_texts(["a cook"]).shape[0] == 1


def test_vocabulary_leaves_out_a_person() -> None:
    world = {
        "occupations": [{"picture": "person"}, {"picture": "cook"}, {"picture": "cook"}, {"picture": "artist"}],
        "unsafe": {"violent_pictures": ["bomb"], "suggestive_pictures": ["bikini"], "safe_pictures": ["tulip"]},
    }
    assert Vocabulary.embedded(world) == Vocabulary(("artist", "cook"), ("bomb", "bikini"), ("tulip",))
