"""Which shard a process is, from flags, torchrun and Slurm, and what the verbs make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from command import last_json, respodiff
from respodiff.cli import workers
from respodiff.cli.workers import wanted_engine, wanted_shard
from respodiff.data.shards import WHOLE, Shard
from respodiff.experiments.engine import Engine

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
SLURM = {"SLURM_PROCID": "2", "SLURM_NTASKS": "3"}
SRUN = {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "3", "SLURM_LOCALID": "2"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TORCHRUN, *SLURM, *SRUN):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("env", "shard"),
    [
        ({}, WHOLE),
        (TORCHRUN, Shard(1, 4)),
        (SLURM, Shard(2, 3)),
        (SLURM | SRUN, Shard(2, 3)),
        (TORCHRUN | SLURM, Shard(1, 4)),
        ({"WORLD_SIZE": "4"}, WHOLE),
        ({"SLURM_NTASKS": "3"}, WHOLE),
        (SLURM | {"SLURM_JOB_ID": "7"}, WHOLE),  # the batch script itself
        ({"RANK": "0", "WORLD_SIZE": "1"}, WHOLE),
    ],
)
def test_the_environment_names_the_shard(env: dict[str, str], shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert wanted_shard(None, None) == (shard, "cpu")
    assert wanted_shard(8, 5)[0] == Shard(5, 8), "flags come first"


@pytest.mark.parametrize("env", [TORCHRUN, SLURM | SRUN])
def test_a_process_of_a_node_takes_its_own_gpu(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    local = env.get("LOCAL_RANK", env.get("SLURM_LOCALID"))
    assert wanted_shard(None, None, "cuda")[1] == f"cuda:{local}"
    assert wanted_shard(None, None, "cuda:5")[1] == "cuda:5"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # Slurm shows each task its own GPU alone
    assert wanted_shard(None, None, "cuda")[1] == "cuda:0"


@pytest.mark.parametrize(
    ("given", "env"), [((2, None), {}), ((None, 0), {}), ((2, 2), {}), ((None, None), {"RANK": "x", "WORLD_SIZE": "2"})]
)
def test_half_a_shard_is_refused(given: tuple[int | None, int | None], env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="shard"):
        wanted_shard(*given)


def same(found: Any, expected: Any, within: float = 1e-4) -> None:
    """Equal but for the rounding of a judge that looks at other images at the same time."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            same(found[key], expected[key], within)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            same(*pair, within)
    else:
        assert found == (pytest.approx(expected, abs=within) if isinstance(expected, float) else expected)


@pytest.mark.slow
def test_shards_are_generated_and_judged_apart_and_summed_up_together(tmp_path: Path) -> None:
    def run(name: str, *arguments: str) -> dict[str, object]:
        drawn = ["generate", "--prompt", "a doctor", "--prompt", "a nurse", "--images", "2", "--steps", "2", "--batch", "1"]
        last_json(respodiff(*drawn, "--out", str(tmp_path / name), "--json", *arguments))
        return last_json(respodiff("evaluate", str(tmp_path / name), "--json", *arguments))

    one = run("one")
    parts = [run("two", "--num-shards", "2", "--shard-index", i) for i in "01"]
    assert [p["shard"] for p in parts] == [0, 1]
    scores = tmp_path / "two" / "scores"
    assert sorted(p.name.partition(".")[2] for p in scores.glob("[!.]*")) == ["0-of-2.safetensors", "1-of-2.safetensors"]
    same(last_json(respodiff("evaluate", str(tmp_path / "two"), "--json")), one)
    assert not list(scores.glob("*-of-2*")), "one file again"


@pytest.mark.slow
def test_a_comparison_by_shards_or_workers_is_that_of_one_process(tiny_pipe: Any, tmp_path: Path) -> None:
    tiny_pipe.save_pretrained(tmp_path / "model")

    def run(name: str, *arguments: str) -> dict[str, Any]:
        compared = ["compare", "--model", str(tmp_path / "model"), "--judge", "embedded", "--methods", "respodiff"]
        compared += ["--images", "2", "--prompts", "4", "--steps", "2", "--scale", "1"]
        given = ["--set", "respodiff.iterations=2", "--set", "respodiff.rollouts=2", "--set", "respodiff.steps=2"]
        return last_json(
            respodiff(*compared, *given, "--cache", str(tmp_path / "adapters"), "--out", str(tmp_path / name), "--json", *arguments)
        )

    one = run("one")["rows"]
    assert [run("two", "--num-shards", "2", "--shard-index", i)["shard"] for i in "01"] == [0, 1]
    for rows in (run("two")["rows"], run("three", "--workers", "2")["rows"]):
        for row, expected in zip(rows, one, strict=True):
            assert row["label"] == expected["label"] and row["n"] == expected["n"] == 8
            assert row["unet_forwards_per_image"] == expected["unet_forwards_per_image"] == 4
            assert row["alignment"]["mean"] == pytest.approx(expected["alignment"]["mean"], abs=0.5)


@pytest.mark.slow
def test_an_audit_by_shards_is_that_of_one_process(tmp_path: Path) -> None:
    def run(name: str, *arguments: str) -> dict[str, Any]:
        asked = ["audit", "--prompt", "a doctor", "--prompt", "a nurse", "--images", "2", "--steps", "2", "--batch", "1"]
        few = ["--attributes", "gender", "--validation-images", "1"]
        return last_json(respodiff(*asked, *few, "--out", str(tmp_path / name), "--json", *arguments))

    one = run("one")
    assert [run("two", "--num-shards", "2", "--shard-index", i)["shard"] for i in "01"] == [0, 1]
    two = run("two")
    assert two["ranking"]
    for key in one.keys() - {"command", "page", "suggest"}:
        same(two[key], one[key])


@pytest.mark.parametrize(
    ("given", "engine"),
    [
        ((None, "local", "", None, "cuda:1"), None),
        ((1, "local", "", None, "cpu"), None),
        ((3, "local", "", None, "cpu"), Engine(3)),
        ((3, "local", "", None, "cuda"), Engine(3, gpus=1)),
        ((None, "ray", "", None, "cpu"), Engine(0, ray=True)),
        ((16, "ray", "auto", 0.5, "cuda"), Engine(16, ray=True, address="auto", gpus=0.5)),
    ],
)
def test_flags_name_the_engine(given: Any, engine: Engine | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "check_device", lambda _: None)
    assert wanted_engine(*given) == engine


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ((2, "slurm", "", None, "cpu", WHOLE), "engine"),
        ((2, "local", "auto", None, "cpu", WHOLE), "ray-address"),
        ((2, "local", "", None, "cpu", Shard(0, 2)), "workers"),
        ((2, "local", "", None, "cuda:1", WHOLE), "device"),
        ((2, "ray", "", 0.0, "cuda", WHOLE), "num-gpus-per-worker"),
    ],
)
def test_flags_that_go_against_each_other_are_refused(given: Any, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        wanted_engine(*given)
