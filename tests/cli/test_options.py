"""``respodiff train --method`` and ``respodiff generate --method`` on a tiny pipeline, and a judge as a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from command import Done, last_json, respodiff
from method_tools import WOMAN, latents
from respodiff.data.run_folder import RunFolder
from respodiff.evaluation.judges import ClipJudge, classifier
from respodiff.methods.registry import NAMES, get_method, load
from respodiff.pipelines.registry import backbone

pytestmark = pytest.mark.slow

NOT_TRAINED = [name for name in NAMES if not get_method(name).trains]

SCORES = {"batch": 2, "steps": 3, "rollouts": 2, "rollout_batch": 2}
IMAGES = {"steps": 3, "subjects": "doctor,nurse"}
CASES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "sdisc": ("woman", SCORES, False),
    "slider": ("woman", SCORES, False),
    "esd-x": ("violence", SCORES, False),
    "esd-u": ("violence", SCORES, False),
    "fdf": ("woman", {**IMAGES, "batch": 2}, True),
    "bact": ("woman", {**IMAGES, "batch": 4, "rollouts": 4}, True),
    "uce": ("woman", {**IMAGES, "rounds": 1, "images": 2}, True),
    "respodiff": ("woman", SCORES, False),
    "respodiff-paper": ("woman", SCORES, False),
}


@pytest.fixture(autouse=True)
def tiny(tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for home in ("train", "generate", "models"):
        monkeypatch.setattr(f"respodiff.cli.{home}.open_model", lambda *_: tiny_pipe)


def refused(done: Done, *said: str) -> None:
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr
    assert all(word in done.stderr for word in said), done.stderr


def trained(name: str, out: Path, concept: str = "") -> dict[str, Any]:
    known, changes, judged = CASES[name]
    more = [part for k, v in changes.items() for part in ("--set", f"{k}={v}")]
    more += ["--iterations", "2"] if name != "uce" else []
    more += ["--judge", "embedded"] if judged else []
    return last_json(respodiff("train", "--method", name, "--concept", concept or known, "--out", str(out), *more, "--json"))


def drawn(out: Path, *arguments: str) -> list[Any]:
    last_json(respodiff("generate", "--prompt", "a doctor", "--images", "2", "--steps", "2", "--out", str(out), *arguments, "--json"))
    return RunFolder(out).records()


# --- every method from the shell ---


def test_an_attribute_is_one_adapter_of_a_method_that_learns_from_images(tmp_path: Path) -> None:
    given = [
        "--set",
        "steps=3",
        "--set",
        "subjects=doctor,nurse",
        "--set",
        "rounds=1",
        "--set",
        "images=2",
        "--judge",
        "embedded",
        "--json",
    ]
    command = ["train", "--method", "uce", "--attribute", "gender", "--out", str(tmp_path / "m"), *given]
    (made,) = last_json(respodiff(*command))["modules"]
    assert Path(made["file"]).name == "gender.safetensors" and load(made["file"]).header.kind == "attribute"
    assert last_json(respodiff(*command))["modules"] == [made], "the same command replaces it"
    assert drawn(tmp_path / "run", "--module", str(tmp_path / "m"))


@pytest.mark.parametrize("name", CASES)
def test_train_then_generate(name: str, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    found = trained(name, out)
    digest = found["modules"][0]["digest"]
    assert found["method"] == name and digest == load(out).digest and found["unet_forwards"] > 0
    assert {"modules", "iterations", "seconds", "peak_mib", "loss_first", "loss_last"} <= set(found)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.safetensors", "m.safetensors.run.toml"], "nothing else is left"
    flag = "--safety" if load(out).header.kind == "safety" else "--module"
    rows = drawn(tmp_path / "run", "--method", name, flag, str(out))
    assert {r.method for r in rows} == {name} and all(r.modules == [digest] for r in rows)
    assert all(bool(r.concepts) == (load(out).header.kind == "fairness") for r in rows)
    told = last_json(respodiff("inspect", str(out), "--model", "x", "--json"))
    assert told["digest"] == digest and told["method"] == name and told["warnings"] == []


@pytest.mark.parametrize("name", NOT_TRAINED)
def test_methods_without_training_from_a_concept_or_a_file(name: str, tmp_path: Path) -> None:
    safety = name.startswith(("sld", "neg"))
    concepts = ["violence"] if safety else ["woman", "man"]
    flags = [part for c in concepts for part in ("--concept", c)]
    rows = drawn(tmp_path / "a", "--method", name, *flags)
    files = []
    for c in concepts:
        path = tmp_path / f"{c}.safetensors"
        last_json(respodiff("train", "--method", name, "--concept", c, "--out", str(path), "--json"))
        files += ["--safety" if safety else "--module", str(path)]
    again = drawn(tmp_path / "b", "--method", name, *files) if name != "plain" else rows
    assert {r.method for r in rows} == {name} and [r.digest for r in rows] == [r.digest for r in again]
    assert [r.concepts for r in rows] == ([{}, {}] if safety else [r.concepts for r in again])
    assert sorted(r.concepts.get("gender", "") for r in rows) == (["", ""] if safety else ["man", "woman"])


def test_sld_without_a_concept_steers_away_from_the_whole_list(tmp_path: Path) -> None:
    done = respodiff(
        "generate", "--method", "sld-max", "--prompt", "a doctor", "--images", "1", "--steps", "2", "--out", str(tmp_path / "a")
    )
    assert done.returncode == 0 and "the safety text is longer than this model reads" in done.stderr
    rows = RunFolder(tmp_path / "a").records()
    last_json(respodiff("train", "--method", "sld-max", "--out", str(tmp_path / "s.safetensors"), "--json"))
    made = load(tmp_path / "s.safetensors")
    assert made.header.negative.startswith("hate, harassment") and rows[0].modules == [made.digest]


def test_settings_of_methods_without_training(tmp_path: Path) -> None:
    rows = drawn(tmp_path / "a", "--method", "prompt-switch", "--concept", "woman", "--set", "switch=1.0")
    plain = drawn(tmp_path / "b", "--method", "plain")
    assert [r.digest for r in rows] == [r.digest for r in plain] and rows[0].method == "prompt-switch" and plain[0].method == "plain"


def test_safety_of_another_method_on_top(tmp_path: Path) -> None:
    woman, away = tmp_path / "w.safetensors", tmp_path / "v.safetensors"
    trained("slider", woman)
    last_json(respodiff("train", "--method", "negative", "--concept", "violence", "--out", str(away), "--json"))
    rows = drawn(tmp_path / "run", "--method", "slider", "--module", str(woman), "--safety", str(away))
    assert {r.method for r in rows} == {"slider+negative"}


def test_a_stopped_slider_resumes_to_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained("slider", tmp_path / "whole.safetensors")
    real, calls = torch.optim.AdamW.step, [0]

    def stopped(optimizer: Any) -> None:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        real(optimizer)

    out = tmp_path / "cut.safetensors"
    flags = ["--iterations", "2", *(part for k, v in SCORES.items() for part in ("--set", f"{k}={v}"))]
    command = ["train", "--method", "slider", "--concept", "woman", "--out", str(out), *flags, "--json"]
    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", stopped)
        assert "stopped" in respodiff(*command).stderr
    found = last_json(respodiff(*command, "--resume"))
    assert found["modules"] == [{**whole["modules"][0], "file": str(out)}] and found["unet_forwards"] == whole["unet_forwards"]


# --- refusals ---


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "magic", "--concept", "woman"], ["method is 'magic'; allowed: plain, prompt"]),
        (["--method", "esd-x", "--concept", "woman"], ["method 'esd-x' takes safety concepts"]),
        (["--method", "slider", "--concept", "woman", "--preset", "paper"], ["preset 'paper' is given beside method 'slider'"]),
        (["--method", "uce", "--concept", "woman"], ["needs a classifier of images", "--judge NAME"]),
        (["--method", "uce", "--concept", "woman", "--judge", "inception:x"], ["inception"]),
        (["--method", "prompt", "--concept", "woman", "--iterations", "3"], ["--iterations is given, which this method has not"]),
        (["--method", "slider", "--concept", "woman", "--set", "rank=two"], ["--set 'rank=two'", "is not int"]),
        (["--method", "slider", "--concept", "woman", "--set", "size=2"], ["setting 'size' is unknown", "rank"]),
        (["--method", "esd-x", "--concept", "violence", "--resume"], ["--resume is given, but method 'esd-x' keeps no state"]),
        (["--method", "prompt"], ["no concept given"]),
    ],
)
def test_training_refuses_in_one_line(arguments: list[str], said: list[str], tmp_path: Path) -> None:
    done = respodiff("train", *arguments, "--out", str(tmp_path / "m.safetensors"))
    if "inception:x" in arguments:
        assert done.returncode in (1, 2) and done.stderr.count("\n") == 1
    else:
        refused(done, *said)
    assert list(tmp_path.iterdir()) == []


def test_drawing_refuses_in_one_line(tmp_path: Path) -> None:
    woman = tmp_path / "w.safetensors"
    last_json(respodiff("train", "--method", "prompt", "--concept", "woman", "--out", str(woman), "--json"))
    for arguments, said in (
        (["--method", "magic"], "method is 'magic'; allowed: plain, prompt"),
        (["--method", "slider"], "--method slider needs --module FILE; make one with: respodiff train --method slider"),
        (["--method", "slider", "--module", str(woman)], "is of method 'prompt'; give --method prompt"),
        (["--method", "prompt"], "--method prompt needs a concept; name one with --concept NAME"),
        (["--concept", "woman"], "--concept is for methods that need no training"),
        (["--method", "uce", "--set", "sam_weight=2", "--module", str(woman)], "--set is for methods that need no training"),
        (["--method", "negative", "--concept", "woman"], "method 'negative' takes safety concepts"),
        (["--method", "prompt", "--concept", "nobody"], "concept 'nobody' is unknown"),
    ):
        refused(respodiff("generate", "--prompt", "x", "--out", str(tmp_path / "run"), *arguments), said)
    assert not (tmp_path / "run").exists()


# --- a judge as classifier ---


def test_the_classifier_is_the_judge() -> None:
    judge, rng = ClipJudge.load(), np.random.default_rng(0)
    side = judge.model.config.vision_config.image_size
    pixels = rng.integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    wanted = judge.logits([Image.fromarray(p) for p in pixels], ["a woman", "a man"])
    classify = classifier("embedded", WOMAN, "cpu")
    assert classify is not None and classifier("", WOMAN, "cpu") is None
    given = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255).requires_grad_()
    found = classify(given)
    assert np.abs(found.detach().numpy() - wanted).max() < 1e-2
    found[:, 0].sum().backward()
    assert given.grad is not None and given.grad.abs().max() > 0


def test_every_method_is_in_one_of_the_tests() -> None:
    assert set(CASES) | set(NOT_TRAINED) == set(NAMES)


def test_top_level_names(tiny_pipe: Any) -> None:
    import respodiff as library

    assert library.get_method is get_method and library.steer
    made = library.get_method("prompt").fit(tiny_pipe, WOMAN)
    assert latents(tiny_pipe, ["a doctor"], made).shape[2] == backbone(tiny_pipe).config.sample_size
