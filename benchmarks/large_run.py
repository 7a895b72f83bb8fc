"""CPU seconds of resuming, evaluating and reporting a run of many images.

    python -m benchmarks.large_run [ROWS ...]          (default 10,000 and 100,000; about 15 minutes on 2 CPU cores)

`generate` fills the folder with images of one pixel in place of drawn ones. Vectors of the embedded judge are made up and kept beforehand,
so that no image is judged. Each command then runs in a process of its own; its seconds hold about 8 of start-up, which a run of 100 images
shows. Prints one JSON line a size.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from tests.tiny_models import sd

from respodiff.data.run_folder import RunFolder
from respodiff.evaluation.judges import ClipJudge
from respodiff.evaluation.score_files import ScoreFiles, key_of
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate
from respodiff.pipelines.loading import load_pipeline

IMAGES = 100
"""Images a prompt."""


def fill(root: Path, rows: int) -> None:
    """A finished run of ``rows`` images, the model that it is of, its prompts, and vectors of its images."""
    sd().save_pretrained(root / "tiny")
    prompts = [f"a doctor, number {i}" for i in range(rows // IMAGES)]
    (root / "prompts.txt").write_text("\n".join(prompts))
    colours = iter(range(1 << 24))

    def pixels(_pipe: Any, texts: Any, *_: Any) -> Any:
        return SimpleNamespace(
            images=[Image.new("RGB", (1, 1), (c % 256, c // 256 % 256, c // 65536)) for c in (next(colours) for _ in texts)]
        )

    with mock.patch("respodiff.generation.generate.run_sampler", pixels):
        pipe = load_pipeline(str(root / "tiny"), device="cpu", dtype=torch.float32)
        deque(generate(pipe, prompts, (), GenerateConfig(images=IMAGES, batch=500), out=root / "run"), maxlen=0)
    judge, run = ClipJudge.load("embedded"), RunFolder(root / "run")
    table = np.random.default_rng(0).normal(size=(rows, judge.model.config.projection_dim)).astype(np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    vectors = {r.digest: row for r, row in zip(run.records(), table, strict=True)}
    ScoreFiles(run, key_of(judge.name, judge.digest)).write_vectors(vectors)


def cpu_seconds(*command: str) -> float:
    """Seconds that a command of respodiff computes, in user and system."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "respodiff", *command], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1)


def main() -> None:
    for rows in map(int, sys.argv[1:] or ("100", "10000", "100000")):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            fill(root, rows)
            run = str(root / "run")
            drawn = ["--model", str(root / "tiny"), "--prompts", str(root / "prompts.txt"), "--images", str(IMAGES)]
            found = {"rows": rows, "resume": cpu_seconds("generate", *drawn, "--out", run)}
            found |= {
                "evaluate": cpu_seconds("evaluate", run, "--judge", "embedded"),
                "report": cpu_seconds("report", run, "--out", str(root / "report.html")),
            }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
