"""Runs all trials, prints what failed, and writes the figures."""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.provenance import DOCS, provenance, say
from benchmarks.torture import damage, kills, texts
from benchmarks.torture.trials import Tally

KINDS: dict[str, Callable[[Path, random.Random, float], list[Tally]]] = {
    "kills": lambda place, rng, part: kills.trials(place, rng, round(50 * part), max(4, round(20 * part))),
    "modules": lambda place, rng, part: [damage.modules(place, rng, round(5000 * part))],
    "run_folders": lambda place, rng, part: [damage.run_folders(place, rng, round(300 * part))],
    "tables": lambda place, rng, part: [texts.tables(place, rng, round(1500 * part))],
    "prompts": lambda place, rng, part: [texts.prompts(place, rng, round(300 * part))],
}


MEMORY = Path("/dev/shm")
"""A folder in memory, where there is one: waiting for the disk at every image would take an hour, and a kill loses nothing that a disk keeps."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DOCS / "results" / "torture.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", type=float, default=1.0, help="share of the trials")
    parser.add_argument("--kind", action="append", choices=[*KINDS], help="only these; repeat")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ.pop("RESPODIFF_TRACEBACK", None)
    found: dict[str, Any] = {}
    for name in given.kind or KINDS:
        with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as place:
            for tally in KINDS[name](Path(place), random.Random(f"{given.seed} {name}"), given.part):
                found[tally.name] = tally.to_json()
                say(f"{tally.name}: {json.dumps({k: v for k, v in found[tally.name].items() if k != 'failures'})}")
                for line in tally.failures:
                    say(f"  {line!a}")
    total = {key: round(sum(row[key] for row in found.values()), 1) for key in ("trials", "failed", "seconds")}
    say(f"all: {json.dumps(total)}")
    if not given.kind:
        about = provenance("python -m benchmarks.torture") | {"seed": given.seed, "part": given.part}
        given.out.write_text(json.dumps({**about, **total, "kinds": found}, indent=1) + "\n", encoding="utf-8")
    sys.exit(int(total["failed"] > 0))


if __name__ == "__main__":
    main()
