"""Image-classification models as judges, with a tiny ViT: black is "Female", red "Male", green "drawing"."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTModel

import tiny_judges
from command import last_json, respodiff
from painted import GENDER, coloured, paint
from respodiff.concepts.concept import Attribute, Concept, concept
from respodiff.data.records import ImageRecord
from respodiff.evaluation import judges
from respodiff.evaluation.judges import AnswerJudge, JudgeInput, LabellingTask, Score
from respodiff.evaluation.judges.hf import HfJudge, read_labels

UNSAFE_TOML = 'unsafe = ["nsfw"]\n'
BLACK, RED, GREEN = (coloured(colour, (16, 16)) for colour in ((0, 0, 0), (255, 0, 0), (0, 255, 0)))
AGE = Attribute("age", (Concept("young", "a young person"), Concept("old", "an old person")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_judges.classifier(tmp_path_factory.mktemp("model") / "fairface")


def label_file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def score(judge: Any, images: list[Image.Image], **task: Any) -> list[Score]:
    shown = [JudgeInput(ImageRecord(id=f"r{i}", file="", prompt="a cook", prompt_id="cook"), image) for i, image in enumerate(images)]
    found: list[Score] = judge.score(shown, LabellingTask(**({"attributes": (GENDER,)} | task)))
    return found


def test_labels_are_concepts_and_a_label_that_none_takes_is_unknown(folder: Path) -> None:
    judge = judges.load_judge(f"hf:{folder}")
    assert isinstance(judge, AnswerJudge) and (judge.kind, judge.name) == ("answers", f"hf:{folder}")
    found = score(judge, [BLACK, RED, GREEN, BLACK.resize((40, 20))])
    assert [s.labels["gender"] for s in found] == ["woman", "man", "unknown", "woman"]
    assert all((s.problem, s.unsafe, s.subject, s.alignment) == (None,) * 4 for s in found)
    model = ViTForImageClassification.from_pretrained(folder).eval().requires_grad_(False)
    pixels = torch.from_numpy(np.array(RED, np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    wanted = model(pixel_values=pixels).logits.softmax(1)[0]
    assert found[1].answers["label"] == pytest.approx({"Female": float(wanted[0]), "Male": float(wanted[1])}, abs=1e-5)
    assert score(judges.load_judge(f"hf:{folder}"), [BLACK, RED, GREEN, BLACK.resize((40, 20))]) == found, "the same bits in every run"


def test_a_small_lead_is_unknown(folder: Path) -> None:
    judge = judges.load_judge(f"hf:{folder}")
    (found,) = score(judge, [RED])
    said = found.answers["label"]
    lead = np.log(said["Male"] / max(said["Female"], 1 - said["Male"] - said["Female"]))
    assert score(judge, [RED], min_margin=0.9 * lead)[0].labels == {"gender": "man"}
    assert score(judge, [RED], min_margin=1.1 * lead)[0].labels == {"gender": "unknown"}


def test_several_labels_a_concept_and_several_attributes(folder: Path, tmp_path: Path) -> None:
    """The labels are of both: young woman, young man, old man, old woman."""
    text = '[gender]\nwoman = ["yw", "ow"]\nman = ["ym", "om"]\n[age]\nyoung = ["yw", "ym"]\nold = ["om", "ow"]\n'
    judge = judges.load_judge(f"hf:{tiny_judges.classifier(tmp_path / 'm', ('yw', 'ym', 'om', 'ow'), text)}")
    found = score(judge, [BLACK, RED, GREEN], attributes=(GENDER, AGE))
    assert [s.labels for s in found] == [{"gender": g, "age": a} for g, a in (("woman", "young"), ("man", "young"), ("man", "old"))]
    assert isinstance(judge, HfJudge)
    said = {"label": {"yw": 0.4, "ym": 0.3, "om": 0.3, "ow": 0.0}}
    assert judge.read(said, LabellingTask((GENDER,)), "").labels == {"gender": "man"}, "though a woman's label is the most probable one"
    other = score(judges.load_judge(f"hf:{folder}"), [BLACK], attributes=(GENDER, AGE))
    assert other[0].labels == {"gender": "woman"}, "what the file says nothing of is not asked"


def test_digest_covers_weights_preprocessing_and_labels(folder: Path, tmp_path: Path) -> None:
    first = judges.load_judge(f"hf:{folder}").digest
    assert (
        judges.load_judge(f"hf:{folder}@{label_file(tmp_path / 'same.toml', tiny_judges.GENDER_TOML + '# said elsewhere')}").digest == first
    )
    other = label_file(tmp_path / "other.toml", '[gender]\nwoman = ["Female", "drawing"]\nman = ["Male"]\n')
    assert judges.load_judge(f"hf:{folder}@{other}").digest != first
    moved = tiny_judges.classifier(tmp_path / "moved")
    assert judges.load_judge(f"hf:{moved}").digest == first
    look = json.loads((moved / "preprocessor_config.json").read_text())
    (moved / "preprocessor_config.json").write_text(json.dumps(look | {"image_mean": [0.4, 0.4, 0.4]}))
    assert judges.load_judge(f"hf:{moved}").digest != first


def test_refused_labels(folder: Path, tmp_path: Path) -> None:
    for text, said in (
        ('[gender]\nwoman = ["woman"]\nman = ["Male"]\n', "gender has the label 'woman'; the model has: Female, Male, drawing"),
        ('unsafe = ["nude"]\n', "unsafe has the label 'nude'; the model has: Female, Male, drawing"),
        ('[gender]\nwoman = ["Male"]\nman = ["Male"]\n', "label 'Male' twice"),
        ('[gender]\nwoman = "Female"\nman = ["Male"]\n', r"gender is .*; write unsafe = \["),
        ("[gender]\nwoman = []\nman = ['Male']\n", "gender is "),
        ("gender = ['Male']\n", "gender is "),
        ("unsafe = [1]\n", "unsafe is "),
        ("", "is empty"),
        ("[gender", "cannot be read as TOML"),
    ):
        with pytest.raises(ValueError, match=said):
            judges.load_judge(f"hf:{folder}@{label_file(tmp_path / 'l.toml', text)}")
    refused = respodiff(
        "calibrate", "none.csv", "--judge", f"hf:{folder}@{label_file(tmp_path / 'l.toml', UNSAFE_TOML)}", "--out", "c.json"
    )
    assert refused.returncode == 2 and "label 'nsfw'" in refused.stderr and "Traceback" not in refused.stderr
    with pytest.raises(FileNotFoundError, match=r"absent\.toml"):
        judges.load_judge(f"hf:{folder}@{tmp_path}/absent.toml")
    with pytest.raises(FileNotFoundError, match=r"/no/such/model"):
        judges.load_judge(f"hf:/no/such/model@{tmp_path}/l.toml")
    for source in ("hf", "hf:"):
        with pytest.raises(ValueError, match="judge is 'hf"):
            judges.load_judge(source)


def test_a_task_that_the_labels_are_not_made_for(folder: Path) -> None:
    judge = judges.load_judge(f"hf:{folder}")
    with pytest.raises(ValueError, match="is about gender, and age is asked for"):
        score(judge, [BLACK], attributes=(AGE,))
    three = Attribute("gender", (*GENDER.concepts, Concept("nonbinary", "a nonbinary person")))
    with pytest.raises(ValueError, match=r"\[gender\] has woman, man, the attribute woman, man, nonbinary"):
        score(judge, [BLACK], attributes=(three,))


def test_refused_models(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multi_label_classification"):
        judges.load_judge(f"hf:{tiny_judges.classifier(tmp_path / 'many', problem_type='multi_label_classification')}")
    headless = tmp_path / "headless"
    ViTModel(ViTConfig(**tiny_judges.VISION), add_pooling_layer=False).save_pretrained(headless)
    for name in ("config.json", "preprocessor_config.json", "labels.toml"):
        (headless / name).write_bytes((folder / name).read_bytes())
    judge = judges.load_judge(f"hf:{headless}")
    with pytest.raises(ValueError, match=r"its weights lack classifier\.\w+, which ViTForImageClassification has"):
        score(judge, [BLACK, RED])
    (headless / "model.safetensors").rename(headless / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"pickle \(pytorch_model\.bin\), which is never read.*AutoModelForImageClassification\.from_pretrained"
    ):
        judges.load_judge(f"hf:{headless}")


def test_unsafe_labels_alone_make_a_judge_that_flags(tmp_path: Path) -> None:
    source = f"hf:{tiny_judges.classifier(tmp_path / 'nsfw', ('normal', 'nsfw'), UNSAFE_TOML)}"
    found = score(judges.load_judge(source), [BLACK, RED], attributes=())
    assert [s.unsafe for s in found] == [False, True] and found[1].score == pytest.approx(1, abs=0.01) and found[1].labels == {}
    paint(tmp_path / "run", [("cook", "woman", (0, 0, 0)), ("cook", "man", (1, 0, 0)), ("guard", None, (1, 0, 0))])
    run, clip = str(tmp_path / "run"), judges.judge_folder("embedded")
    summed = last_json(respodiff("evaluate", run, "--judge", source, "--judge", str(clip), "--json"))
    assert summed["unsafe"]["mean"] == pytest.approx(2 / 3) and summed["unsafe_rule"] == "flagged by hf:nsfw"
    assert summed["judge"]["name"] == "judge", "labels come from the other one"
    assert next(j["rule"] for j in summed["judges"] if j["name"] == "hf:nsfw") == "probability of nsfw of 0.5 or more"
    refused = respodiff("calibrate", "none.csv", "--judge", source, "--out", str(tmp_path / "c.json"))
    assert refused.returncode == 2 and "allowed: judges that label what they see" in refused.stderr


def test_unsafe_labels_beside_an_attribute(folder: Path, tmp_path: Path) -> None:
    file = label_file(tmp_path / "l.toml", UNSAFE_TOML.replace("nsfw", "drawing") + tiny_judges.GENDER_TOML)
    found = score(judges.load_judge(f"hf:{folder}@{file}"), [BLACK, GREEN])
    assert [(s.labels["gender"], s.unsafe) for s in found] == [("woman", False), ("unknown", True)]


def test_evaluate_and_calibrate(folder: Path, tmp_path: Path) -> None:
    source = f"hf:{folder}@{label_file(tmp_path / 'gender.toml', tiny_judges.GENDER_TOML)}"
    paint(
        tmp_path / "run",
        [("cook", "woman", (0, 0, 0)), ("cook", "man", (1, 0, 0)), ("guard", "man", (0, 1, 0)), ("guard", None, (1, 0, 0))],
    )
    for name, colour in (("a", BLACK), ("b", RED), ("c", GREEN), ("d", RED)):
        colour.save(tmp_path / f"{name}.png")
    (tmp_path / "labels.csv").write_text("file,gender\na.png,woman\nb.png,woman\nc.png,man\nd.png,man\n")
    made = last_json(respodiff("calibrate", str(tmp_path / "labels.csv"), "--judge", source, "--out", str(tmp_path / "c.json"), "--json"))
    assert made["accuracy"] == {"gender": 0.5}
    (entry,) = json.loads((tmp_path / "c.json").read_text()).values()
    assert entry["gender"]["matrix"] == [[1, 1, 0], [0, 1, 1]]
    asked = ("evaluate", str(tmp_path / "run"), "--judge", source, "--confusion", str(tmp_path / "c.json"), "--json")
    found = last_json(respodiff(*asked))
    assert (found["n"], found["counts"]["gender"]) == (
        4,
        {"cook": {"woman": 1, "man": 1, "unknown": 0}, "guard": {"woman": 0, "man": 1, "unknown": 1}},
    )
    assert found["judge"]["name"] == "hf:fairface@gender.toml" and found["concept_accuracy"]["gender"]["mean"] == pytest.approx(2 / 3)
    assert "gender" in found["corrected"] and found["subject_accuracy"] is None and found["alignment"] is None
    assert last_json(respodiff(*asked)) == found


def test_columns_are_in_the_order_of_the_alternatives_and_not_of_the_file(tmp_path: Path) -> None:
    text = '[tone]\nlight = ["yw"]\ndark = ["ym"]\nmedium = ["om"]\n'
    judge = judges.load_judge(f"hf:{tiny_judges.classifier(tmp_path / 'm', ('yw', 'ym', 'om', 'ow'), text)}")
    assert isinstance(judge, HfJudge)
    assert judge._opposites(concept("light")) == ["medium", "dark"]
    own = Concept("light", "a light one", opposites=("a dark one", "a medium one"), attribute="tone")
    with pytest.raises(ValueError, match="is not known; allowed: attributes of two concepts"):
        judge.classifier(own)


def test_it_teaches_methods_that_learn_from_images(folder: Path) -> None:
    woman, man = (Concept(c.name, c.target, opposites=("other",), attribute="gender") for c in GENDER.concepts)
    images = torch.stack([torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1) / 255 for image in (BLACK, RED)]).requires_grad_()
    found = [judges.classifier(f"hf:{folder}", concept, "cpu") for concept in (woman, man)]
    logits = [classify(images) for classify in found if classify]
    assert logits[0].argmax(1).tolist() == [0, 1] and torch.equal(logits[1], logits[0].flip(1))
    logits[0][:, 0].sum().backward()
    assert images.grad is not None and images.grad.abs().max() > 0
    with pytest.raises(ValueError, match=r"no labels for age/young and its alternatives; it has: gender/woman, gender/man"):
        judges.classifier(f"hf:{folder}", Concept("young", "a young person", opposites=("other",), attribute="age"), "cpu")


def test_the_examples_of_the_documentation_can_be_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text()
    blocks = [part.split("```")[0] for part in page.split("```toml\n")[1:]]
    found = [read_labels(label_file(tmp_path / "l.toml", block)) for block in blocks]
    assert {name for classes, _ in found for name in classes} >= {"gender", "race"} and [unsafe for _, unsafe in found if unsafe]
