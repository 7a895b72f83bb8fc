"""The command line through its own entry point: JSON keys, exit codes, one clear line for bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command import Done, last_json, respodiff
from respodiff.training import respodiff as training

pytestmark = pytest.mark.slow

CHECKPOINT = "respodiff.cli.train"

FAST = [
    "--iterations",
    "2",
    "--set",
    "rollouts=2",
    "--set",
    "rollout_batch=2",
    "--set",
    "steps=4",
    "--set",
    "batch=2",
    "--set",
    "refresh_every=2",
]


def refused(done: Done, code: int, *words: str) -> None:
    lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("model ")]
    assert done.returncode == code, done.stderr
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    for word in words:
        assert word in lines[0]


@pytest.fixture
def tiny(tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training on random weights: what is asked of the command line is the same, in a tenth of the time."""
    monkeypatch.setattr("respodiff.cli.train.open_model", lambda *_: tiny_pipe)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """woman and man after two iterations: enough for the plumbing."""
    folder = tmp_path_factory.mktemp("modules")
    for name in ("woman", "man"):
        result = last_json(respodiff("train", "--concept", name, "--out", str(folder / f"{name}.safetensors"), "--json", *FAST))
        assert set(result) >= {"modules", "iterations", "seconds", "unet_forwards", "peak_mib", "loss_first", "loss_last"}
        assert set(result["modules"][0]) >= {"file", "concept", "digest", "relative_norm", "projection"}
        assert result["iterations"] == 2 and result["unet_forwards"] > 0 and result["peak_mib"] > 100
    assert not list(folder.glob(".*")), "a finished training leaves nothing beside its module"
    return folder


def test_train_generate_evaluate_chain(trained: Path, tmp_path: Path) -> None:
    modules = [a for name in ("woman", "man") for a in ("--module", str(trained / f"{name}.safetensors"))]
    command = ["generate", "--prompt", "a doctor", "--prompt", "a nurse", "--images", "2", "--steps", "2", "--assign-at", "0", *modules]
    command += ["--policy", "exact", "--out", str(tmp_path / "a"), "--json"]
    first = last_json(respodiff(*command))
    assert set(first) >= {"run", "images", "skipped", "seconds", "images_per_second", "unet_forwards"}
    assert (first["images"], first["skipped"], first["unet_forwards"]) == (4, 0, 4 * 2 * 2)
    again = last_json(respodiff(*command))
    assert (again["images"], again["skipped"], again["unet_forwards"]) == (0, 4, 0)

    result = last_json(respodiff("evaluate", str(tmp_path / "a"), "--attribute", "gender", "--attribute", "tone", "--json"))
    assert set(result) >= {"n", "devrat", "concept_accuracy", "subject_accuracy", "alignment", "unsafe", "judge"}
    assert result["n"] == 4 and set(result["devrat"]) == {"gender", "tone"}
    assert set(result["devrat"]["gender"]) >= {"mean", "low", "high", "random"}
    assert set(result["judge"]) >= {"name", "digest"}
    asked = [json.loads(line)["concepts"]["gender"] for line in (tmp_path / "a" / "manifest.jsonl").read_text().splitlines()]
    assert sorted(asked[:2]) == sorted(asked[2:]) == ["man", "woman"]

    refused(respodiff(*command[:-1], "--seed", "1"), 2, "seed", "made with")
    words = respodiff("evaluate", str(tmp_path / "a"))
    assert "DevRat gender" in words.stdout and "never facts about people" in words.stdout


def test_installed_command_and_module_are_the_same_program(trained: Path) -> None:
    file = str(trained / "woman.safetensors")
    for command in ([str(Path(sys.executable).parent / "respodiff")], [sys.executable, "-m", "respodiff"]):
        good = subprocess.run([*command, "inspect", file, "--json"], capture_output=True, text=True, check=True)
        assert json.loads(good.stdout)["concept"] == "woman"
        bad = subprocess.run([*command, "inspect", file + "x"], capture_output=True, text=True, check=False)
        assert bad.returncode == 1 and bad.stdout == "" and bad.stderr.count("\n") == 1


def test_inspect_names_everything(trained: Path) -> None:
    result = last_json(respodiff("inspect", str(trained / "woman.safetensors"), "--model", "embedded", "--json"))
    keys = {
        "concept",
        "target",
        "neutral",
        "base_model",
        "site",
        "form",
        "shape",
        "norm_ram",
        "norm_sam",
        "relative_norm",
        "digest",
        "warnings",
    }
    assert set(result) >= keys
    assert (result["concept"], result["target"], result["neutral"]) == ("woman", "a woman", "a person")
    assert (result["base_model"], result["shape"], result["warnings"]) == ("embedded", [256, 4, 4], [])


@pytest.mark.usefixtures("tiny")
def test_own_concept_from_flags_and_from_a_file(tmp_path: Path) -> None:
    out = tmp_path / "hat.safetensors"
    last_json(
        respodiff(
            "train", "--target", "a person with dark skin", "--neutral", "a person", "--name", "mine", "--out", str(out), "--json", *FAST
        )
    )
    assert last_json(respodiff("inspect", str(out), "--json"))["concept"] == "mine"
    file = tmp_path / "own.toml"
    file.write_text('[style]\nconcepts = { flat = "a person, flat style", glossy = "a person, glossy style" }\n')
    out = tmp_path / "flat.safetensors"
    last_json(respodiff("train", "--concepts", str(file), "--concept", "flat", "--out", str(out), "--json", *FAST))
    found = last_json(respodiff("inspect", str(out), "--json"))
    assert (found["attribute"], found["target"]) == ("style", "a person, flat style")


@pytest.mark.usefixtures("tiny")
def test_resume_refuses_another_concept_and_needs_no_earlier_run(tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    begun = respodiff("train", "--concept", "man", "--out", str(out), "--resume", "--json", *FAST)
    last_json(begun)
    assert [line for line in begun.stderr.splitlines() if "warning" in line and "--resume" in line and ".m.safetensors.unfinished" in line]
    (tmp_path / ".m.safetensors.unfinished").write_bytes(b"nothing of ours")
    refused(respodiff("train", "--concept", "man", "--out", str(out), "--resume", *FAST), 2, "--resume", "cannot be read")


@pytest.mark.usefixtures("tiny")
def test_killed_training_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    settings = [*FAST, "--iterations", "5", "--set", "sam_lr=0.05", "--json"]
    expected = last_json(respodiff("train", "--concept", "woman", "--out", str(whole), *settings))
    monkeypatch.setattr(f"{CHECKPOINT}.SAVE_EVERY", 0.0)
    real, calls = training.share_step, []

    def dies(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("power cut")
        real(*args)

    monkeypatch.setattr(training, "share_step", dies)
    refused(respodiff("train", "--concept", "woman", "--out", str(cut), *settings), 1, "power cut")
    assert not cut.exists()
    monkeypatch.setattr(training, "share_step", real)
    refused(respodiff("train", "--concept", "man", "--out", str(cut), "--resume", *settings), 2, "--resume", "another concept")
    found = last_json(respodiff("train", "--concept", "woman", "--out", str(cut), "--resume", *settings))
    digests = [result["modules"][0]["digest"] for result in (found, expected)]
    assert digests[0] == digests[1] and found["unet_forwards"] == expected["unet_forwards"]
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == ["cut.safetensors", "whole.safetensors"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["train", "--concept", "wman", "--out", "x"], 2, ["'wman'", "known: woman, man"]),
        (["train", "--out", "x"], 2, ["--concept NAME", "--target TEXT"]),
        (["train", "--concept", "woman"], 2, ["--out"]),
        (["train", "--concept", "woman", "--target", "a man", "--out", "x"], 2, ["--target", "beside --concept"]),
        (["train", "--concept", "woman", "--iterations", "0", "--out", "x"], 2, ["--iterations", "'0'", "from 1 to 1,000,000"]),
        (["train", "--concept", "woman", "--preset", "best", "--out", "x"], 2, ["preset is 'best'", "default, paper, official"]),
        (["train", "--concept", "woman", "--set", "ram_lr=fast", "--out", "x"], 2, ["ram_lr=fast", "not float"]),
        (["train", "--concept", "woman", "--set", "speed=1", "--out", "x"], 2, ["'speed' is unknown"]),
        (["train", "--concept", "woman", "--out", "file/x.safetensors"], 1, ["cannot be written"]),
        (["generate", "--prompt", "a doctor", "--out", "file/run"], 1, ["file/run"]),
        (["generate", "--out", "r"], 2, ["no prompts", "--suite NAME"]),
        (["generate", "--suite", "all", "--out", "r"], 2, ["'all'", "occupations"]),
        (["generate", "--prompts", "none.txt", "--out", "r"], 2, ["none.txt", "cannot be read"]),
        (["generate", "--prompt", "a doctor", "--images", "0", "--out", "r"], 2, ["--images", "'0'"]),
        (["generate", "--prompt", "a doctor", "--guidance", "nan", "--out", "r"], 2, ["--guidance", "'nan'"]),
        (["generate", "--prompt", "a doctor", "--policy", "fair", "--out", "r"], 2, ["policy is 'fair'", "none, exact, random"]),
        (["generate", "--prompt", "a doctor", "--target-proportions", "woman=1", "--out", "r"], 2, ["--target-proportions", "woman"]),
        (["generate", "--prompt", "a doctor", "--module", "none.safetensors", "--out", "r"], 1, ["none.safetensors", "does not exist"]),
        (["generate", "--prompt", "a doctor " * 40, "--out", "r"], 2, ["tokens", "takes 32"]),
        (["generate", "--prompt", "a doctor", "--model", "/no/such/folder", "--out", "r"], 2, ["/no/such/folder", "does not exist"]),
        (["generate", "--prompt", "a doctor", "--model", "nobody/nothing", "--out", "r"], 2, ["nobody/nothing", "cannot be loaded"]),
        (["generate", "--prompt", "a doctor", "--device", "cuda:7", "--out", "r"], 2, ["--device", "cuda:7"]),
        (["generate", "--prompt", "a doctor", "--dtype", "int8", "--out", "r"], 2, ["--dtype", "auto, bfloat16, float16, float32"]),
        (["generate", "--prompt", "a doctor", "--method", "magic", "--out", "r"], 2, ["method is 'magic'", "plain, prompt"]),
        (["generate", "--prompt", "a doctor", "--device", "meta", "--out", "r"], 2, ["--device", "'meta'"]),
        (["inspect", "file"], 2, ["'file'", "not a safetensors file"]),
        (["inspect", "."], 2, ["'.'", "is a folder"]),
        (["evaluate", "."], 2, ["not a run folder"]),
        (["evaluate", ".", "--attribute", "mood"], 2, ["'mood'", "gender"]),
        (["paint"], 2, ["paint"]),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(arguments: list[str], code: int, said: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    refused(respodiff(*arguments, cwd=tmp_path), code, *said)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"], "bad input left something behind"


def test_bare_command_shows_help_without_an_error() -> None:
    done = respodiff()
    assert "Start with: respodiff demo" in done.stdout + done.stderr and "error" not in done.stderr


@pytest.mark.usefixtures("tiny")
def test_brackets_in_prompts_are_printed_as_they_are(tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    last_json(
        respodiff("train", "--target", "a [smiling] person [/a]", "--attribute", "mood", "--name", "m", "--out", str(out), "--json", *FAST)
    )
    said = respodiff("inspect", str(out), "--device", "cpu", "--seed", "1").stdout
    assert "a [smiling] person [/a]" in said and "mood" in said


def test_run_with_no_image_left_is_said_not_raised(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "r"
    last_json(respodiff("generate", "--prompt", "a doctor", "--images", "1", "--steps", "1", "--out", str(run), "--json"))
    for file in (run / "images").iterdir():
        file.unlink()
    done = respodiff("evaluate", str(run))
    assert done.returncode == 0 and "1 not judged" in done.stdout and "nothing to judge" in done.stdout


@pytest.mark.parametrize("proportions", ["woman=0.5,man=0.6", "woman=-1,man=2", "woman=a,man=b"])
def test_shares_that_make_no_sense(proportions: str, trained: Path, tmp_path: Path) -> None:
    modules = [a for name in ("woman", "man") for a in ("--module", str(trained / f"{name}.safetensors"))]
    refused(
        respodiff("generate", "--prompt", "a doctor", *modules, "--target-proportions", proportions, "--out", str(tmp_path / "r")),
        2,
    )


VERBS = [
    "train",
    "inspect",
    "generate",
    "evaluate",
    "report",
    "compare",
    "reproduce",
    "audit",
    "convert",
    "fuse",
    "doctor",
    "sites",
    "calibrate",
    "import",
    "export",
    "push",
    "pull",
    "demo",
]


@pytest.mark.parametrize("verb", VERBS)
def test_help_teaches_with_an_example_and_has_the_common_flags(verb: str) -> None:
    done = respodiff(verb, "--help")
    assert done.returncode == 0 and f"Example: respodiff {verb}" in done.stdout
    assert all(flag in done.stdout for flag in ("--json", "--device", "--dtype", "--seed"))


def test_help_lists_every_verb() -> None:
    done = respodiff("--help")
    assert done.returncode == 0 and "Start with: respodiff demo" in done.stdout and all(verb in done.stdout for verb in VERBS)


def test_the_shell_completes_verbs() -> None:
    program = "import sys; from respodiff.cli.main import main; sys.argv = ['respodiff']; main()"
    asked = {**os.environ, "_RESPODIFF_COMPLETE": "complete_bash", "COMP_WORDS": "respodiff ge", "COMP_CWORD": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=asked, capture_output=True, text=True)
    assert done.stdout.split() == ["generate"]


def test_warnings_of_arithmetic_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(_path: Path) -> None:
        np.array([np.nan]).astype(np.uint8)
        raise ValueError("no module")

    monkeypatch.setattr("respodiff.cli.models.contents", careless)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert "warning: invalid value encountered in cast" in respodiff("inspect", "x").stderr


def test_an_unexpected_error_is_one_line_and_a_traceback_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_path: Path) -> None:
        raise KeyError("ram")

    monkeypatch.setattr("respodiff.cli.models.contents", broken)
    monkeypatch.delenv("RESPODIFF_TRACEBACK", raising=False)
    refused(respodiff("inspect", "x"), 1, "unexpected KeyError: 'ram'; set RESPODIFF_TRACEBACK=1 to see where, and please report it")
    monkeypatch.setenv("RESPODIFF_TRACEBACK", "1")
    with pytest.raises(KeyError):
        respodiff("inspect", "x")
