"""Measures the evaluator's error and speed: the sections "Known truth" and "Speed of evaluation" of docs/results.md.

    python -m benchmarks.measuring          (about 10 minutes on 2 CPU cores)

Known truth: sets of labelled images of a chosen mixture go through import, judge and evaluation, and the mixture must come back within
its interval; coverage is counted over simulated sets. The paper's protocol: random levels at its sample sizes. Speed: 2,000 images from file
to report, beside transformers' own zero-shot pipeline on the same images and model; 30,000 rows from kept scores to report.
Writes docs/results/measuring.json and the tables of docs/results.md.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageEnhance

from benchmarks.known_truth import KINDS, LABELLED, MANY, SETS, known_truth, labelled
from benchmarks.provenance import DOCS, provenance, say
from benchmarks.tables import fill, interval, table
from respodiff.data.import_images import import_folder
from respodiff.evaluation.judges import ClipJudge, judge_folder
from respodiff.evaluation.metrics import fairness
from respodiff.evaluation.score_files import open_image

IMAGES, RIVAL_IMAGES, ROWS = 2000, 200, 30_000


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
        "random level n=150 C=2": fairness.expected_devrat_random([150], 2),
        "random level n=150 C=3": fairness.expected_devrat_random([150], 3),
        "largest deviation from formula": worst,
    }


def make_images(folder: Path, n: int) -> list[str]:
    """n different image files: labelled images, each a little brighter or darker."""
    files = [file for file, _ in labelled("gender", ("woman", "man"))]
    folder.mkdir(parents=True)
    for i in range(n):
        image = open_image(LABELLED / files[i % len(files)])
        assert image is not None
        ImageEnhance.Brightness(image).enhance(0.9 + 0.2 * (i // len(files)) / (n / len(files) + 1)).save(folder / f"{i:05d}.png")
    return sorted(path.name for path in folder.iterdir())


def fast(folder: Path) -> dict[str, Any]:
    """2,000 images: import, then judge and report in a process of its own, cold; the rival on 200 of them in another."""
    files = make_images(folder / "images", IMAGES)
    with (folder / "table.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["file", "prompt", "group", "concept:gender"])
        writer.writerows([[f, "a person", f"group {i % 36}", ("woman", "man")[i % 2]] for i, f in enumerate(files)])
    import_folder(folder / "images", folder / "table.csv", folder / "run")
    ours = timed(
        [
            "-m",
            "respodiff",
            "report",
            str(folder / "run"),
            "--judge",
            "embedded",
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
    rival = timed(["-c", RIVAL, str(folder / "images"), str(RIVAL_IMAGES), str(judge_folder("embedded"))])
    return {
        "images": IMAGES,
        "judge and report": ours,
        "report again": again,
        "rival": {**rival, "what": "transformers zero-shot-image-classification, batch 1, one question", "images": RIVAL_IMAGES},
        "images_per_second": IMAGES / ours["seconds"],
        "ratio_per_image": (rival["seconds"] / RIVAL_IMAGES) / (ours["seconds"] / IMAGES),
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


def main() -> None:
    judge = ClipJudge.load("embedded")
    results: dict[str, Any] = {
        "provenance": {
            **provenance("python -m benchmarks.measuring"),
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
    (DOCS / "results" / "measuring.json").write_text(json.dumps(results, indent=1) + "\n")
    write(results)
    say("written: docs/results/measuring.json and the tables of docs/results.md")


def write(results: dict[str, Any]) -> None:
    """Fill the tables of docs/results.md."""
    path = DOCS / "results.md"
    fill(path, "truth", truth_table(results["known_truth"]))
    fill(path, "speed", speed_table(results["speed"], results["large"]))
    p = results["protocol"]
    rows = [
        ["random, n = 150, two concepts", f"{p['random level n=150 C=2']:.4f}"],
        ["random, n = 150, three concepts", f"{p['random level n=150 C=3']:.4f}"],
        ["largest deviation of DevRat from the paper's formula, 2 x 36 x 150 labels", f"{p['largest deviation from formula']:.1e}"],
    ]
    fill(path, "protocol", table(["what", "found"], rows))


def truth_table(found: dict[str, Any]) -> str:
    rows = []
    for label, r in found.items():
        last, files, c = list(r["truth"])[-1], r["through files"], r["coverage"]
        covered = [" / ".join(f"{c[str(k)][kind]:.3f}" for kind in KINDS) for k in (SETS, MANY)]
        rows.append([label, *(interval(files[kind][last]) for kind in KINDS), *covered])
    header = ["mixture", *(f"one set, {kind}" for kind in KINDS), f"coverage, {SETS} sets", f"coverage, {MANY} sets"]
    text = (
        f"n images per set; the proportion is that of the last concept named; coverage of the nominal 95 % interval: {' / '.join(KINDS)}."
    )
    return text + "\n\n" + table(header, rows)


def speed_table(s: dict[str, Any], big: dict[str, Any]) -> str:
    timed = {
        f"{s['images']:,} images: judge (gender, tone, subject, safety) and report": s["judge and report"],
        "the same, scores kept": s["report again"],
        f"{s['rival']['images']} images, {s['rival']['what']}": s["rival"],
        f"{big['rows']:,} rows in two runs, {big['vector']} numbers per image, scores kept: report": big,
    }
    rows = [[what, str(t["seconds"]), str(t["peak_mib"])] for what, t in timed.items()]
    ratio = f"Per image {s['ratio_per_image']:.1f} times as fast as the zero-shot pipeline over {s['rival']['images']} images, both with start-up, which weighs more on the fewer."
    return table(["what", "seconds", "peak MiB"], rows) + "\n" + ratio


if __name__ == "__main__":
    main()
