"""A local Ray cluster, started once for each file of tests that asks for it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import worker_tasks


@pytest.fixture(scope="module")
def ray_of_two() -> Iterator[None]:
    """Two cores, for two workers, which find the tasks of tests, and two GPUs in name alone."""
    import ray

    path = os.pathsep.join([os.path.dirname(worker_tasks.__file__), os.environ.get("PYTHONPATH", "")])  # noqa: PTH120
    ray.init(num_cpus=2, num_gpus=2, log_to_driver=False, logging_level="ERROR", runtime_env={"env_vars": {"PYTHONPATH": path}})
    yield
    ray.shutdown()
