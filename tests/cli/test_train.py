"""``respodiff train`` on a tiny pipeline: what it refuses, what it leaves behind, and what an interrupt costs (nothing)."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from command import Done, last_json, respodiff
from respodiff.cli.options import changes_from
from respodiff.cli.train import chosen_concepts
from respodiff.concepts.concept import concept as find_concept
from respodiff.data.places import lock
from respodiff.methods.registry import get_method, load
from respodiff.steering.adapter import header_of
from respodiff.steering.module import ConceptModule
from respodiff.training import respodiff as training
from respodiff.training.checkpoint import Checkpoint
from respodiff.training.config import TrainConfig

pytestmark = pytest.mark.slow

TINY = {"batch": 2, "steps": 4, "rollouts": 2, "rollout_batch": 2, "refresh_every": 2}
FAST = ["--iterations", "4", *(part for k, v in TINY.items() for part in ("--set", f"{k}={v}"))]
WOMAN = ["train", "--concept", "woman", "--json", *FAST]


@pytest.fixture(autouse=True)
def tiny(tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("respodiff.cli.train.open_model", lambda *_: tiny_pipe)


def refused(done: Done, *said: str) -> None:
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr
    assert all(word in done.stderr for word in said), done.stderr


def names(folder: Path) -> list[str]:
    """All that is in a folder, but for the flags that are written beside results."""
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith("run.toml"))


def test_a_file_that_another_process_trains_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "woman.safetensors"
    with lock(out):
        done = respodiff(*WOMAN, "--out", str(out))
    assert done.returncode == 1 and f"process {os.getpid()} " in done.stderr and names(tmp_path) == []
    assert respodiff(*WOMAN, "--out", str(out)).returncode == 0 and names(tmp_path) == ["woman.safetensors"]


# --- interrupts ---


@pytest.fixture
def ignores_sigterm() -> Iterator[None]:
    """A signal that nobody handles stops no test run, but lets the training go on."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("ignores_sigterm")
@pytest.mark.parametrize(
    ("preset", "call", "by"), [(p, c, "SIGINT") for p in ("default", "paper") for c in (5, 6)] + [("paper", 6, "SIGTERM")]
)
def test_a_run_stopped_inside_an_update_resumes_to_the_same_module(
    preset: str, call: int, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The 5th update is RAM's of the third iteration, the 6th SAM's."""
    out, command = (
        tmp_path / "cut.safetensors",
        ["train", "--concept", "woman", "--json", "--preset", preset, *FAST, "--set", "sam_lr=0.005"],
    )
    expected = last_json(respodiff(*command, "--out", str(tmp_path / "whole.safetensors")))
    real, calls = {name: getattr(training, name) for name in ("adam_step", "share_step")}, [0]

    def stopped(name: str, *args: Any) -> None:
        real[name](*args)
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), getattr(signal, by))

    for name in real:
        monkeypatch.setattr(training, name, partial(stopped, name))
    done = respodiff(*command, "--out", str(out))
    assert done.returncode == 1 and "stopped" in done.stderr and "--resume" in done.stderr
    for name, step in real.items():
        monkeypatch.setattr(training, name, step)
    found = last_json(respodiff(*command, "--out", str(out), "--resume"))
    for key in ("unet_forwards", "iterations", "loss_first", "loss_last"):
        assert found[key] == expected[key]
    assert found["modules"][0]["digest"] == expected["modules"][0]["digest"]
    assert names(tmp_path) == ["cut.safetensors", "whole.safetensors"]


def test_a_module_that_could_not_be_written_comes_from_the_saved_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "m.safetensors"
    expected = last_json(respodiff(*WOMAN, "--out", str(tmp_path / "whole.safetensors")))

    def full(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(ConceptModule, "save", full)
        assert "disk full" in respodiff(*WOMAN, "--out", str(out)).stderr
    monkeypatch.setattr(training, "adam_step", full)  # nothing is left to compute
    found = last_json(respodiff(*WOMAN, "--out", str(out), "--resume"))
    for result in (found, expected):
        result |= {"peak_mib": 0, "seconds": 0}
        result["modules"][0]["file"] = ""
    assert found == expected
    assert load(out).digest == expected["modules"][0]["digest"]


def test_a_checkpoint_is_of_one_model_and_judge_in_any_dtype(tiny_pipe: Any, tmp_path: Path) -> None:
    pipe, out = copy.deepcopy(tiny_pipe).to(torch.bfloat16), tmp_path / "m.safetensors"
    made = partial(Checkpoint, out, find_concept("woman"), TrainConfig())
    made(pipe).write({"x": torch.zeros(1)})
    assert made(pipe).read()
    with pytest.raises(ValueError, match="--resume"):
        made(pipe, judge="clip:DIR").read()
    pipe.unet.conv_out.weight.data.mul_(1.05)
    with pytest.raises(ValueError, match="--resume"):
        made(pipe).read()


def test_a_module_of_another_model_in_bfloat16_is_not_replaced(tiny_pipe: Any, make_module: Any, tmp_path: Path) -> None:
    pipe, out, concept = copy.deepcopy(tiny_pipe).to(torch.bfloat16), tmp_path / "m.safetensors", find_concept("woman")
    config = TrainConfig()
    ConceptModule.of(*(torch.zeros(64, 4, 4) for _ in "rs"), header_of(pipe, "respodiff", concept, config)).save(out)
    Checkpoint(out, concept, config, pipe).check_out(resume=False)
    pipe.register_to_config(_name_or_path="another")
    with pytest.raises(ValueError, match="base_model"):
        Checkpoint(out, concept, config, pipe).check_out(resume=False)


def test_an_unfinished_run_is_kept_until_the_new_one_has_progressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, state = tmp_path / "m.safetensors", tmp_path / ".m.safetensors.unfinished"
    real = training.adam_step

    def stop_at(iteration: int) -> None:
        left = iter(range(iteration))

        def step(*given: Any) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            real(*given)

        monkeypatch.setattr(training, "adam_step", step)

    stop_at(2)
    assert "warning" not in respodiff(*WOMAN, "--out", str(out)).stderr
    before = state.read_bytes()
    stop_at(0)
    done = respodiff(*WOMAN, "--out", str(out))
    assert [line for line in done.stderr.splitlines() if "warning" in line and "checkpoint" in line and "--resume" in line]
    assert state.read_bytes() == before and names(tmp_path) == [state.name]
    stop_at(1)
    respodiff(*WOMAN, "--out", str(out))
    assert state.read_bytes() != before


@pytest.mark.parametrize("out", ["m.safetensors", "new/deep/m.safetensors"])
def test_input_that_is_refused_by_the_model_leaves_nothing_behind(out: str, tmp_path: Path) -> None:
    refused(respodiff("train", "--target", "a doctor " * 40, "--out", str(tmp_path / out), *FAST), "tokens")
    assert names(tmp_path) == []


# --- refusals ---


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--concept", "woman", "--neutral", "a scene"], ["--neutral", "beside --concept 'woman'", "--target"]),
        (["--concept", "woman", "--opposite", "a man"], ["--opposite", "beside --concept 'woman'"]),
        (["--concept", "woman", "--preserve", "a tree"], ["--preserve", "beside --concept 'woman'"]),
        (["--concept", "woman", "--negative", "x"], ["--negative", "beside --concept 'woman'"]),
        (["--concept", "woman", "--attribute", "x"], ["--attribute", "beside --concept 'woman'"]),
        (["--target", "a woman", "--concepts", "own.toml"], ["--concepts 'own.toml'", "prompts of your own"]),
        (["--target", " "], ["no concept given", "--target TEXT"]),
        (["--negative", "  "], ["no concept given"]),
        (["--target", "a woman", "--opposite", " "], ["--opposite is empty"]),
        (["--concept", "woman", "--set", "seed=5", "--seed", "3"], ["--set 'seed=5'", "--seed 3", "one of them"]),
        (["--concept", "woman", "--set", "seed=5", "--seed", "0"], ["--set 'seed=5'", "--seed 0"]),
        (["--concept", "woman", "--set", "iterations=5", "--iterations", "5"], ["--set 'iterations=5'", "--iterations 5"]),
    ],
)
def test_flags_that_would_be_ignored_are_refused(arguments: list[str], said: list[str], tmp_path: Path) -> None:
    refused(respodiff("train", *arguments, "--out", str(tmp_path / "m.safetensors")), *said)
    assert names(tmp_path) == []


@pytest.mark.parametrize(("out", "said"), [("", "--out"), ("  ", "--out"), (".", "which is a folder; give a file in it")])
def test_an_out_that_is_no_file_is_refused_before_the_work(out: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "adam_step", None)
    refused(respodiff("train", "--concept", "woman", "--out", out, cwd=tmp_path), said)
    assert names(tmp_path) == []


def test_own_prompts_are_stripped() -> None:
    texts = {"target": " a dog ", "negative": "", "name": " ", "neutral": "  "}
    (found,) = chosen_concepts("", "animal", None, texts, {"opposite": [" a cat "], "preserve": ()})
    assert (found.name, found.target, found.neutral, found.attribute, found.opposites) == ("dog", "a dog", "a person", "animal", ("a cat",))


def test_a_setting_from_either_place_counts() -> None:
    config = get_method("respodiff").config
    assert changes_from(["seed=5"], {"seed": None, "iterations": 3}, config) == {"seed": 5, "iterations": 3}
    assert changes_from(["iterations=7"], {"seed": 2, "iterations": None}, config) == {"seed": 2, "iterations": 7}
    assert changes_from(["form=channel"], {}, config) == {"form": "channel"}


# --- what is written ---


def test_train_tells_how_large_a_module_is_and_how_far_it_goes(tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    found = last_json(respodiff(*WOMAN, "--out", str(out)))
    (module,) = found["modules"]
    assert module["file"] == str(out) and module["concept"] == "woman" and module["digest"] == load(out).digest
    assert 0 < module["relative_norm"] == pytest.approx(load(out).relative_norm)
    assert last_json(respodiff("inspect", str(out), "--json"))["relative_norm"] == pytest.approx(module["relative_norm"], rel=1e-5)
    verdict = {key: module[key] for key in ("effect", "projection", "relative_norm", "reached", "linearity")}
    kept = load(out).header.verdict
    assert last_json(respodiff("inspect", str(out), "--json"))["verdict"] == kept == verdict | {"factor": kept["factor"]}
    told = ", ".join(f"{key} {value}" for key, value in kept.items())
    assert [line for line in respodiff("inspect", str(out)).stdout.splitlines() if line.startswith("verdict ") and told in line]
    (line,) = (line for line in respodiff(*WOMAN[:3], *FAST, "--out", str(out)).stdout.splitlines() if line.startswith(str(out)))
    assert f"effect {verdict['effect']:.2f}, projection {verdict['projection']:.2f}, relative norm " in line


def test_the_official_preset_takes_sexual_out_of_the_scripts_prompt(tmp_path: Path) -> None:
    for preset, neutral in (("official", "a gorgeous person"), ("default", "a scene")):
        out = tmp_path / f"{preset}.safetensors"
        last_json(respodiff("train", "--concept", "sexual", "--preset", preset, *FAST, "--json", "--out", str(out)))
        header = load(out).header
        assert (header.neutral, header.negative) == (neutral, "sexual")


@pytest.mark.parametrize("rate", ["1e3", "1e6", "1e12", "1e-9"])
@pytest.mark.parametrize("what", [["--concept", "woman"], ["--attribute", "gender"]])
def test_a_training_that_failed_writes_no_module(rate: str, what: list[str], tmp_path: Path) -> None:
    out = tmp_path / ("m.safetensors" if what[0] == "--concept" else "all")
    done = respodiff("train", *what, "--json", *FAST, "--set", f"ram_lr={rate}", "--set", "sam_lr=0", "--out", str(out))
    errors = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert done.returncode == 1 and not done.stdout and len(errors) == 1 and errors[0].startswith("error: ") and "ram_lr" in errors[0]
    state = tmp_path / ".m.safetensors.unfinished" if what[0] == "--concept" else out / ".gender.unfinished"
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == ([state] if rate == "1e-9" else []), "what was trained is kept"


def test_a_target_that_is_the_neutral_prompt_is_refused(tmp_path: Path) -> None:
    refused(
        respodiff("train", "--target", "a person", "--neutral", "a person", *FAST, "--out", str(tmp_path / "m.safetensors")),
        "target prompt 'a person'",
        "neutral prompt",
    )
    assert names(tmp_path) == []


def test_all_alternatives_of_an_attribute_in_one_run(tmp_path: Path) -> None:
    pool = ["--iterations", "2", *FAST[2:], "--set", "projection=0", "--json"]  # one pool serves both updates
    one = last_json(respodiff("train", "--concept", "woman", *pool, "--out", str(tmp_path / "w.safetensors")))
    done = respodiff("train", "--attribute", "gender", *pool, "--out", str(tmp_path / "all"))
    found = last_json(done)
    assert [m["concept"] for m in found["modules"]] == ["woman", "man"] and names(tmp_path / "all") == [
        "man.safetensors",
        "woman.safetensors",
    ]
    together, alone = load(tmp_path / "all" / "woman.safetensors"), load(tmp_path / "w.safetensors")
    assert together.header == replace(alone.header, verdict=together.header.verdict) and torch.allclose(
        together.tensors["ram.r"], alone.tensors["ram.r"], atol=2e-3
    )
    verdict = 2 * 3 * 2 + 3 * 8  # forwards, of each module
    first, both = one["unet_forwards"] - verdict, found["unet_forwards"] - 2 * verdict
    assert found["iterations"] == 2 and first < both < 1.5 * first
    assert "one concept after the other" not in done.stderr
    refused(respodiff("train", "--attribute", "gender", "--out", str(tmp_path / "w.safetensors"), *FAST), "--out", "give a folder")


def test_what_cannot_be_shared_is_trained_one_by_one_and_said(tmp_path: Path) -> None:
    paper = ["--preset", "paper", "--iterations", "2", "--set", "steps=4", "--json"]
    one = last_json(respodiff("train", "--concept", "man", *paper, "--out", str(tmp_path / "m.safetensors")))
    done = respodiff("train", "--attribute", "gender", *paper, "--out", str(tmp_path / "all"))
    assert "one concept after the other: its concepts have different settings" in done.stderr, "each has the rates of its script"
    assert last_json(done)["modules"][1]["digest"] == one["modules"][0]["digest"]


@pytest.mark.usefixtures("ignores_sigterm")
@pytest.mark.parametrize(("call", "by"), [(5, "SIGINT"), (6, "SIGTERM")])
def test_an_attribute_stopped_inside_an_update_resumes_to_the_same_modules(
    call: int, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The 5th update is the first alternative's of the third iteration, the 6th the second's."""
    command = ["train", "--attribute", "gender", "--json", *FAST]
    expected = last_json(respodiff(*command, "--out", str(tmp_path / "whole")))
    out, real, calls = tmp_path / "cut", training.adam_step, [0]

    def stopped(*args: Any) -> None:
        real(*args)
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), getattr(signal, by))

    with monkeypatch.context() as patched:
        patched.setattr(training, "adam_step", stopped)
        assert respodiff(*command, "--out", str(out)).returncode == 1
    assert names(out) == [".gender.unfinished"]
    refused(respodiff(*command, "--seed", "1", "--resume", "--out", str(out)), "--resume", "settings")
    found = last_json(respodiff(*command, "--out", str(out), "--resume"))
    for key in ("unet_forwards", "iterations", "loss_first", "loss_last"):
        assert found[key] == expected[key]
    assert [m["digest"] for m in found["modules"]] == [m["digest"] for m in expected["modules"]]
    assert names(out) == ["man.safetensors", "woman.safetensors"]


def test_another_module_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "m.safetensors"
    last_json(respodiff(*WOMAN, "--out", str(out)))
    before = out.read_bytes()
    assert last_json(respodiff(*WOMAN, "--out", str(out)))["modules"], "the same module may be made again"
    monkeypatch.setattr(training, "adam_step", None)
    refused(respodiff("train", "--concept", "man", *FAST, "--out", str(out)), "--out", "holds the adapter 'woman' with other", "concept")
    refused(respodiff(*WOMAN, "--seed", "1", "--resume", "--out", str(out)), "--out", "other settings")
    (tmp_path / "notes.txt").write_text("mine")
    refused(respodiff(*WOMAN, "--out", str(tmp_path / "notes.txt")), "out is", "--force")
    assert out.read_bytes() == before and names(tmp_path) == ["m.safetensors", "notes.txt"]


# --- the neutral prompt ---


def test_the_best_candidate_is_trained_on(tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    done = respodiff(*WOMAN, "--neutral-candidates", "a car, a human", "--out", str(out))
    best = last_json(done)["modules"][0]["neutral"]
    assert load(out).header.neutral == best and f"neutral prompt {best!r}: lowest of {best!r} " in done.stderr
    other = ({"a car", "a human"} - {best}).pop()
    assert f", {other!r} " in done.stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--target", "a dog", "--neutral", "x", "--neutral-candidates", "y"], "--neutral-candidates"),
        (["--concept", "woman", "--neutral-candidates", "a human,,someone"], "candidates"),
    ],
)
def test_candidates_that_make_no_sense_are_refused(more: list[str], said: str, tmp_path: Path) -> None:
    refused(respodiff("train", *more, *FAST, "--out", str(tmp_path / "m.safetensors")), said)
    assert names(tmp_path) == []


def test_inspect_tells_form_and_window(make_module: Any, tmp_path: Path) -> None:
    path = make_module().channels().within(400, 1000).save(tmp_path / "m.safetensors")
    found = last_json(respodiff("inspect", str(path), "--json"))
    assert (found["form"], found["shape"], found["timesteps"]) == ("channel", [64, 1, 1], [400, 1000])
    refused(respodiff("fuse", "--module", str(path), "--out", str(tmp_path / "unet")), "acts at timesteps (400, 1000) alone")
    assert names(tmp_path) == ["m.safetensors"]


# --- sites ---


def test_chosen_sites_are_trained_at_and_shown(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    assert respodiff(*WOMAN, "--site", "up_blocks.0", "--site", "mid_block", "--out", str(path)).returncode == 0
    found = last_json(respodiff("inspect", str(path), "--json"))
    assert found["site"] == "mid_block,up_blocks.0" and found["shape"] is None and found["train"]["site"] == ["up_blocks.0", "mid_block"]
    assert [s["shape"] for s in found["sites"].values()] == [[64, 4, 4], [64, 8, 8]] and found["sites"]["mid_block"]["norm_ram"] > 0
    refused(respodiff("fuse", "--module", str(path), "--channel-mean", "--out", str(tmp_path / "unet")), "acts at mid_block,up_blocks.0")
    assert respodiff(*WOMAN, "--site", "up_blocks.0", "--out", str(tmp_path / "one.safetensors")).returncode == 0
    found = last_json(respodiff("inspect", str(tmp_path / "one.safetensors"), "--json"))
    assert (found["site"], found["shape"]) == ("up_blocks.0", [64, 8, 8]) and found["relative_norm"] > 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--site", "attic"], "site is 'attic', which this UNet2DConditionModel has not; allowed: down_blocks.0, down_blocks.1, mid_block"),
        (["--site", "mid_block", "--site", "mid_block"], "site is ('mid_block', 'mid_block')"),
        (["--method", "esd-x", "--site", "mid_block"], "--site"),
    ],
)
def test_sites_that_cannot_be_chosen_are_refused(more: list[str], said: str, tmp_path: Path) -> None:
    fast = FAST if "--method" not in more else []
    refused(respodiff("train", "--concept", "woman", *fast, *more, "--out", str(tmp_path / "m.safetensors")), said)
    assert names(tmp_path) == []
