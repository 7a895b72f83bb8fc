"""Memory and seconds of `respodiff.load_pipeline` for checkpoints of random weights, each in a process of its own.

    nice -n 19 python -m benchmarks.loading             (a minute, 3 GiB of disk for as long)
    python -m benchmarks.loading --tables               (the table anew from the kept rows)

Weights of a safetensors file are mapped, and count as resident once they are read. So every weight is read after loading, and the peak of
VmRSS (mapped pages included) is taken over both, less what was resident after the imports.
RssAnon, which the system cannot take back, is told beside it. Results are kept in docs/results/loading.json. Linux alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from benchmarks.fullsize import SD14, VAE, filled, text
from benchmarks.provenance import DOCS, provenance
from benchmarks.tables import fill, table
from respodiff import load_pipeline
from respodiff.data.run_folder import write_atomic

RESULTS = DOCS / "results" / "loading.json"
SIZES = (("float32", 96), ("bfloat16", 160), ("float32", 160), ("bfloat16", 256))
"""Dtype, and channels of the UNet's first level, of which SD 1.4 has 320: about 390 MiB and about 1 GB."""
TEXT = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
MIB = 2**20


def write_checkpoint(folder: Path, width: int, dtype: torch.dtype) -> None:
    """A Stable Diffusion of random weights with a narrower UNet and a small VAE and text encoder."""
    tokenizer = load_pipeline("embedded").tokenizer
    channels = (width, 2 * width, 4 * width, 4 * width)
    StableDiffusionPipeline(
        vae=filled(AutoencoderKL, {**VAE, "block_out_channels": (64, 128, 256, 256)}, dtype),
        text_encoder=text(TEXT, dtype),
        tokenizer=tokenizer,
        unet=filled(UNet2DConditionModel, {**SD14, "block_out_channels": channels, "cross_attention_dim": 64}, dtype),
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def resident() -> dict[str, float]:
    """VmRSS and RssAnon of this process in MiB."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon")}


def measure(folder: Path, dtype: str) -> dict[str, Any]:
    """Peaks while a checkpoint is loaded and its weights are read once, over those before."""
    before, peak, done = resident(), resident(), threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            for name, size in resident().items():
                peak[name] = max(peak[name], size)

    watching = threading.Thread(target=watch)
    watching.start()
    began = time.perf_counter()
    try:
        pipe = load_pipeline(folder, torch_dtype=getattr(torch, dtype))
        seconds = time.perf_counter() - began
        for part in (pipe.unet, pipe.vae, pipe.text_encoder):
            for p in part.parameters():
                p.sum().item()
    finally:
        done.set()
        watching.join()
    size = sum(file.stat().st_size for file in folder.glob("*/*.safetensors")) / MIB
    return {"mib": size, "seconds": seconds} | {f"peak_{name}": peak[name] - before[name] for name in before}


def as_table(result: dict[str, Any]) -> str:
    heads = [
        "channels of the UNet",
        "dtype",
        "MiB of the checkpoint",
        "peak RSS, MiB",
        "peak RSS / size",
        "of it not mapped / size",
        "seconds",
    ]
    rows = []
    for r in result["rows"]:
        peak, size = r["peak_VmRSS"], r["mib"]
        numbers = f"{size:.0f}", f"{peak:.0f}", f"{peak / size:.2f}", f"{r['peak_RssAnon'] / size:.2f}", f"{r['seconds']:.1f}"
        rows.append([str(r["channels"]), r["dtype"], *numbers])
    return f"`{result['command']}` at commit {result['commit']}, torch {result['torch']}; each row was run once.\n\n" + table(heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="write the table, run nothing")
    parser.add_argument("--row", nargs=2, metavar=("DIR", "DTYPE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        print(json.dumps(measure(Path(arguments.row[0]), arguments.row[1])), flush=True)
        return
    if not arguments.tables:
        rows = []
        for dtype, width in SIZES:
            with TemporaryDirectory() as folder:
                write_checkpoint(Path(folder), width, getattr(torch, dtype))
                command = [sys.executable, "-m", "benchmarks.loading", "--row", folder, dtype]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows.append({"channels": width, "dtype": dtype} | json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
        write_atomic(RESULTS, json.dumps(provenance("python -m benchmarks.loading") | {"rows": rows}, indent=1) + "\n")
    fill(DOCS / "results.md", "loading", as_table(json.loads(RESULTS.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
