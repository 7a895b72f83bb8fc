"""Known truth: labelled images of a chosen mixture go through import, judge and evaluation, and the mixture must come back."""

from __future__ import annotations

import csv
import json
import random
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.provenance import ROOT, say
from respodiff.concepts.concept import attribute
from respodiff.data.import_images import import_folder
from respodiff.evaluation.evaluate import evaluate
from respodiff.evaluation.judges import UNKNOWN, ClipJudge, choose, class_texts
from respodiff.evaluation.metrics import judge_errors, shares
from respodiff.evaluation.score_files import open_image

LABELLED = ROOT / "benchmarks" / "data" / "labelled"
MIXTURES = (0.10, 0.50, 0.93)  # share of men
SIZES = (60, 120)  # images in a set
SETS, MANY = 200, 4000
MARGIN = 2.0  # labels that lead by less (100 x cosine) count as unknown, where near ties are left out
KINDS = ("as judged", "near ties unknown", "corrected")


def labelled(column: str, classes: Sequence[str]) -> list[tuple[str, str]]:
    """(file, label) of every labelled image of these classes."""
    with (LABELLED / "labels.csv").open(encoding="utf-8") as handle:
        return [(row["file"], row[column]) for row in csv.DictReader(handle) if row[column] in classes]


def halves(rows: Sequence[tuple[str, str]], seed: int = 0) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Two halves, the same number of each class in both: one to learn the judge's errors from, one to draw sets from."""
    mixed = sorted(rows)
    random.Random(seed).shuffle(mixed)
    by_class = {label: [row for row in mixed if row[1] == label] for _, label in mixed}
    return [r for c in by_class.values() for r in c[::2]], [r for c in by_class.values() for r in c[1::2]]


def draw(rows: Sequence[tuple[str, str]], proportions: dict[str, float], n: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """A set of n images whose classes are drawn with the given chances."""
    by_class = {c: [row for row in rows if row[1] == c] for c in proportions}
    names = rng.choice(list(proportions), p=list(proportions.values()), size=n)
    return [by_class[c][rng.integers(len(by_class[c]))] for c in names]


def exact(rows: Sequence[tuple[str, str]], proportions: dict[str, float], n: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """A set of n images that holds each class in its share, to the nearest image."""
    counts = {name: round(n * share) for name, share in proportions.items()}
    by_class = {c: [row for row in rows if row[1] == c] for c in proportions}
    return [by_class[c][rng.integers(len(by_class[c]))] for c, k in counts.items() for _ in range(k)]


def known_truth(judge: ClipJudge, only: str = "") -> dict[str, Any]:
    """Gender and tone: recovered mixtures of real run folders, and coverage over simulated sets; of one mixture if ``only`` names it."""
    out: dict[str, Any] = {}
    jobs = [("gender", {"woman": 1 - m, "man": m}) for m in MIXTURES] + [("tone", {"light": 0.72, "medium": 0.18, "dark": 0.10})]
    for name, proportions in jobs:
        chosen = attribute(name)
        learn, use = halves(labelled(name, chosen.names))
        seen = perceive(judge, chosen, [file for file, _ in learn + use])
        matrix = judge_errors.confusion_matrix([c for _, c in learn], [seen[0][f] for f, _ in learn], chosen.names)[:, :-1]
        label = f"{name} {', '.join(f'{c} {s:.2f}' for c, s in proportions.items())}"
        for n in SIZES:
            if only not in ("", f"{label}, n = {n}"):
                continue
            out[f"{label}, n = {n}"] = {
                "truth": proportions,
                "n": n,
                "errors": {"learned on": len(learn), "matrix": matrix.tolist()},
                "through files": through_files(judge, chosen, use, proportions, matrix.tolist(), n),
                "coverage": {str(k): coverage(chosen.names, learn + use, seen, proportions, k, n) for k in (SETS, MANY)},
            }
            say(f"{label}, n = {n}: {json.dumps(out[f'{label}, n = {n}']['coverage'])}")
    return out


def perceive(judge: ClipJudge, chosen: Any, files: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """What the judge sees in each file, and the same with near ties (`MARGIN`) as unknown."""
    images = [open_image(LABELLED / file) for file in files]
    logits = judge.logits([image for image in images if image is not None], class_texts(chosen.concepts))
    best, margins = choose(logits)
    labels = {file: chosen.names[i] for file, i in zip(files, best, strict=True)}
    return labels, {file: labels[file] if margin >= MARGIN else UNKNOWN for file, margin in zip(files, margins, strict=True)}


def through_files(
    judge: ClipJudge, chosen: Any, use: Sequence[tuple[str, str]], proportions: dict[str, float], matrix: Any, n: int
) -> dict[str, Any]:
    """One set as files: folder and CSV, imported, evaluated."""
    rows = exact(use, proportions, n, np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "images"
        source.mkdir()
        with (Path(folder) / "table.csv").open("w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(["file", "prompt", "group"])
            for i, (file, _) in enumerate(rows):
                shutil.copy(LABELLED / file, source / f"{i:04d}.webp")
                writer.writerow([f"{i:04d}.webp", "a person", "person"])
        run = import_folder(source, Path(folder) / "table.csv", Path(folder) / "run")
        entry = {"classes": list(chosen.names), "matrix": [[*row, 0] for row in matrix], "n": 0, "note": ""}
        entry |= {"targets": {c.name: c.target for c in chosen.concepts}, "class_template": "{concept}", "min_margin": 0.0}
        found = evaluate(run, judge, [chosen], confusion={judge.digest: {chosen.name: entry}})
        certain = evaluate(run, judge, [chosen], min_margin=MARGIN)
    drawn = {c: sum(label == c for _, label in rows) / n for c in proportions}
    as_judged, confident = found.to_json(), certain.to_json()
    shown = (as_judged["proportions"][chosen.name], confident["proportions"][chosen.name], as_judged["corrected"][chosen.name])
    statistics = dict(zip(KINDS, shown, strict=True))
    inside = {k: {c: v[c]["low"] <= proportions[c] <= v[c]["high"] for c in proportions} for k, v in statistics.items()}
    return {"drawn": drawn, **statistics, "inside": inside}


def coverage(
    names: Sequence[str],
    rows: Sequence[tuple[str, str]],
    seen: tuple[dict[str, str], dict[str, str]],
    proportions: dict[str, float],
    sets: int,
    n: int,
) -> dict[str, float]:
    """Share of simulated sets whose 95 % interval holds the true share of the last concept: the chances that sets are drawn with.

    The labelled images stand for all there are: a set is drawn from them, and for every set as many images as are in one half are drawn
    anew to count the judge's errors on. The intervals are those of the evaluator for one group of prompts.
    """
    rng, last, (labels, margin) = np.random.default_rng(sets + n), names[-1], seen
    half = len(rows) // len(names) // 2
    hits = dict.fromkeys(KINDS, 0)
    for _ in range(sets):
        learn = [row for c in names for row in exact(rows, {c: 1.0}, half, rng)]
        matrix = judge_errors.confusion_matrix([c for _, c in learn], [labels[f] for f, _ in learn], names)[:, :-1]
        files = [f for f, _ in draw(rows, proportions, n, rng)]
        plain, certain = ([table[f] for f in files] for table in (labels, margin))
        known = [label for label in certain if label != UNKNOWN]
        counts = [plain.count(c) for c in names]
        found = (
            shares.share_interval([counts[-1]], [n]),
            shares.share_interval([known.count(last)], [len(known)]),
            judge_errors.corrected_proportions([counts], matrix, n_bootstrap=500, seed=int(rng.integers(1 << 30)))[-1],
        )
        for kind, e in zip(KINDS, found, strict=True):
            hits[kind] += e.low <= proportions[last] <= e.high
    return {kind: k / sets for kind, k in hits.items()}
