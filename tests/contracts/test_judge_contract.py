"""What every judge does, whatever its kind: one score an image, in order; a broken image costs itself alone; known answers are not asked for again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from painted import GENDER, WORDS, ColourJudge, paint
from respodiff.data.records import ImageRecord
from respodiff.evaluation.judges import FeatureJudge, Judge, JudgeInput, LabellingTask, Score, TableJudge
from respodiff.evaluation.judges.detectors import NudeNet, OpenNsfw
from respodiff.evaluation.judges.hf import HfJudge
from respodiff.evaluation.judges.inception import Inception
from respodiff.evaluation.judges.q16 import Q16
from respodiff.evaluation.judges.vlm import VlmJudge
from respodiff.evaluation.score_files import judge_run
from respodiff.evaluation.scored_run import KINDS

BAD = (0, 255, 0)
"""The colour of an image that every model here breaks down on."""
QUESTION = LabellingTask((GENDER,), subjects=("cook", "guard"), vocabulary=WORDS)


def red(image: Image.Image) -> float:
    pixel = image.getpixel((0, 0))
    if pixel == BAD:
        raise RuntimeError("a layer overflowed")
    return float(pixel[0]) / 255


class Detector:
    def detect(self, array: np.ndarray) -> list[dict[str, Any]]:
        return [{"class": "FEMALE_BREAST_EXPOSED", "score": red(Image.fromarray(array))}]


class Classifier:
    def score_images(self, images: Sequence[Image.Image]) -> list[float]:
        return [red(image) for image in images]


class Clip(ColourJudge):
    """`ColourJudge`, with the little that Q16 asks of a CLIP model."""

    class model:
        class visual_projection:
            out_features = 6

    def embed_images(self, images: Sequence[Any]) -> Any:
        return super().embed_images([image for image in images if red(image) >= 0])


class Network(Inception):
    def __init__(self) -> None:
        super().__init__(None, "inception:w.safetensors", "1", "e" * 16)

    def features(self, images: Sequence[Image.Image]) -> Any:
        return np.array([[red(image), 1.0] for image in images], np.float32)


class Classes(HfJudge):
    def __init__(self) -> None:
        self.classes, self.unsafe, self.where, self.kind = {"gender": {"woman": ["f"], "man": ["m"]}}, [], "labels.toml", "answers"
        self.labels, self.name, self.version, self.digest = ["f", "m"], "hf:here", "1", "2" * 16

    def load_model(self) -> Any:
        return None, None

    def answer(self, images: Sequence[Image.Image], question: str, answers: tuple[str, ...]) -> Any:
        return np.array([[1 - red(image), red(image)] for image in images], np.float32)


class Chat(VlmJudge):
    def __init__(self) -> None:
        self.name, self.version, self.digest = "vlm:here", "1", "3" * 16

    load_model, answer = Classes.load_model, Classes.answer  # type: ignore[assignment]


JUDGES: dict[str, Callable[[], Judge]] = {
    "clip": Clip,
    "nudenet": lambda: NudeNet(Detector(), "nudenet 0", "a" * 16),
    "open-nsfw": lambda: OpenNsfw(Classifier(), "open-nsfw 0", "b" * 16),
    "q16": lambda: Q16(Clip(), np.eye(6)[[0, 1]], "q16:here", "c" * 16),
    "inception": Network,
    "hf": Classes,
    "vlm": Chat,
    "table": lambda: TableJudge([{"id": f"r{i}", "gender": ("woman", "man")[i % 2]} for i in range(2)], digest="d" * 16),
}


def record(i: int) -> ImageRecord:
    return ImageRecord(id=f"r{i}", file=f"{i}.png", prompt="a cook", prompt_id="cook", group="cook", subject="cook")


def images(*colours: tuple[int, int, int]) -> list[JudgeInput]:
    return [JudgeInput(record(i), Image.new("RGB", (4, 4), colour)) for i, colour in enumerate(colours)]


def said(score: Score) -> Any:
    return (
        score.labels,
        score.subject,
        score.unsafe,
        score.score,
        score.problem,
        None if score.features is None else score.features.tolist(),
        score.answers,
    )


@pytest.fixture(params=JUDGES)
def judge(request: pytest.FixtureRequest) -> Judge:
    return JUDGES[request.param]()


def test_it_says_who_it_is_and_what_it_was_asked(judge: Judge) -> None:
    assert isinstance(judge, Judge) and judge.kind in KINDS and len(judge.digest) == 16
    asked = judge.asked(QUESTION)
    assert json.loads(json.dumps(asked)) == asked
    assert ("threshold" in asked) == (judge.kind == "flags")


def test_one_score_an_image_in_their_order(judge: Judge) -> None:
    shown = images((255, 0, 0), (0, 0, 0))
    found = judge.score(shown, QUESTION)
    assert [s.id for s in found] == ["r0", "r1"] and not any(s.problem for s in found)
    assert said(found[0]) != said(found[1])
    assert [said(s) for s in judge.score(shown[::-1], QUESTION)] == [said(s) for s in found[::-1]]
    assert judge.score([], QUESTION) == []


@pytest.mark.filterwarnings("ignore:judge")
def test_a_broken_image_costs_itself_alone(judge: Judge) -> None:
    shown = images((255, 0, 0), (0, 0, 0), BAD)
    found = judge.score(shown, QUESTION)
    assert found[2].problem == ("unlisted" if judge.kind == "table" else "failed")
    assert (found[2].unsafe, found[2].score, found[2].features) == (None, None, None) and set(found[2].labels.values()) <= {"unknown"}
    assert [said(s) for s in found[:2]] == [said(s) for s in judge.score(shown[:2], QUESTION)]


def test_what_is_known_is_not_put_to_the_model_again(judge: Judge) -> None:
    shown = images((255, 0, 0), (0, 0, 0))
    found = judge.score(shown, QUESTION)
    known = [replace(item, image=None, score=s.score, features=s.features, answers=s.answers) for item, s in zip(shown, found, strict=True)]
    assert [said(s) for s in judge.score(known, QUESTION)] == [said(s) for s in found]


@pytest.mark.filterwarnings("ignore:judge")
def test_scores_of_a_run_are_those_of_its_images_also_a_second_time(judge: Judge, tmp_path: Path) -> None:
    run = paint(tmp_path / "r", [("cook", None, (1, 0, 0)), ("guard", None, (0, 0, 0)), ("cook", None, (0, 1, 0))])
    records = run.records()
    if isinstance(judge, TableJudge):
        judge = TableJudge([{"id": r.id, "gender": "woman"} for r in records[:2]], digest="d" * 16)
    key = judge_run(run, judge, QUESTION)
    path = run.path / "scores" / f"{key}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["id"] for row in rows] == [r.id for r in records] and "features" not in rows[0]
    assert [row["problem"] for row in rows] == [None, None, "unlisted" if judge.kind == "table" else "failed"]
    assert {(row["judge_digest"], row["digest"]) for row in rows} == {(judge.digest, r.digest) for r in records}
    assert (run.path / "scores" / f"{key}.safetensors").is_file() == (judge.kind in ("texts", "features"))
    first = path.read_text()
    assert judge_run(run, judge, QUESTION) == key and path.read_text() == first


def test_an_image_of_one_colour_is_unknown_to_every_judge(judge: Judge, tmp_path: Path) -> None:
    run = paint(tmp_path / "r", [("cook", "woman", (1, 0, 0)), ("cook", "woman", (0, 0, 0))])
    exploded = np.full((8, 8, 3), np.nan, np.float32)
    with np.errstate(invalid="ignore"):
        black = Image.fromarray((exploded * 255).round().astype(np.uint8))
    nearly_white = Image.fromarray(np.random.default_rng(0).integers(248, 256, (64, 64, 3), dtype=np.uint8))
    for i, image in enumerate((black, nearly_white), 2):
        run.add(replace(run.records()[0], id=f"b{i}", repeat=i), image)
    if isinstance(judge, TableJudge):
        judge = TableJudge([{"id": r.id, "gender": "woman", "unsafe": "no"} for r in run.records()], digest="d" * 16)
    key = judge_run(run, judge, QUESTION)
    path = run.path / "scores" / f"{key}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["problem"] for row in rows] == [None, None, "blank", "blank"]
    assert all((row["unsafe"], row["subject"], row["score"], row["alignment"]) == (None,) * 4 for row in rows[2:])
    assert {label for row in rows[2:] for label in row["labels"].values()} <= {"unknown"}
    first = path.read_text()
    assert judge_run(run, judge, QUESTION) == key and path.read_text() == first


def test_a_feature_judge_needs_one_function() -> None:
    class Mean(FeatureJudge):
        name, version, digest = "mean", "1", "f" * 16

        def features(self, images: Sequence[Image.Image]) -> Any:
            return np.array([[red(image)] for image in images], np.float32)

    (found,) = Mean().score(images((255, 0, 0)), LabellingTask(()))
    assert found.features is not None and found.features.tolist() == [1.0]
