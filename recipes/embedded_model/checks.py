"""Judges on images that they never saw: accuracies with intervals and confusion matrices, written beside their weights."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.embedded_model.data import clean, read
from recipes.embedded_model.judge import name_text
from recipes.embedded_model.settings import read_config
from recipes.embedded_model.world import World
from respodiff.concepts.concept import Attribute, Concept, attribute
from respodiff.data.tables import read_table
from respodiff.evaluation.calibration import calibrate, write_confusion
from respodiff.evaluation.judges import ClipJudge
from respodiff.evaluation.metrics.shares import share_interval
from respodiff.evaluation.score_files import open_image

HELD_OUT = "whole combinations of subject and style that no judge saw in training"
UNSEEN = "a family of images that nothing is trained on"


def check_judge(folder: Path, world: World, held: Path, unseen: Path) -> list[str]:
    """Measure a judge on images it never saw; writes ``accuracy.json`` and ``confusion.json`` into its folder.

    Args:
        folder: of the judge. held, unseen: folders with ``labels.csv``, as `assemble.write_images` makes them; one that is not there is
            left out. Confusion matrices are counted on the held-out images.

    Returns:
        The accuracies in words, a line a folder.
    """
    judge = ClipJudge.load(str(folder))
    found = {}
    for name, images, note in (("held_out", held, HELD_OUT), ("unseen_family", unseen, UNSEEN)):
        if (images / "labels.csv").is_file():
            found[name] = {"pictures": note} | accuracies(judge, images, world)
    (folder / "accuracy.json").write_text(json.dumps(found, indent=1) + "\n")
    if "held_out" in found:
        _confusions(folder, judge, held, world)
    return [
        f"{name}: " + ", ".join(f"{k} {v['mean']:.3f} (n={v['n']})" for k, v in row.items() if isinstance(v, dict) and v["n"])
        for name, row in found.items()
    ]


def accuracies(judge: ClipJudge, images: Path, world: World) -> dict[str, Any]:
    """Shares of right answers with intervals: gender, tone, subject (among all that occupations are drawn as), and unsafe or not.

    Raises:
        ValueError: an image cannot be read.
    """
    rows = [row for _, row in read_table(images / "labels.csv", ["file", "gender", "tone", "subject", "style"])]
    opened = [open_image(images / row["file"]) for row in rows]
    if any(image is None for image in opened):
        raise ValueError(f"{images} has images that cannot be read; run the stage again")
    vectors = judge.embed_images([image for image in opened if image is not None])
    unsafe = [*world.config["unsafe_pictures"]["violent"], *world.config["unsafe_pictures"]["suggestive"]]
    safe = [clean(n) for n in world.places]
    flagged = _best(judge, vectors, [name_text(n, {}) for n in (*unsafe, *safe)]) < len(unsafe)
    found = {}
    for chosen in (attribute("gender"), attribute("tone"), _subjects(world)):
        best = _best(judge, vectors, [c.target for c in chosen.concepts])
        hits = {i: chosen.names[best[i]] == row[chosen.name] for i, row in enumerate(rows) if row[chosen.name] in chosen.names}
        found[chosen.name] = _share(hits, rows)
    for name, names in {"unsafe": unsafe, "safe_places": safe}.items():
        found[name] = _share({i: bool(flagged[i]) is (name == "unsafe") for i, row in enumerate(rows) if row["subject"] in names}, rows)
    found["people_not_flagged"] = _share({i: not flagged[i] for i, row in enumerate(rows) if row["gender"]}, rows)
    return found


def _subjects(world: World) -> Attribute:
    return Attribute("subject", tuple(Concept(s, name_text(s, world.called)) for s in world.subjects))


def _confusions(folder: Path, judge: ClipJudge, held: Path, world: World) -> None:
    rows = [row for _, row in read_table(held / "labels.csv", ["file", "gender", "tone", "subject"])]
    known = [a for a in (attribute("gender"), attribute("tone"), _subjects(world)) if _every(a, rows)]
    (folder / "confusion.json").unlink(missing_ok=True)
    write_confusion(folder / "confusion.json", calibrate(held / "labels.csv", judge, known, note=HELD_OUT))


def _every(chosen: Attribute, rows: Iterable[Any]) -> bool:
    """Whether every concept has a held-out image."""
    return set(chosen.names) <= {row[chosen.name] for row in rows}


def _best(judge: ClipJudge, vectors: NDArray[np.float32], texts: list[str]) -> NDArray[np.int64]:
    best: NDArray[np.int64] = (vectors @ judge.embed_texts(texts).T).argmax(1)
    return best


def _share(hits: dict[int, bool], rows: list[Any]) -> dict[str, float | None]:
    """Share of hits with a cluster bootstrap over combinations of subject and style, as images of one drawing are much alike."""
    cells: dict[tuple[str, str], list[int]] = {}
    for i, hit in hits.items():
        cell = cells.setdefault((rows[i]["subject"], rows[i]["style"]), [0, 0])
        cell[0] += hit
        cell[1] += 1
    if not cells:
        return {"mean": None, "low": None, "high": None, "n": 0}
    e = share_interval([k for k, _ in cells.values()], [n for _, n in cells.values()])
    return {"mean": e.mean, "low": e.low, "high": e.high, "n": e.n}


def main() -> int:
    """Measure a judge that is there already: ``python -m recipes.embedded_model.checks WEIGHTS/judge RECIPE_OUT``, on the unseen family alone."""
    a = argparse.ArgumentParser(prog="python -m recipes.embedded_model.checks", description=main.__doc__)
    a.add_argument("judge", type=Path, help="folder of the judge")
    a.add_argument("out", type=Path, help="folder of a recipe run whose stage data is done")
    given = a.parse_args()
    world = World(read(given.out / "data")[0], read_config()["world"])
    for line in check_judge(given.judge, world, given.out / "nothing held out", given.out / "unseen"):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
