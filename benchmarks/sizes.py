"""Trains one preset on UNets of three sizes: the embedded model's, and those of Stable Diffusion 1.4 and SDXL with random weights.

    python -m benchmarks.sizes             (about 15 minutes on 2 CPU cores, 14 GiB)
    python -m benchmarks.sizes --tables    (the table anew from the kept rows)

The settings are those of the default preset but for the amount of work (`FEW`), in float32, at 256 px for the large models (128 for the embedded one).
It shows that nothing in the preset carries the size of a model: how long RAM is after as many updates, which factor the projection takes, what it
reaches. Random weights draw noise, so nothing is said of images. Results are kept in docs/results/sizes.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from benchmarks.fullsize import CONCEPT, pipeline
from benchmarks.provenance import DOCS, provenance
from benchmarks.tables import fill, table
from respodiff.data.run_folder import write_atomic
from respodiff.pipelines.loading import load_pipeline
from respodiff.training.config import TrainConfig
from respodiff.training.respodiff import fit

RESULTS = DOCS / "results" / "sizes.json"
MODELS = {"embedded": 0, "sd14": 256, "sdxl": 256}
"""Name -> pixels of an image; 0 is the model's own."""
FEW: dict[str, Any] = {"iterations": 4, "refresh_every": 2, "batch": 2, "rollouts": 2, "rollout_batch": 2, "steps": 2}


def measure(name: str) -> dict[str, Any]:
    """The row of a model."""
    pipe = load_pipeline("embedded") if name == "embedded" else pipeline(name, "cpu", "float32")
    config = TrainConfig.preset("default", **FEW, height=MODELS[name], width=MODELS[name])
    module = fit(pipe, CONCEPT, config)
    verdict, numbers = module.header.verdict, module.ram.numel()
    row: dict[str, Any] = {"model": name, "parameters_million": round(sum(p.numel() for p in pipe.unet.parameters()) / 1e6)}
    row |= {
        "site": list(module.shape),
        "rms": module.header.h_norm / numbers**0.5,
        "trained_norm": verdict["relative_norm"] / verdict["factor"],
    }
    return row | dict(verdict)


def as_table(result: dict[str, Any]) -> str:
    heads = [
        "UNet",
        "million weights",
        "h",
        "RMS of h",
        r"\|r\| / \|h\| as trained",
        "factor",
        r"\|r\| / \|h\|",
        "projection reached",
        "linearity",
    ]
    lines = [
        [r["model"], str(r["parameters_million"]), " x ".join(map(str, r["site"]))]
        + [f"{r[key]:.3g}" for key in ("rms", "trained_norm", "factor", "relative_norm", "reached", "linearity")]
        for r in result["rows"]
    ]
    made = f"`{result['command']}` at commit {result['commit']}, torch {result['torch']}: preset `default` with {', '.join(f'{k} {v}' for k, v in FEW.items())}.\n\n"
    return made + table(heads, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="write the table, run nothing")
    parser.add_argument("--row", choices=list(MODELS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        print(json.dumps(measure(arguments.row)), flush=True)
        return
    if not arguments.tables:
        rows = []
        for name in MODELS:  # a process each, so that the memory of one is free for the next
            done = subprocess.run([sys.executable, "-m", "benchmarks.sizes", "--row", name], stdout=subprocess.PIPE, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
        write_atomic(RESULTS, json.dumps(provenance("python -m benchmarks.sizes") | {"rows": rows}, indent=1) + "\n")
    fill(DOCS / "results.md", "sizes", as_table(json.loads(RESULTS.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
