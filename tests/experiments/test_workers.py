"""A comparison by several processes: the same images as one draws, all the progress, and every failure said."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from respodiff.data.run_folder import RunFolder
from respodiff.experiments.compare import MethodComparison, Progress
from respodiff.experiments.plan import Plan
from respodiff.experiments.workers import run
from respodiff.pipelines.loading import load_pipeline

METHODS = ("prompt", "prompt-switch")


def made(out: Path, methods: tuple[str, ...] = METHODS) -> MethodComparison:
    return MethodComparison(load_pipeline("embedded"), Plan(methods=methods, images=2, groups=("doctor",), steps=1), out)


def dies(out: Path, parent: int) -> MethodComparison:
    if os.getpid() != parent:
        os._exit(7)
    return made(out)


def pixels(folder: Path) -> dict[str, Any]:
    found = sorted(p for p in folder.rglob("*") if p.suffix in (".png", ".webp"))
    return {str(p.relative_to(folder)): np.asarray(Image.open(p).convert("RGB"), dtype=int) for p in found}


def test_two_workers_draw_what_one_draws(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    alone = list(run(partial(made, one), made(one), 1))
    both = list(run(partial(made, two), made(two), 2))
    images, same = pixels(one / "runs"), pixels(two / "runs")
    assert len(images) == 9 and images.keys() == same.keys()
    assert max(abs(images[k] - same[k]).max() for k in images) <= 2  # other numbers of threads round differently
    records = [[r.seed for s in made(out).settings() for r in RunFolder(s.folder / "suite").records()] for out in (one, two)]
    assert records[0] == records[1]
    assert {s.what for s in alone} == {s.what for s in both} and all(isinstance(s, Progress) for s in both)
    assert alone[-1].done == both[-1].done == both[-1].total == 9 * 2


def test_what_a_worker_meets_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"workers is 0; allowed: 1 or more"):
        list(run(partial(made, tmp_path), made(tmp_path), 0))
    unfit = partial(made, tmp_path, ("esd-x",))
    with pytest.raises(ValueError, match="method 'esd-x' takes safety concepts"):
        list(run(unfit, unfit(), 2))
    with pytest.raises(RuntimeError, match=r"a worker ended with code 7 before its work did; run again with fewer --workers"):
        list(run(partial(dies, tmp_path, os.getpid()), made(tmp_path), 2))
    assert torch.get_num_threads() >= 1
