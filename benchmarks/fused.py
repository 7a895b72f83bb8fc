"""Steering beside a fused module on the embedded model: what it costs that a bias cannot tell the unconditional rows apart.

    python -m benchmarks.fused --out runs/fused            (about 8 minutes on 2 CPU cores; goes on where it was)

Modules of woman with one number a channel, and of the bottleneck's own shape beside them, drawn at guidance 3 from the same noise. A
fused module acts on every image, so each concept is a run of its own; the figure is the share in which the judge sees it. Fills
docs/backbones.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables import fill, table
from respodiff import concept, evaluate, fit, generate, load, load_pipeline
from respodiff.data.prompt_sets import suite
from respodiff.data.run_folder import RunFolder
from respodiff.evaluation.metrics.fairness import wilson
from respodiff.generation.config import GenerateConfig
from respodiff.steering.fuse import energy_lost, fused
from respodiff.steering.module import ConceptModule
from respodiff.training.config import TrainConfig

DOCS = Path(__file__).parent.parent / "docs"
RESULTS = DOCS / "results" / "fused.json"
WORDS = ("woman",)
GROUPS = ("doctor", "nurse", "ceo", "secretary", "mechanic", "guard", "developer", "teacher")
IMAGES = 6


def trained(pipe: Any, word: str, per_channel: bool, folder: Path) -> ConceptModule:
    """A module, trained if it is not there."""
    path = folder / f"{word}-{'channel' if per_channel else 'spatial'}.safetensors"
    if not path.is_file():
        fit(pipe, concept(word), TrainConfig.preset("neutral", per_channel=per_channel)).save(path)
    return load(path)


def seen(pipe: Any, word: str, modules: Sequence[ConceptModule], scale: float, fuse: bool, folder: Path) -> dict[str, Any]:
    """Share of images in which the judge sees ``word``, share that keeps its subject, mean distance to the plain images (0 to 255)."""
    prompts = [p for p in suite("occupations") if p.group in GROUPS]
    context = fused(pipe, modules, scale=scale) if fuse else nullcontext()
    drawn = [] if fuse else list(modules)
    with context:
        for _ in generate(pipe, prompts, drawn, GenerateConfig(images=IMAGES, scale=scale), out=folder):
            pass
    result = evaluate(folder, attributes=["gender"])
    counts = [row[word] for row in result["counts"]["gender"].values()]
    n = sum(sum(row.values()) for row in result["counts"]["gender"].values())
    share = wilson(sum(counts), n)
    return {
        "share": [share.mean, share.low, share.high],
        "n": n,
        "kept": result["subject_accuracy"]["mean"],
        "drift": drift(folder, folder.parent / "plain"),
    }


def drift(run: Path, plain: Path) -> float:
    """Mean absolute difference of the images of two runs."""
    from PIL import Image

    files = [{r.id: Path(r.file) for r in RunFolder(folder).records()} for folder in (run, plain)]
    values = []
    for key, file in files[0].items():
        a, b = (np.asarray(Image.open(folder / name).convert("RGB"), float) for folder, name in ((run, file), (plain, files[1][key])))
        values.append(np.abs(a - b).mean())
    return float(np.mean(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/fused"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    pipe = load_pipeline("embedded")
    whole = {w: trained(pipe, w, False, out) for w in WORDS}
    flat = {w: trained(pipe, w, True, out) for w in WORDS}
    mean = {w: m.channels() for w, m in whole.items()}
    variants: list[tuple[str, dict[str, ConceptModule], float, bool]] = [
        ("steered, the bottleneck's shape", whole, 1.0, False),
        ("steered, one number a channel", flat, 1.0, False),
        ("steered, mean over positions of the first", mean, 1.0, False),
        ("fused, one number a channel, scale 1", flat, 1.0, True),
        ("fused, one number a channel, scale 3 (the guidance)", flat, 3.0, True),
    ]
    rows: dict[str, Any] = {"plain": {w: seen(pipe, w, [], 1.0, False, out / "plain") for w in WORDS}}
    for i, (name, modules, scale, fuse) in enumerate(variants):
        rows[name] = {w: seen(pipe, w, [modules[w]], scale, fuse, out / f"{i}-{w}") for w in WORDS}
        print(name, rows[name], flush=True)
    lost = {w: energy_lost(m) for w, m in whole.items()}
    RESULTS.write_text(json.dumps({"command": "python -m benchmarks.fused", "energy_lost": lost, "rows": rows}, indent=1) + "\n")
    fill(DOCS / "backbones.md", "fused", as_table(rows, lost))


def as_table(rows: dict[str, Any], lost: dict[str, float]) -> str:
    def cell(r: dict[str, Any]) -> list[str]:
        mean, low, high = r["share"]
        return [f"{mean:.2f} [{low:.2f}, {high:.2f}]", f"{r['kept']:.2f}", f"{r['drift']:.1f}"]

    lines = [[name, *(c for w in WORDS for c in cell(row[w]))] for name, row in rows.items()]
    n = rows["plain"]["woman"]["n"]
    loss = ", ".join(f"{w} {share:.0%}" for w, share in lost.items())
    head = [f"{what} {w}" for w in WORDS for what in ("judge sees", "kept,", "drift,")]
    return (
        f"n = {n} images a cell, guidance 3, same noise, 95 % intervals; *drift*: mean difference to the plain images in grey levels of 255. "
        f"Of the modules of the bottleneck's shape, the mean over positions loses {loss} of |r + s|^2.\n\n" + table(["", *head], lines)
    )


if __name__ == "__main__":
    main()
