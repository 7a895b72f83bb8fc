"""``respodiff train`` on a tiny pipeline: what it refuses, what it leaves behind, and what an interrupt costs (nothing)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from command import Done, last_json, respodiff
from respodiff.cli.train import chosen_concept, settings
from respodiff.steering.module import ConceptModule, load
from respodiff.training import respodiff as training
from respodiff.training.axes import AXES

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
    return sorted(p.name for p in folder.iterdir())


# --- interrupts ---


@pytest.mark.parametrize("preset", ["neutral", "paper"])
@pytest.mark.parametrize("call", [5, 6])
def test_a_run_stopped_inside_an_update_resumes_to_the_same_module(
    preset: str, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The 5th update is RAM's of the third iteration, the 6th SAM's."""
    out, command = (
        tmp_path / "cut.safetensors",
        ["train", "--concept", "woman", "--json", "--preset", preset, *FAST, "--set", "sam_lr=0.02"],
    )
    expected = last_json(respodiff(*command, "--out", str(tmp_path / "whole.safetensors")))
    real, calls = training._update, [0]

    def stopped(*args: Any) -> None:
        real(*args)
        calls[0] += 1
        if calls[0] == call:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "_update", stopped)
    done = respodiff(*command, "--out", str(out))
    assert done.returncode == 1 and "stopped" in done.stderr and "--resume" in done.stderr
    monkeypatch.setattr(training, "_update", real)
    found = last_json(respodiff(*command, "--out", str(out), "--resume"))
    for key in ("digest", "unet_forwards", "iterations", "loss_first", "loss_last"):
        assert found[key] == expected[key]
    assert names(tmp_path) == ["cut.safetensors", "whole.safetensors"]


def test_a_module_that_could_not_be_written_comes_from_the_saved_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "m.safetensors"
    expected = last_json(respodiff(*WOMAN, "--out", str(tmp_path / "whole.safetensors")))

    def full(*_: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(ConceptModule, "save", full)
        assert "disk full" in respodiff(*WOMAN, "--out", str(out)).stderr
    monkeypatch.setattr(training, "step", full)  # nothing is left to compute
    found = last_json(respodiff(*WOMAN, "--out", str(out), "--resume"))
    assert {**found, "module": "", "peak_mib": 0, "seconds": 0} == {**expected, "module": "", "peak_mib": 0, "seconds": 0}
    assert load(out).digest == expected["digest"]


def test_an_unfinished_run_is_kept_until_the_new_one_has_progressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, state = tmp_path / "m.safetensors", tmp_path / ".m.safetensors.unfinished"
    real = training.step

    def stop_at(iteration: int) -> None:
        def step(unet: Any, config: Any, state: Any, batch: Any) -> Any:
            if state.iteration == iteration:
                raise KeyboardInterrupt
            return real(unet, config, state, batch)

        monkeypatch.setattr(training, "step", step)

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
    monkeypatch.setattr(training, "step", None)
    refused(respodiff("train", "--concept", "woman", "--out", out, cwd=tmp_path), said)
    assert names(tmp_path) == []


def test_own_prompts_are_stripped() -> None:
    texts = {"target": " a dog ", "negative": "", "name": " ", "attribute": " animal ", "neutral": "  "}
    found = chosen_concept("", None, texts, {"opposite": [" a cat "], "preserve": ()})
    assert (found.name, found.target, found.neutral, found.attribute, found.opposites) == ("dog", "a dog", "a person", "animal", ("a cat",))


def test_a_setting_from_either_place_counts() -> None:
    assert settings("default", "fairness", ["seed=5"], seed=None, iterations=3).seed == 5
    assert settings("default", "fairness", ["iterations=7"], seed=2, iterations=None).iterations == 7


# --- the axes ---


def test_every_axis_is_reachable_by_set_and_inspect_tells_the_form(tmp_path: Path) -> None:
    def trained(*pairs: str) -> ConceptModule:
        out = tmp_path / "m.safetensors"
        last_json(respodiff(*WOMAN, "--preset", "neutral", *(part for pair in pairs for part in ("--set", pair)), "--out", str(out)))
        return load(out)

    digests = {trained().digest}
    for pairs, form in (
        (["form=channel"], "channel"),
        (["form=binned", "bins=2"], "binned"),
        (["form=lowrank", "map_rank=2", "map_rate=0.5"], "lowrank"),
        (["modules=shared", "sam_lr=0.02"], "constant"),
        (["objective=guided", "target_guidance=4", "blend=0.5"], "constant"),
        (["replay=2"], "constant"),
        (["contexts=a doctor, a nurse"], "constant"),
    ):
        module = trained(*pairs)
        assert module.form == form, pairs
        digests.add(module.digest)
    assert len(digests) == 8, "no variant is a copy of another"
    assert module.header.train["contexts"] == ["a doctor", "a nurse"]
    module = trained("form=lowrank", "map_rank=2")
    found = last_json(respodiff("inspect", str(tmp_path / "m.safetensors"), "--json"))
    assert (found["form"], found["ram_a"]) == ("lowrank", [module.shape[0], 2]) and "bins" not in found


def test_a_binned_module_is_told_and_refused_where_a_constant_is_needed(make_module: Any, tmp_path: Path) -> None:
    one = make_module()
    path = ConceptModule(one.ram.expand(3, -1, -1, -1), one.sam.expand(3, -1, -1, -1), one.header).save(tmp_path / "m.safetensors")
    found = last_json(respodiff("inspect", str(path), "--json"))
    assert (found["form"], found["bins"], found["shape"]) == ("binned", 3, [64, 4, 4])
    assert found["norm_ram"] == pytest.approx(one.ram.norm().item())
    refused(respodiff("fuse", "--module", str(path), "--channel-mean", "--out", str(tmp_path / "unet")), "form 'binned'", "form=channel")
    refused(respodiff("convert", str(path), "--to", "pt", "--out", str(tmp_path / "m.pt")), "form 'binned'", "constants alone")
    assert names(tmp_path) == ["m.safetensors"]


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (["form=mlp"], "form is 'mlp'; allowed: constant, channel, binned, lowrank"),
        (["bins=3"], "bins is 3, which form 'constant' does not read"),
        (["modules=shared"], "there is no second loss to share with"),
        (["blend=1"], "set target_guidance=0.5 instead"),
        (["contexts="], "contexts is ('',); allowed: prompts"),
        (["form=binned", "bins=8"], "none of the 4 steps of a rollout falls into bin 1"),
    ],
)
def test_axes_that_make_no_sense_are_refused_before_the_work(pairs: list[str], said: str, tmp_path: Path) -> None:
    flags = [part for pair in pairs for part in ("--set", pair)]
    refused(respodiff(*WOMAN, *flags, "--out", str(tmp_path / "m.safetensors")), said)
    assert names(tmp_path) == []


def test_a_run_that_an_earlier_version_left_unfinished_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier versions had no axes: neither in what the state says it is of, nor in its counters."""
    out, real = tmp_path / "m.safetensors", training.step
    expected = last_json(respodiff(*WOMAN, "--preset", "neutral", "--out", str(tmp_path / "whole.safetensors")))["digest"]

    def step(denoiser: Any, config: Any, state: Any, batch: Any) -> Any:
        if state.iteration == 3:
            raise KeyboardInterrupt
        return real(denoiser, config, state, batch)

    with monkeypatch.context() as patched:
        patched.setattr(training, "step", step)
        respodiff(*WOMAN, "--preset", "neutral", "--out", str(out))
    state = tmp_path / ".m.safetensors.unfinished"
    with safe_open(state, "pt") as file:
        about, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    assert not set(AXES) & set(json.loads(about["about"])["config"])
    tensors["counters"] = tensors["counters"][:4]
    save_file(tensors, state, metadata=about)
    assert last_json(respodiff(*WOMAN, "--preset", "neutral", "--out", str(out), "--resume"))["digest"] == expected
