"""Flags of work that several processes share, as shards that are started from outside or as workers of an engine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from respodiff._device import AUTO, chosen_device
from respodiff.cli.console import check_device, finish, words
from respodiff.cli.options import number
from respodiff.data.shards import WHOLE, Shard

if TYPE_CHECKING:
    from respodiff.experiments.engine import Engine

NUM_HELP = "Split the work, by prompt, over so many processes. (default from RANK and WORLD_SIZE, or Slurm)"
NumShards = Annotated[int | None, number(1, 100_000, help=NUM_HELP)]
ShardIndex = Annotated[int | None, number(0, 99_999, help="Which of the shards this process is, from 0.", metavar="I")]
Workers = Annotated[int | None, number(1, 1024, help="Processes that share the work. (default 1; with --engine ray all of the cluster)")]
EngineName = Annotated[str, Option("--engine", help="local, or ray: a Ray cluster.", metavar="NAME")]
RayAddress = Annotated[
    str, Option("--ray-address", help="Of the cluster. (default RAY_ADDRESS, else one that runs here, else a new one)", metavar="ADDR")
]
GpusPerWorker = Annotated[
    float | None, number(0, 64, help="GPUs of each worker; 0.5: two on one. (default 1 with --device cuda)", whole=False, metavar="F")
]


def wanted_engine(
    workers: int | None, engine: str, ray_address: str, gpus: float | None, device: str, shard: Shard = WHOLE
) -> Engine | None:
    """The engine that the flags ask for; None for work in this process. ValueError for flags that go against each other."""
    from respodiff.experiments.engine import Engine

    if engine not in ("local", "ray"):
        raise ValueError(f"--engine is {engine!r}; allowed: local, ray")
    ray = engine == "ray"
    if ray_address and not ray:
        raise ValueError(f"--ray-address is {ray_address!r}, but --engine is local; give --engine ray")
    if not ray and (workers or 1) == 1:
        return None
    if shard != WHOLE:
        raise ValueError(f"--workers or --engine is given to shard {shard}; give shards one process each, or the workers the whole work")
    device = chosen_device(device)
    if gpus == 0 and device == "cuda":
        raise ValueError("--num-gpus-per-worker is 0, but --device is cuda; give a part of 1 or a whole number")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"--device is {device!r}, and workers take a GPU each; give cpu or cuda")
    if not ray:
        check_device(device)
    return Engine(workers or 0, ray, ray_address, float(device == "cuda") if gpus is None else gpus)


def wanted_shard(num_shards: int | None, shard_index: int | None, device: str = "cpu") -> tuple[Shard, str]:
    """The shard that the flags or the environment name, and its device: of ``cuda`` the process's own GPU on its machine.

    ValueError for a flag without the other one, or an index that is no shard's.
    """
    env, source = os.environ, "--shard-index and --num-shards"
    if (num_shards is None) != (shard_index is None):
        flag, other = ("--num-shards", "--shard-index") if shard_index is None else ("--shard-index", "--num-shards")
        raise ValueError(f"{flag} is given without {other}; give both, or none for the whole work")
    local = ""
    for rank, size, on_machine in (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")):
        # A batch script has the numbers of a task too; only srun, which says how many it started, runs the script several times.
        alone = rank == "SLURM_PROCID" and "SLURM_JOB_ID" in env and "SLURM_STEP_NUM_TASKS" not in env
        if rank in env and size in env and not alone:
            local = local or env.get(on_machine, "")
            if num_shards is None:
                source, num_shards, shard_index = f"{rank} and {size}", _number(size), _number(rank)
    shard = Shard(shard_index or 0, 1 if num_shards is None else num_shards)
    if shard == WHOLE:
        return WHOLE, device
    if device in ("cuda", AUTO) and local.isdecimal() and chosen_device(device) == "cuda":
        import torch

        device = f"cuda:{int(local) % max(1, torch.cuda.device_count())}"
    words.print(f"shard {shard} (from {source})")
    return shard, device


def finish_shard(shard: Shard, result: dict[str, Any], as_json: bool) -> None:
    """Say that a shard has done its part, and what comes after it."""
    told = "the same command with --num-shards 1 --shard-index 0, once all shards are done"
    finish({**result, "shard": shard.index, "shards": shard.count, "next": told}, f"shard {shard} is done; the result: {told}", as_json)


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError as error:
        raise ValueError(f"{name} is {os.environ[name]!r}, which is no number; give --num-shards and --shard-index") from error
