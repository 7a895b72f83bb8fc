"""Can the evaluator be trusted, and is it fast: every figure of docs/measuring.md comes from here.

    python -m benchmarks.measuring          (about 10 minutes on 2 CPU cores)

Known truth: sets of labelled pictures of a chosen mixture go through import, judge and evaluation, and the mixture must come back within
its interval; coverage is counted over simulated sets. The paper's protocol: floors at its sample sizes. Speed: 2,000 pictures from file
to report, beside transformers' own zero-shot pipeline on the same pictures and model; 30,000 rows from kept scores to report.
Writes docs/results/measuring.json and the tables of docs/measuring.md.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageEnhance

import respodiff
from benchmarks.tables import fill, table
from respodiff.concepts import attribute
from respodiff.evaluation import evaluate
from respodiff.imports import import_folder
from respodiff.judges import ClipJudge, judge_folder
from respodiff.metrics import correction, fairness
from respodiff.policies import exact_counts
from respodiff.scores import open_picture

ROOT = Path(__file__).resolve().parent.parent
LABELLED = ROOT / "benchmarks" / "data" / "labelled"
MIXTURES = (0.10, 0.50, 0.93)  # share of men
N, SETS, MANY = 120, 200, 4000
PICTURES, RIVAL_PICTURES, ROWS = 2000, 200, 30_000


def labelled(column: str, classes: Sequence[str]) -> list[tuple[str, str]]:
    """(file, label) of every labelled picture of these classes."""
    with (LABELLED / "labels.csv").open(encoding="utf-8") as handle:
        return [(row["file"], row[column]) for row in csv.DictReader(handle) if row[column] in classes]


def halves(rows: Sequence[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Two halves, the same number of each class in both: one to learn the judge's errors from, one to draw sets from."""
    mixed = sorted(rows)
    random.Random(0).shuffle(mixed)
    by_class = {label: [row for row in mixed if row[1] == label] for _, label in mixed}
    return [r for c in by_class.values() for r in c[::2]], [r for c in by_class.values() for r in c[1::2]]


def draw(rows: Sequence[tuple[str, str]], shares: dict[str, float], n: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """A set of n pictures whose classes are drawn with the given chances."""
    by_class = {c: [row for row in rows if row[1] == c] for c in shares}
    names = rng.choice(list(shares), p=list(shares.values()), size=n)
    return [by_class[c][rng.integers(len(by_class[c]))] for c in names]


def exact(rows: Sequence[tuple[str, str]], shares: dict[str, float], n: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """A set of n pictures that holds each class in its share, to the picture."""
    counts = dict(zip(shares, exact_counts(list(shares.values()), n), strict=True))
    by_class = {c: [row for row in rows if row[1] == c] for c in shares}
    return [by_class[c][rng.integers(len(by_class[c]))] for c, k in counts.items() for _ in range(k)]


def known_truth(judge: ClipJudge) -> dict[str, Any]:
    """Gender and tone: recovered mixtures of real run folders, and coverage over simulated sets."""
    out: dict[str, Any] = {}
    jobs = [("gender", {"woman": 1 - m, "man": m}) for m in MIXTURES] + [("tone", {"light": 0.72, "medium": 0.18, "dark": 0.10})]
    for name, shares in jobs:
        chosen = attribute(name)
        learn, use = halves(labelled(name, chosen.names))
        seen = perceive(judge, chosen, [file for file, _ in learn + use])
        matrix = correction.confusion_matrix([c for _, c in learn], [seen[f] for f, _ in learn], chosen.names)[:, :-1]
        label = f"{name} {', '.join(f'{c} {s:.2f}' for c, s in shares.items())}"
        out[label] = {
            "truth": shares,
            "n": N,
            "errors": {"learned on": len(learn), "matrix": matrix.tolist()},
            "through files": through_files(judge, chosen, use, shares, matrix.tolist()),
            "coverage": {str(k): coverage(chosen.names, use, seen, shares, matrix, k) for k in (SETS, MANY)},
        }
        say(f"{label}: {json.dumps(out[label]['coverage'])}")
    return out


def perceive(judge: ClipJudge, chosen: Any, files: Sequence[str]) -> dict[str, str]:
    images = [open_picture(LABELLED / file) for file in files]
    vectors = judge.embed_images([image for image in images if image is not None])
    best = (vectors @ judge.embed_texts([c.target for c in chosen.concepts]).T).argmax(1)
    return {file: chosen.names[i] for file, i in zip(files, best, strict=True)}


def through_files(judge: ClipJudge, chosen: Any, use: Sequence[tuple[str, str]], shares: dict[str, float], matrix: Any) -> dict[str, Any]:
    """One set as files: folder and CSV, imported, evaluated."""
    rows = exact(use, shares, N, np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "pictures"
        source.mkdir()
        with (Path(folder) / "table.csv").open("w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(["file", "prompt", "group"])
            for i, (file, _) in enumerate(rows):
                shutil.copy(LABELLED / file, source / f"{i:04d}.webp")
                writer.writerow([f"{i:04d}.webp", "a person", "person"])
        run = import_folder(source, Path(folder) / "table.csv", Path(folder) / "run")
        known = {judge.digest: {chosen.name: {"classes": list(chosen.names), "matrix": matrix, "n": 0, "note": ""}}}
        found = evaluate(run, judge, [chosen], confusion=known)
    drawn = {c: sum(label == c for _, label in rows) / N for c in shares}
    inside = {k: {c: v[c]["low"] <= shares[c] <= v[c]["high"] for c in shares} for k, v in _both(found, chosen.name).items()}
    return {"drawn": drawn, **_both(found, chosen.name), "inside": inside}


def _both(found: dict[str, Any], name: str) -> dict[str, Any]:
    return {"as judged": found["shares"][name]["all"], "corrected": found["corrected"][name]}


def coverage(
    names: Sequence[str], use: Sequence[tuple[str, str]], seen: dict[str, str], shares: dict[str, float], matrix: Any, sets: int
) -> dict[str, float]:
    """Share of simulated sets whose 95 % interval holds the true share of the last concept: the chances that sets are drawn with."""
    rng, last = np.random.default_rng(sets), names[-1]
    hits = {"as judged": 0, "corrected": 0}
    for _ in range(sets):
        rows = draw(use, shares, N, rng)
        counts = [sum(seen[f] == c for f, _ in rows) for c in names]
        plain = fairness.wilson(counts[-1], N)
        right = correction.corrected_shares(counts, matrix, n_boot=500, seed=int(rng.integers(1 << 30)))[-1]
        hits["as judged"] += plain.low <= shares[last] <= plain.high
        hits["corrected"] += right.low <= shares[last] <= right.high
    return {kind: k / sets for kind, k in hits.items()}


def protocol() -> dict[str, Any]:
    """Floors at the paper's sample sizes, and DevRat of recorded labels against the formula written out."""
    rng = np.random.default_rng(0)
    worst = 0.0
    for classes in (2, 3):
        labels = [rng.choice(classes, p=rng.dirichlet(np.ones(classes)), size=150) for _ in range(36)]
        for row in labels:
            share = [sum(int(x) == c for x in row) / 150 for c in range(classes)]
            formula = max(abs(s - 1 / classes) for s in share) / (1 - 1 / classes)
            worst = max(worst, abs(formula - float(fairness.dev_rat(np.bincount(row, minlength=classes)))))
    return {
        "floor n=150 C=2": fairness.noise_floor([150], 2),
        "floor n=150 C=3": fairness.noise_floor([150], 3),
        "largest deviation from formula": worst,
    }


def make_pictures(folder: Path, n: int) -> list[str]:
    """n different picture files: labelled pictures, each a little brighter or darker."""
    files = [file for file, _ in labelled("gender", ("woman", "man"))]
    folder.mkdir(parents=True)
    for i in range(n):
        image = open_picture(LABELLED / files[i % len(files)])
        assert image is not None
        ImageEnhance.Brightness(image).enhance(0.9 + 0.2 * (i // len(files)) / (n / len(files) + 1)).save(folder / f"{i:05d}.png")
    return sorted(path.name for path in folder.iterdir())


def fast(folder: Path) -> dict[str, Any]:
    """2,000 pictures: import, then judge and report in a process of its own, cold; the rival on 200 of them in another."""
    files = make_pictures(folder / "pictures", PICTURES)
    with (folder / "table.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["file", "prompt", "group", "concept:gender"])
        writer.writerows([[f, "a person", f"group {i % 36}", ("woman", "man")[i % 2]] for i, f in enumerate(files)])
    import_folder(folder / "pictures", folder / "table.csv", folder / "run")
    ours = timed(
        [
            "-m",
            "respodiff",
            "report",
            str(folder / "run"),
            "--attribute",
            "gender",
            "--attribute",
            "tone",
            "--out",
            str(folder / "report.html"),
            "--json",
        ]
    )
    again = timed(["-m", "respodiff", "report", str(folder / "run"), "--out", str(folder / "report.html"), "--json"])
    rival = timed(["-c", RIVAL, str(folder / "pictures"), str(RIVAL_PICTURES), str(judge_folder("embedded"))])
    return {
        "pictures": PICTURES,
        "judge and report": ours,
        "report again": again,
        "rival": {**rival, "what": "transformers zero-shot-image-classification, batch 1, one question", "pictures": RIVAL_PICTURES},
        "pictures_per_second": PICTURES / ours["seconds"],
        "ratio_per_picture": (rival["seconds"] / RIVAL_PICTURES) / (ours["seconds"] / PICTURES),
    }


RIVAL = """
import sys, pathlib, logging
from transformers import pipeline
folder, n, model = sys.argv[1:]
ask = pipeline("zero-shot-image-classification", model=model)
for path in sorted(pathlib.Path(folder).iterdir())[: int(n)]:
    ask(str(path), candidate_labels=["a woman", "a man"], hypothesis_template="{}")
"""


def large(folder: Path) -> dict[str, Any]:
    """30,000 rows with kept scores and vectors of 512 numbers in two runs of 15,000 each: report alone."""
    from benchmarks.synthetic import make_run

    for name, seed in (("plain", 0), ("steered", 1)):
        make_run(folder / name, ROWS // 2, width=512, seed=seed)
    found = timed(
        ["-m", "respodiff", "report", str(folder / "plain"), str(folder / "steered"), "--out", str(folder / "big.html"), "--json"]
    )
    return {"rows": ROWS, "vector": 512, **found}


def timed(command: Sequence[str]) -> dict[str, Any]:
    """Seconds and peak memory of one process."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", _WATCH, sys.executable, *command], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)[:200]} failed: {done.stderr[-2000:]}")
    return {"seconds": round(seconds, 1), "peak_mib": round(int(done.stdout.splitlines()[-1]) / 1024, 1)}


_WATCH = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


def main() -> None:
    judge = ClipJudge.load("embedded")
    results: dict[str, Any] = {
        "provenance": {
            "command": "python -m benchmarks.measuring",
            "library": respodiff.__version__,
            "python": platform.python_version(),
            "cpu_cores": os.cpu_count(),
            "judge": {"name": judge.name, "digest": judge.digest},
        }
    }
    results["known_truth"] = known_truth(judge)
    results["protocol"] = protocol()
    say(json.dumps(results["protocol"]))
    with tempfile.TemporaryDirectory() as folder:
        results["speed"] = fast(Path(folder) / "fast")
        say(json.dumps(results["speed"]))
        results["large"] = large(Path(folder) / "large")
        say(json.dumps(results["large"]))
    (ROOT / "docs" / "results" / "measuring.json").write_text(json.dumps(results, indent=1) + "\n")
    write(results)
    say("written: docs/results/measuring.json and the tables of docs/measuring.md")


def write(results: dict[str, Any]) -> None:
    """Fill the tables of docs/measuring.md."""
    path = ROOT / "docs" / "measuring.md"
    rows = []
    for label, r in results["known_truth"].items():
        last = list(r["truth"])[-1]
        files, c = r["through files"], r["coverage"]
        rows.append(
            [
                label,
                _interval(files["as judged"][last]),
                _interval(files["corrected"][last]),
                *(f"{c[str(k)]['as judged']:.3f} / {c[str(k)]['corrected']:.3f}" for k in (SETS, MANY)),
            ]
        )
    header = ["mixture", "one set, as judged", "one set, corrected", f"coverage, {SETS} sets", f"coverage, {MANY} sets"]
    fill(
        path,
        "truth",
        f"n = {N} pictures a set; shares of the last concept named; coverage of the nominal 95 % interval, as judged / corrected.\n\n"
        + table(header, rows),
    )
    s, big, p = results["speed"], results["large"], results["protocol"]
    speed = [
        [
            f"{s['pictures']:,} pictures: judge (gender, tone, subject, safety) and report",
            str(s["judge and report"]["seconds"]),
            str(s["judge and report"]["peak_mib"]),
        ],
        ["the same, scores kept", str(s["report again"]["seconds"]), str(s["report again"]["peak_mib"])],
        [f"{s['rival']['pictures']} pictures, {s['rival']['what']}", str(s["rival"]["seconds"]), str(s["rival"]["peak_mib"])],
        [
            f"{big['rows']:,} rows in two runs, {big['vector']} numbers a picture, scores kept: report",
            str(big["seconds"]),
            str(big["peak_mib"]),
        ],
    ]
    fill(
        path,
        "speed",
        table(["what", "seconds", "peak MiB"], speed)
        + f"\nPer picture {s['ratio_per_picture']:.1f} times as fast as the zero-shot pipeline, both with start-up.\n",
    )
    fill(
        path,
        "protocol",
        table(
            ["what", "found"],
            [
                ["floor, n = 150, two concepts", f"{p['floor n=150 C=2']:.4f}"],
                ["floor, n = 150, three concepts", f"{p['floor n=150 C=3']:.4f}"],
                ["largest deviation of DevRat from the paper's formula, 2 x 36 x 150 labels", f"{p['largest deviation from formula']:.1e}"],
            ],
        ),
    )


def _interval(e: dict[str, float]) -> str:
    return f"{e['mean']:.3f} [{e['low']:.3f}, {e['high']:.3f}]"


if __name__ == "__main__":
    main()
