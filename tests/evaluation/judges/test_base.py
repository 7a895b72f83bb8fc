"""Judges that answer questions: an answer is kept, and asked for once; a question that fails costs its image alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from painted import GENDER, coloured, paint
from respodiff.concepts.concept import Attribute, Concept
from respodiff.data.shards import Shard
from respodiff.evaluation.evaluate import evaluate, judge_all, judge_shard
from respodiff.evaluation.judges import AnswerJudge, LabellingTask, Score
from respodiff.evaluation.score_files import Held, ScoreFiles, key_of, short_name
from respodiff.evaluation.scored_run import load_scored_run

HAT = Attribute("hat", (Concept("hat", "a person with a hat"), Concept("bare", "a person without a hat")))
ROWS = [("cook", "woman", (0, 0, 0)), ("cook", "man", (1, 0, 0)), ("guard", None, (1, 1, 0))]


class Questions(AnswerJudge):
    """Red is the second answer to every question; on green it breaks down if it is asked for a hat."""

    name, digest, version = "questions", "e" * 16, "1"

    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []

    def load_model(self) -> Any:
        return None

    def asked(self, task: LabellingTask) -> dict[str, Any]:
        return {"min_margin": task.min_margin}

    def questions(self, task: LabellingTask, group: str) -> dict[str, tuple[str, ...]]:
        return {f"{a.name}?": a.names for a in task.attributes}

    def answer(self, images: Sequence[Image.Image], question: str, answers: tuple[str, ...]) -> Any:
        pixels = [image.getpixel((0, 0)) for image in images]
        if question == "hat?" and any(pixel[1] for pixel in pixels):
            raise RuntimeError("a layer overflowed")
        self.heard.append((question, len(images)))
        return [np.array([1 - pixel[0] / 255, pixel[0] / 255], np.float32) for pixel in pixels]

    def read(self, answers: Mapping[str, Mapping[str, float]], task: LabellingTask, group: str) -> Score:
        return Score("", {a.name: max(a.names, key=answers[f"{a.name}?"].__getitem__) for a in task.attributes})


def test_a_question_is_asked_once_and_its_answer_kept(tmp_path: Path) -> None:
    run, judge = paint(tmp_path / "r", ROWS[:2]), Questions()
    found = judge_all(run, judge, GENDER)
    assert found.labels("gender") == ["woman", "man"] and judge.heard == [("gender?", 2)]
    assert found.scores[1].answers == {"gender?": {"woman": 0.0, "man": 1.0}}
    both = judge_all(run, judge, [HAT])
    assert both.labels("gender") == ["woman", "man"] and both.labels("hat") == ["hat", "bare"]
    assert judge.heard == [("gender?", 2), ("hat?", 2)], "the answers of the first question were kept"
    judge_all(run, judge, [GENDER, HAT])
    run.add(replace(run.records()[0], id="more", repeat=9), coloured((0, 0, 255)))
    judge_all(run, judge, [GENDER])
    assert judge.heard[2:] == [("gender?", 1), ("hat?", 1)], "the new image alone"


@pytest.mark.filterwarnings("ignore:judge")
def test_a_question_that_fails_costs_its_image_alone(tmp_path: Path) -> None:
    run, judge = paint(tmp_path / "r", ROWS), Questions()
    found = judge_all(run, judge, [GENDER, HAT])
    assert [s.problem for s in found.scores] == [None, None, "failed"] and found.labels("gender") == ["woman", "man", "unknown"]
    assert judge_all(run, judge, GENDER).labels("gender") == ["woman", "man", "unknown"], "the hat is asked for again, and fails again"


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    run, judge = paint(tmp_path / "r", ROWS[:2]), Questions()
    files = ScoreFiles(run, key_of(judge.name, judge.digest))
    digests = [record.digest for record in run.records()]
    files.note([Held(digests[0], answers={"gender?": {"woman": 0.0, "man": 1.0}}), Held("other", 0.0)])
    with (files.base / f"{files.key}.progress").open("a") as progress:
        progress.write(json.dumps({"digest": digests[1], "answers": {"gender?": 5}}) + '\n{"digest": "cut')
    assert files.held() == {digests[0]: Held(digests[0], answers={"gender?": {"woman": 0.0, "man": 1.0}}), "other": Held("other", 0.0)}
    assert judge_all(run, judge, GENDER).labels("gender") == ["man", "man"] and judge.heard == [("gender?", 1)]


def test_shards_ask_and_the_sum_asks_nothing(tmp_path: Path) -> None:
    one = evaluate(paint(tmp_path / "one" / "r", ROWS), Questions(), GENDER)
    run, judge = paint(tmp_path / "two" / "r", ROWS), Questions()
    for i in range(2):
        judge_shard(run, judge, [GENDER], Shard(i, 2))
    assert judge.heard == [("gender?", 2), ("gender?", 1)]
    assert evaluate(run, judge, GENDER) == one and one.n == 3 and len(judge.heard) == 2


def test_names_without_the_way_to_folders(tmp_path: Path) -> None:
    assert short_name("hf:models/fairface@maps/gender.toml") == "hf:fairface@gender.toml"
    assert short_name("hf:somebody/fairface@main@gender.toml") == "hf:fairface@main@gender.toml"
    assert short_name("vlm:models/chat") == "vlm:chat" and short_name("clip:models/ViT-B-32") == "clip:ViT-B-32"
    run, judge = paint(tmp_path / "r", ROWS[:1]), Questions()
    judge.name = "hf:models/fairface@maps/gender.toml"
    judge_all(run, judge, GENDER)
    assert load_scored_run(run, judge=judge.name).header.judge == "hf:fairface@gender.toml"
