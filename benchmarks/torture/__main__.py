"""Runs all trials in two processes, prints what failed, and writes the figures and the table of docs/reliability.md."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.provenance import DOCS, provenance, say
from benchmarks.tables import fill, table
from benchmarks.torture import damage, kills, texts
from benchmarks.torture.trials import Tally, measured

KINDS: dict[str, tuple[Callable[[Path, random.Random, int], Tally], int, str]] = {
    "kills_train": (kills.train, 50, "`train`, killed at a random moment, resumed: same bytes"),
    "kills_generate": (kills.generate, 50, "`generate`, killed at a random moment, repeated: same rows and images"),
    "prompts": (texts.prompts, 300, "`generate` of prompts of any characters, twice"),
    "two_writers": (kills.two_writers, 20, "two processes that write to one place"),
    "run_folders": (damage.run_folders, 300, "damaged run folders: `report`, `evaluate`, labels, resume"),
    "modules": (damage.modules, 5000, "damaged and forged module files, read or used"),
    "tables": (texts.tables, 1500, "tables, and files of concepts, settings and errors"),
}
"""The longest first: trials, their number (of folders for run folders), and what they are."""


def as_table(kinds: Mapping[str, Mapping[str, Any]]) -> str:
    columns = ("trials", "right", "refused", "failed", "cpu_seconds")
    header = ["what", *(name.replace("cpu_seconds", "CPU seconds") for name in columns)]
    return table(header, [[about, *(f"{kinds[name].get(c, 0):,}" for c in columns)] for name, (_, _, about) in KINDS.items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", type=float, default=1.0, help="share of the trials")
    parser.add_argument("--kind", action="append", choices=[*KINDS], help="only these; repeat")
    given = parser.parse_args()
    began, found = time.monotonic(), dict[str, Any]()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn, max_tasks_per_child=1) as pool:
        waiting = {
            pool.submit(measured, KINDS[kind][0], max(4, round(KINDS[kind][1] * given.part)), f"{given.seed} {kind}"): kind
            for kind in given.kind or KINDS
        }
        for done in as_completed(waiting):
            found[kind := waiting[done]] = row = done.result()
            say(f"{kind}: {json.dumps({k: v for k, v in row.items() if k != 'failures'})}")
            for line in row["failures"]:
                say(f"  {line!a}")
    total = {key: round(sum(row[key] for row in found.values()), 1) for key in ("trials", "failed", "cpu_seconds")}
    total["seconds"] = round(time.monotonic() - began, 1)
    say(f"all: {json.dumps(total)}")
    if not given.kind and given.part == 1:
        about = provenance("python -m benchmarks.torture") | {"seed": given.seed} | total
        kinds = {kind: found[kind] for kind in KINDS}
        (DOCS / "results" / "torture.json").write_text(json.dumps(about | {"kinds": kinds}, indent=1) + "\n", encoding="utf-8")
        said = f"`make torture` at commit {about['commit']}, seed {given.seed}: {total['trials']:,} trials, {total['failed']} failed; "
        said += f"{total['cpu_seconds']:.0f} CPU seconds, {total['seconds']:.0f} seconds in two processes on {about['cpu_cores']} cores."
        fill(DOCS / "reliability.md", "torture", f"{said}\n\n{as_table(kinds)}")
    sys.exit(int(total["failed"] > 0))


if __name__ == "__main__":
    main()
