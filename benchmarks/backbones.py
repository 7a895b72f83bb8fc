"""Every pipeline of the table with every feature: runs the checks of `tests.contracts.pipeline_checks` on tiny models and fills docs/backbones.md.

python -m benchmarks.backbones            (about 15 minutes on 2 CPU cores; stops at the first wrong cell, goes on where it was)
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tests.contracts.pipeline_checks import CHECKS, outcome
from tests.tiny_models import TINY_PIPELINES

from benchmarks.provenance import DOCS
from benchmarks.tables import fill, table

RESULTS = DOCS / "results" / "backbones.json"
Rows = Mapping[str, Mapping[str, Sequence[str]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="run all checks, write nothing")
    parser.add_argument("--out", type=Path, default=Path("runs/backbones.json"), help="rows that are done; goes on where it was")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = {} if args.check else _done(args.out)
    for name, make in TINY_PIPELINES.items():
        if name in rows:
            continue
        row: dict[str, Sequence[str]] = {}
        for column, cell in CHECKS.items():
            row[column] = outcome(cell, make)
            print(f"{name}: {column}: {' '.join(row[column])}", flush=True)
        rows[name] = row
        if not args.check:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps({"versions": versions(), "rows": rows}), encoding="utf-8")
    counts = {word: sum(cell[0] == word for row in rows.values() for cell in row.values()) for word in ("works", "refused", "skipped")}
    print(f"{versions()}: {counts}")
    if args.check:
        return
    ordered = {name: rows[name] for name in TINY_PIPELINES}
    about = {"command": "python -m benchmarks.backbones", **versions(), "counts": counts, "rows": ordered}
    RESULTS.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    page()


def _done(path: Path) -> dict[str, dict[str, Sequence[str]]]:
    """Rows of an earlier run with these versions and columns."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if found.get("versions") != versions():
        return {}
    return {name: row for name, row in found["rows"].items() if list(row) == list(CHECKS)}


def versions() -> dict[str, str]:
    return {"diffusers": diffusers.__version__, "transformers": transformers.__version__, "torch": torch.__version__}


def page() -> None:
    """Fill docs/backbones.md from what was measured."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    head = "{diffusers} with transformers {transformers} and torch {torch}".format(**found)
    counts = found["counts"]
    text = f"diffusers {head}: {counts['works']} cells work, {counts['refused']} are refused, {counts['skipped']} do not apply or could not be run.\n\n"
    fill(DOCS / "backbones.md", "table", text + as_table(found["rows"]) + "\n" + notes(found["rows"]))
    if (path := DOCS / "results" / "fullsize.json").is_file():
        fill(DOCS / "backbones.md", "fullsize", full_size(json.loads(path.read_text(encoding="utf-8"))))


def as_table(rows: Rows) -> str:
    """Pipelines down, features across; a number points to a note."""
    numbers = _numbered(rows)
    signs = {"works": "yes", "refused": "refused", "skipped": "-"}
    lines = []
    for name, row in rows.items():
        cells = [signs[word] + (f" [{numbers[note]}]" if note in numbers else "") for word, note in row.values()]
        lines.append([name, *cells])
    return table(["pipeline", *CHECKS], lines)


def notes(rows: Rows) -> str:
    return "\n".join(f"[{number}] {note}  " for note, number in _numbered(rows).items()) + "\n"


def _numbered(rows: Rows) -> dict[str, int]:
    found = dict.fromkeys(note for row in rows.values() for _, note in row.values() if note)
    return {note: i + 1 for i, note in enumerate(found)}


def full_size(found: Mapping[str, Any]) -> str:
    header = ["model", "device, dtype", "UNet parameters", "site", "training step", "image, one step", "peak MiB: built, step, image"]
    lines = [
        [
            {"sd14": "Stable Diffusion 1.4, 512 px", "sdxl": "SDXL, 1024 px"}[r["model"]],
            f"{r['device']}, {r['dtype']}",
            f"{r['parameters_million']} M",
            " x ".join(map(str, r["site"])),
            f"{r['seconds_step']:.0f} s ({r['forwards_step']} forwards and a backward)",
            f"{r['seconds_image']:.0f} s",
            f"{r['mib_built']}, {r['mib_step']}, {r['mib_image']}",
        ]
        for r in found["rows"]
    ]
    return f"torch {found['torch']}, {found['cpu_cores']} CPU cores, `{found['command']}`.\n\n" + table(header, lines)


if __name__ == "__main__":
    main()
