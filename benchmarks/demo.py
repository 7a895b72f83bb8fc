"""Times ``respodiff demo`` and its parts, each run in a process of its own, and the first images of ``respodiff generate``.

    python -m benchmarks.demo                (about 12 minutes of an idle machine of 2 cores)
    python -m benchmarks.demo --tables       (the table anew from the kept result)

Results are kept in docs/results/demo.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.provenance import DOCS, provenance, say
from benchmarks.tables import fill, table

RESULTS = DOCS / "results" / "demo.json"
GENERATE = ("generate", "--prompt", "a doctor", "--module", "gender", "--images", "4")


def ran(*arguments: str) -> tuple[dict[str, Any], float]:
    """The JSON line of a command, and its seconds from the start of the process to its end."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "respodiff", *arguments, "--json"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found, time.perf_counter() - began


def measured(tries: int) -> dict[str, Any]:
    """So many demos and so many runs of `GENERATE`, in turns."""
    demos, first = [], []
    for n in range(tries):
        with tempfile.TemporaryDirectory() as folder:
            found, seconds = ran("demo", "--out", f"{folder}/demo")
            keys = ("before", "after", "trained", "parts", "train_unet_forwards", "first_image_seconds")
            demos.append({"seconds": seconds} | {key: found[key] for key in keys})
            first.append(ran(*GENERATE, "--out", f"{folder}/run")[1])
        say(f"{n + 1} of {tries}: demo {seconds:.0f} s, generate {first[-1]:.1f} s")
    return {"load_before": os.getloadavg()[0], "demos": demos, "generate": first}


def spread(values: list[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def as_table(result: Mapping[str, Any]) -> str:
    """Median and range of the whole and its parts."""
    demos = result["demos"]
    rows = [["whole", spread([d["seconds"] for d in demos])], ["first image", spread([d["first_image_seconds"] for d in demos])]]
    rows += [[name, spread([d["parts"][name] for d in demos])] for name in demos[0]["parts"]]
    rows += [[f"`respodiff {' '.join(GENERATE)}`".replace("a doctor", '"a doctor"'), spread(result["generate"])]]
    made = (
        f"`{result['command']}` at commit {result['commit']}: seconds, median and range of {len(demos)} runs of `respodiff demo`, "
        f"{result['cpu_cores']} cores, torch {result['torch']}. Training takes {demos[0]['train_unet_forwards']:,} evaluations of the UNet.\n\n"
    )
    return made + table(["", "seconds"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file to write; the page is filled from the default one alone")
    parser.add_argument("--tables", action="store_true", help="write the table, run nothing")
    arguments = parser.parse_args()
    if not arguments.tables:
        result = provenance(f"python -m benchmarks.demo --tries {arguments.tries}") | measured(arguments.tries)
        arguments.results.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    found = json.loads(arguments.results.read_text(encoding="utf-8"))
    print(as_table(found))
    if arguments.results == RESULTS:
        fill(DOCS / "results.md", "demo", as_table(found))


if __name__ == "__main__":
    main()
