"""Target proportions of every occupation's own, and three genders: measured on the embedded model. Fills docs/using.md.

    python -m benchmarks.shares                                 (seconds: how the judges tell three genders, on labelled images)
    python -m benchmarks.shares --images --out runs/shares    (about 20 minutes; needs the modules woman and man of benchmarks.beyond)

The wanted proportions are the planted ones turned round: women are to be as frequent in an occupation as men are planted to be.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

import respodiff
from benchmarks.known_truth import LABELLED
from benchmarks.main_job import DOCS, say
from benchmarks.tables import fill, interval, table
from respodiff.concepts.concept import attribute
from respodiff.data.prompt_sets import load_world, suite
from respodiff.data.tables import read_table
from respodiff.data.target_proportions import read_group_proportions
from respodiff.evaluation.evaluate import evaluate
from respodiff.evaluation.judges import EMBEDDED, ClipJudge, class_texts
from respodiff.evaluation.metrics.fairness import wilson
from respodiff.evaluation.statistics import show
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate
from respodiff.generation.policies import Policy
from respodiff.pipelines.loading import load_pipeline
from respodiff.steering.module import load

RESULTS = DOCS / "results" / "shares.json"
IMAGES = 6
THREE = {"woman": "woman", "man": "man", "neutral": "nonbinary"}
"""Label of the images -> alternative of gender3."""


def judges_tell() -> list[dict[str, Any]]:
    """A row a judge and label: share of labelled images for which it chooses that alternative of three."""
    three = attribute("gender3")
    rows = [row for _, row in read_table(LABELLED / "labels.csv", ["file", "gender"]) if row["gender"] in THREE]
    images = [Image.open(LABELLED / row["file"]) for row in rows]
    out = []
    for name in EMBEDDED:
        judge = ClipJudge.load(name)
        found, _ = judge.choose(images, class_texts(three.concepts))
        for label, concept in THREE.items():
            hits = [three.names[k] == concept for k, row in zip(found, rows, strict=True) if row["gender"] == label]
            right = show(wilson(sum(hits), len(hits)))
            out.append({"judge": name, "digest": judge.digest, "true": concept, "right": right})
            say(f"{name}: {concept} {interval(right)} of {len(hits)}")
    return out


def wanted_table(path: Path) -> Path:
    """The planted shares turned round, as a table of the form that --group-proportions takes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["group", "alternative", "share"])
        for row in load_world()["occupations"]:
            if row["winobias"]:
                writer.writerows([[row["name"], "woman", row["p_man"]], [row["name"], "man", round(1 - row["p_man"], 10)]])
    return path


def trained(folder: Path) -> list[Any]:
    """The three modules of gender3, trained where they are missing."""
    for name in attribute("gender3").names:
        if not (path := folder / f"gender3-{name}.safetensors").is_file():
            command = [sys.executable, "-m", "respodiff", "train", "--concept", f"gender3/{name}", "--out", str(path)]
            folder.mkdir(parents=True, exist_ok=True)
            subprocess.run(command, check=True)
    return [load(folder / f"gender3-{name}.safetensors") for name in attribute("gender3").names]


def image_rows(modules: Path, out: Path) -> list[dict[str, Any]]:
    """A row a run: DevRat to what was wanted, its random level, concept accuracy and subject accuracy."""
    pipe, people = load_pipeline("embedded"), suite("occupations")
    two, three = [load(modules / f"{n}.safetensors") for n in ("woman", "man")], trained(out / "modules")
    own = read_group_proportions(wanted_table(out / "wanted.csv"), {"gender": ("woman", "man")}, [p.group for p in people])
    rows = []
    settings: tuple[tuple[str, list[Any], str, Any, Policy], ...] = (
        ("plain", [], "gender", own, "none"),
        ("shares-exact", two, "gender", own, "exact"),
        ("plain", [], "gender3", None, "none"),
        ("gender3-exact", three, "gender3", None, "exact"),
    )
    for name, used, measured, proportions, policy in settings:
        config = GenerateConfig(images=IMAGES, policy=policy, group_proportions=proportions if used else None)
        for _ in generate(pipe, people, used, config, out=out / name):
            pass
        found = evaluate(out / name, "embedded", [measured], group_proportions=proportions)
        row = {"run": name, "attribute": measured, "n": found["n"], "devrat": found["devrat"][measured]}
        row |= {"concept_accuracy": found["concept_accuracy"][measured], "concept_accuracy_by": found["concept_accuracy_by"][measured]}
        row |= {
            "kept": found["subject_accuracy"],
            "proportions": found["proportions"][measured]["all"],
            "modules": [m.digest for m in used],
        }
        rows.append(row)
        say(f"{name}: {measured} {interval(row['devrat'])}")
    return rows


def publish(found: dict[str, Any]) -> None:
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    lines = [[r["judge"], r["true"], str(r["right"]["n"]), interval(r["right"])] for r in found["judges"]]
    fill(DOCS / "using.md", "gender3-judges", table(["judge", "labelled", "n", "judge says so"], lines))
    if rows := found.get("rows"):
        wanted = {"gender": "planted shares turned round, by occupation", "gender3": "a third each"}
        lines = [
            [
                r["run"],
                wanted[r["attribute"]],
                str(r["n"]),
                interval(r["devrat"]),
                f"{r['devrat']['random']:.3f}",
                interval(r["concept_accuracy"]),
                interval(r["kept"]),
            ]
            for r in rows
        ]
        fill(
            DOCS / "using.md",
            "proportions",
            table(["run", "wanted", "n", "DevRat", "random", "concept_accuracy", "subject accuracy"], lines),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", action="store_true")
    parser.add_argument("--modules", type=Path, default=Path("runs/beyond/modules"))
    parser.add_argument("--out", type=Path, default=Path("runs/shares"))
    arguments = parser.parse_args()
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    found |= {"command": "python -m benchmarks.shares", "library": respodiff.__version__, "judges": judges_tell()}
    if arguments.images:
        found["rows"] = image_rows(arguments.modules, arguments.out)
    publish(found)


if __name__ == "__main__":
    main()
