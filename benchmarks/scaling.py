"""Measures one process, shards, workers, and workers on a Ray cluster on the same run, one of whose workers is killed.

    python -m benchmarks.scaling          (about 10 minutes on 2 CPU cores)

Each row is `respodiff generate` of 72 images of the embedded model: two of each occupation, 20 steps. One process computes on two threads, two
processes on one each. Writes docs/results/scaling.json and the table of docs/scaling.md.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.provenance import DOCS, provenance, say
from benchmarks.tables import fill, table
from respodiff.data.run_folder import RunFolder

IMAGES = 2
"""Images of each of the 36 prompts."""
ROWS = {
    "one process, 2 threads": [],
    "2 shards": ["--num-shards", "2", "--shard-index", "0"],
    "2 workers": ["--workers", "2"],
    "2 workers, one killed": ["--workers", "2"],
    "2 workers of a Ray cluster": ["--workers", "2", "--engine", "ray"],
    "2 workers of a Ray cluster, one killed": ["--workers", "2", "--engine", "ray"],
}


def start(out: Path, *more: str, threads: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "respodiff", "generate", "--suite", "occupations", "--module", "gender", "--images", str(IMAGES)]
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen([*command, "--out", str(out), "--json", *more], env=env, stdout=subprocess.PIPE, text=True)


def kill_worker(parent: subprocess.Popen[str], out: Path) -> None:
    """Kills a process that draws, once a quarter of the images is there."""
    while parent.poll() is None:
        if len(list(out.glob("images/*.png"))) >= 36 * IMAGES // 4:
            os.kill(_workers(parent.pid)[0], signal.SIGKILL)
            return
        time.sleep(0.1)
    raise RuntimeError("it ended before a worker could be killed")


def _workers(parent: int) -> list[int]:
    """Processes below ``parent`` that draw: spawned ones, or Ray's actors."""
    found, left = list[int](), [parent]
    while left:
        pid = left.pop()
        children = Path(f"/proc/{pid}/task/{pid}/children")
        left += [int(child) for child in (children.read_text().split() if children.exists() else ())]
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"spawn_main" in command or command.startswith(b"ray::_Worker"):
            found.append(pid)
    return sorted(found)


def row(name: str, out: Path) -> dict[str, Any]:
    """Seconds of a row from start to end, and the run that it made."""
    more, began = ROWS[name], time.monotonic()
    jobs = [start(out, *more, threads=2 if not more else 1)]
    if "shards" in name:
        jobs.append(start(out, *more[:-1], "1", threads=1))
    if "killed" in name:
        kill_worker(jobs[0], out)
    if any(job.wait() for job in jobs):
        raise RuntimeError(f"{name}: failed")
    return {"seconds": round(time.monotonic() - began, 1)}


def compared(one: Path, other: Path) -> dict[str, Any]:
    """Images of another run beside those of one process: levels that they differ by, and whether concepts are the same."""
    runs = [{r.id: r for r in RunFolder(folder).records()} for folder in (one, other)]
    if runs[0].keys() != runs[1].keys():
        raise RuntimeError(f"{other.name} holds other images")
    pairs = [
        [np.asarray(Image.open(folder / rows[key].file)).astype(int) for folder, rows in zip((one, other), runs, strict=True)]
        for key in runs[0]
    ]
    most = max(int(np.abs(a - b).max()) for a, b in pairs)
    return {"images": len(pairs), "levels": most, "concepts": all(runs[0][key].concepts == runs[1][key].concepts for key in runs[0])}


def main() -> None:
    found: dict[str, Any] = {"provenance": provenance("python -m benchmarks.scaling"), "rows": {}}
    with tempfile.TemporaryDirectory() as folder:
        outs = {name: Path(folder) / str(i) for i, name in enumerate(ROWS)}
        for name, out in outs.items():
            found["rows"][name] = row(name, out) | compared(next(iter(outs.values())), out)
            say(f"{name}: {found['rows'][name]}")
    (DOCS / "results" / "scaling.json").write_text(json.dumps(found, indent=1) + "\n")
    about, first = found["provenance"], next(iter(found["rows"].values()))["seconds"]
    text = f"`{about['command']}` at commit {about['commit']}, {about['cpu_cores']} CPU cores, torch {about['torch']}; seconds hold the start. Each row was run once.\n\n"
    cells = [
        [name, str(r["images"]), str(r["seconds"]), f"{first / r['seconds']:.2f}", str(r["levels"]), "yes" if r["concepts"] else "no"]
        for name, r in found["rows"].items()
    ]
    header = ["how", "images", "seconds", "one process / this", "largest difference (of 255)", "same concepts"]
    fill(DOCS / "scaling.md", "scaling", text + table(header, cells))


if __name__ == "__main__":
    main()
