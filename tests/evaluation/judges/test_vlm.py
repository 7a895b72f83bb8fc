"""A chat model that sees as a judge, with a tiny random LLaVA."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_judges
from command import last_json, respodiff
from painted import GENDER, coloured, paint
from respodiff.concepts.concept import attribute
from respodiff.data.records import ImageRecord
from respodiff.evaluation import judges
from respodiff.evaluation.judges import AnswerJudge, JudgeInput, LabellingTask, Score
from respodiff.evaluation.judges.vlm import VlmJudge, question_of

IMAGES = [coloured(colour, size) for colour, size in (((0, 0, 0), (16, 16)), ((255, 0, 0), (20, 40)), ((0, 255, 255), (40, 20)))]
TONE = attribute("tone")
QUESTION, ANSWERS = question_of(TONE, LabellingTask(()), "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_judges.vlm(tmp_path_factory.mktemp("model") / "chat")


@pytest.fixture(scope="module")
def judge(folder: Path) -> VlmJudge:
    found = judges.load_judge(f"vlm:{folder}")
    assert isinstance(found, VlmJudge) and isinstance(found, AnswerJudge) and found.kind == "answers"
    return found


def score(judge: VlmJudge, images: list, **task: object) -> list[Score]:
    shown = [JudgeInput(ImageRecord(id=f"r{i}", file="", prompt="a cook", prompt_id="c", group="cook"), x) for i, x in enumerate(images)]
    return judge.score(shown, LabellingTask(**({"attributes": (GENDER, TONE)} | task)))  # type: ignore[arg-type]


def test_an_answer_scores_the_mean_log_probability_of_its_own_tokens(judge: VlmJudge) -> None:
    """One text at a time, without a cut of the logits or anything filled up."""
    model, processor = judge.load_model()
    answers = ("a woman", "a man with dark skin", "a man")
    question, start = f"<image>{QUESTION}", None
    for image, found in zip(IMAGES, judge.answer(IMAGES, QUESTION, answers), strict=True):
        for answer, said in zip(answers, found, strict=True):
            inputs = processor(text=f"user : {question} </s> assistant : {answer} </s> ", images=[image], return_tensors="pt")
            tokens = inputs["input_ids"][0]
            start = len(tokens) - 1 - len(answer.split()[1:])  # all begin with "a"; the end of the turn counts
            with torch.inference_mode():
                logits = model(**inputs).logits[0].log_softmax(-1)
            wanted = logits[torch.arange(start - 1, len(tokens) - 1), tokens[start:]].mean()
            assert said == pytest.approx(float(wanted), abs=1e-4)


def test_labels_are_the_most_likely_answers_whatever_else_is_judged(judge: VlmJudge, folder: Path) -> None:
    found = score(judge, IMAGES)
    asked = judge.answer(IMAGES, QUESTION, ANSWERS)
    assert [s.labels["tone"] for s in found] == [TONE.names[i] for i in asked.argmax(1)] and not any(s.problem for s in found)
    assert list(found[0].answers) == [question_of(a, LabellingTask(()), "")[0] for a in (GENDER, TONE)]
    assert list(found[0].answers[QUESTION].values()) == asked[0].tolist() and len({tuple(row) for row in asked.tolist()}) == len(IMAGES)
    assert score(judge, IMAGES[1:])[0].answers == found[1].answers
    assert score(VlmJudge.load(f"vlm:{folder}"), IMAGES) == found, "the same bits in every run"


def test_a_small_lead_is_unknown(judge: VlmJudge) -> None:
    (found,) = score(judge, IMAGES[:1], attributes=(GENDER,))
    ((said),) = found.answers.values()
    lead = abs(said["a woman"] - said["a man"])
    assert score(judge, IMAGES[:1], min_margin=0.99 * lead)[0].labels["gender"] == found.labels["gender"]
    assert score(judge, IMAGES[:1], min_margin=1.01 * lead)[0].labels["gender"] == "unknown"


def test_the_class_template_words_the_answers() -> None:
    question, answers = question_of(GENDER, LabellingTask((), class_template="{name} {group}"), "cook")
    assert answers == ("woman cook", "man cook") and '"woman cook" or "man cook"' in question
    assert '"a person with light skin", "a person with medium skin" or "a person with dark skin"?' in QUESTION


def test_digest_covers_weights_and_the_chat_template(judge: VlmJudge, tmp_path: Path) -> None:
    other = tiny_judges.vlm(tmp_path / "other")
    assert VlmJudge.load(f"vlm:{other}").digest == judge.digest
    (other / "chat_template.jinja").write_text(tiny_judges.TEMPLATE + " ")
    assert VlmJudge.load(f"vlm:{other}").digest != judge.digest


def test_models_that_cannot_be_asked(tmp_path: Path) -> None:
    silent = tiny_judges.vlm(tmp_path / "silent")
    (silent / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        score(VlmJudge.load(f"vlm:{silent}"), IMAGES)
    with pytest.raises(ValueError, match=r"cannot be loaded .* an image-text-to-text model"):
        score(VlmJudge.load(f"vlm:{tiny_judges.classifier(tmp_path / 'vit')}"), IMAGES)
    (silent / "model.safetensors").rename(silent / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin.*AutoModelForImageTextToText\.from_pretrained"):
        judges.load_judge(f"vlm:{silent}")
    with pytest.raises(ValueError, match="which no method can learn from"):
        judges.classifier(f"vlm:{tiny_judges.vlm(tmp_path / 'chat')}", GENDER.concepts[0], "cpu")


def test_evaluate_and_calibrate(judge: VlmJudge, tmp_path: Path) -> None:
    seen = [s.labels["gender"] for s in score(judge, [coloured((0, 0, 0)), coloured((255, 0, 0))], attributes=(GENDER,))]
    paint(tmp_path / "run", [("cook", "woman", (0, 0, 0)), ("guard", "man", (1, 0, 0))])
    for i, red in enumerate((0, 255)):
        coloured((red, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "labels.csv").write_text("file,gender\n0.png,woman\n1.png,man\n")
    made = last_json(
        respodiff("calibrate", str(tmp_path / "labels.csv"), "--judge", judge.name, "--out", str(tmp_path / "c.json"), "--json")
    )
    assert made["accuracy"]["gender"] == np.mean([seen[0] == "woman", seen[1] == "man"])
    assert list(json.loads((tmp_path / "c.json").read_text())) == [judge.digest]
    found = last_json(respodiff("evaluate", str(tmp_path / "run"), "--judge", judge.name, "--json"))
    assert found["concept_accuracy"]["gender"]["mean"] == made["accuracy"]["gender"] and found["n"] == 2
    assert (found["judge"]["name"], found["judge"]["class_template"], found["subject_accuracy"]) == ("vlm:chat", "{concept}", None)
    both = last_json(respodiff("evaluate", str(tmp_path / "run"), "--judge", judge.name, "--judge", "embedded", "--json"))
    assert both["agreement"][0]["judges"] == ["vlm:chat", "embedded"]
