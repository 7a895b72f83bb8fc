"""Which shard a process is, from flags, torchrun and Slurm, and what the verbs make of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from command import last_json, respodiff
from respodiff.cli.workers import wanted_shard
from respodiff.data.shards import WHOLE, Shard

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
    assert sorted(p.name.partition(".")[2] for p in scores.iterdir()) == ["0-of-2.safetensors", "1-of-2.safetensors"]
    assert last_json(respodiff("evaluate", str(tmp_path / "two"), "--json")) == one
    assert not list(scores.glob("*-of-2*")), "one file again"
