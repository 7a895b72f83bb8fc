"""Every pipeline with every feature, every text-to-image class with every method: runs the checks of `tests.contracts` on tiny models and fills
docs/backbones.md.

python -m benchmarks.backbones            (about 40 minutes on 2 CPU cores; stops at the first wrong cell, goes on where it was)
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
from tests.contracts.method_checks import acts
from tests.contracts.pipeline_checks import CHECKS, outcome
from tests.tiny_models import TINY_PIPELINES

from benchmarks.provenance import DOCS
from benchmarks.tables import fill, table
from respodiff.methods.registry import NAMES
from respodiff.pipelines.registry import PIPELINES

RESULTS = DOCS / "results" / "backbones.json"
METHODS = {name: acts(name) for name in NAMES}
Rows = Mapping[str, Mapping[str, Sequence[str]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="run all checks, write nothing")
    parser.add_argument("--out", type=Path, default=Path("runs/backbones.json"), help="rows that are done; goes on where it was")
    parser.add_argument("--only", nargs="+", default=[*TINY_PIPELINES], metavar="NAME", help="rows that are run; others stay as they are")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    others = _done(RESULTS) if args.only != [*TINY_PIPELINES] else {}
    done = {} if args.check else {name: row for name, row in others.items() if name not in args.only} | _done(args.out)
    for name in args.only:
        make = TINY_PIPELINES[name]
        checks = {**CHECKS, **(METHODS if name in PIPELINES and not PIPELINES[name].images else {})}
        row = done.setdefault(name, {})
        for column in [column for column in checks if column not in row]:
            row[column] = outcome(checks[column], make)
            print(f"{name}: {column}: {' '.join(row[column])}", flush=True)
        if not args.check:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps({"versions": versions(), "rows": done}), encoding="utf-8")
    if missing := [name for name in TINY_PIPELINES if not done.get(name, {}).keys() >= CHECKS.keys()]:
        print(f"the page stays as it is until these rows are run: {' '.join(missing)}")
        return
    rows = {name: {column: done[name][column] for column in CHECKS} for name in TINY_PIPELINES}
    methods = {name: {column: done[name][column] for column in METHODS} for name in TINY_PIPELINES if METHODS.keys() <= done[name].keys()}
    counts = {word: sum(cell[0] == word for row in rows.values() for cell in row.values()) for word in ("works", "refused", "skipped")}
    print(f"{versions()}: {counts}")
    if args.check:
        return
    about = {"command": "python -m benchmarks.backbones", **versions(), "counts": counts, "rows": rows, "methods": methods}
    RESULTS.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    page()


def _done(path: Path) -> dict[str, dict[str, Sequence[str]]]:
    """Rows of an earlier run, or of the page, with these versions and columns."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if found.get("versions", {key: found.get(key) for key in versions()}) != versions():
        return {}
    known, methods = {*CHECKS, *METHODS}, found.get("methods", {})
    rows = {name: {**row, **methods.get(name, {})} for name, row in found["rows"].items()}
    return {name: {column: cell for column, cell in row.items() if column in known} for name, row in rows.items()}


def versions() -> dict[str, str]:
    return {"diffusers": diffusers.__version__, "transformers": transformers.__version__, "torch": torch.__version__}


def page() -> None:
    """Fill docs/backbones.md from what was measured."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    head = "{diffusers} with transformers {transformers} and torch {torch}".format(**found)
    counts = found["counts"]
    text = f"diffusers {head}: {counts['works']} cells work, {counts['refused']} are refused, {counts['skipped']} do not apply or could not be run.\n\n"
    fill(DOCS / "backbones.md", "table", text + as_table(found["rows"]) + "\n" + notes(found["rows"]))
    fill(DOCS / "backbones.md", "methods", as_table(found["methods"]) + "\n" + notes(found["methods"]))
    if (path := DOCS / "results" / "fullsize.json").is_file():
        fill(DOCS / "results.md", "fullsize", full_size(json.loads(path.read_text(encoding="utf-8"))))


def as_table(rows: Rows) -> str:
    """Pipelines down, features across; a number points to a note."""
    numbers = _numbered(rows)
    signs = {"works": "yes", "refused": "refused", "skipped": "-"}
    lines = []
    for name, row in rows.items():
        cells = [signs[word] + (f" [{numbers[note]}]" if note in numbers else "") for word, note in row.values()]
        lines.append([name, *cells])
    return table(["pipeline", *next(iter(rows.values()))], lines)


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
    made = [{**found, **row} for row in found["rows"]]  # files of earlier versions say it once for all rows
    on = " and ".join(dict.fromkeys(f"torch {row['torch']}, {row['cpu_cores']} CPU cores" for row in made))
    return f"{on}, `{found['command']}`.\n\n" + table(header, lines)


if __name__ == "__main__":
    main()
