"""The same images by both judges of the embedded model: plain and steered runs of `benchmarks.main_job`. Fills docs/judges.md.

python -m benchmarks.two_judges --out runs/main_job          (a minute; draws nothing)
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from benchmarks.main_job import DOCS, say
from benchmarks.tables import fill, interval, table
from respodiff.evaluation.evaluate import evaluate
from respodiff.evaluation.judges import EMBEDDED, Vocabulary

RUNS = {"plain": "plain", "gender-exact-1.0": "exact, scale 1"}
RESULTS = DOCS / "results" / "two_judges.json"


def measured(out: Path) -> list[dict[str, Any]]:
    """A row a run and judge: DevRat, concept accuracy, and subject accuracy by own names and by the words that the judge knows."""
    words = Vocabulary.embedded()
    rows = []
    for run, label in RUNS.items():
        for judge in EMBEDDED:
            own = evaluate(out / run, judge, ["gender"], vocabulary=dataclasses.replace(words, called={}))
            found = evaluate(out / run, judge, ["gender"], vocabulary=words)
            row = {"run": label, "judge": judge, "digest": found["judge"]["digest"], "n": found["n"]}
            row |= {"devrat": found["devrat"]["gender"], "concept_accuracy": found["concept_accuracy"].get("gender")}
            rows.append(row | {"kept": found["subject_accuracy"], "kept_own_names": own["subject_accuracy"]})
            say(f"{label}, {judge}: DevRat {found['devrat']['gender']['mean']:.3f}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/main_job"))
    rows = measured(parser.parse_args().out)
    RESULTS.write_text(json.dumps({"command": "python -m benchmarks.two_judges", "rows": rows}, indent=1) + "\n")
    head = ["images", "judge", "n", "DevRat gender", "concept_accuracy", "subject accuracy", "kept, asked by own names"]
    lines = [
        [r["run"], r["judge"], str(r["n"]), *(interval(r[key]) for key in ("devrat", "concept_accuracy", "kept", "kept_own_names"))]
        for r in rows
    ]
    fill(DOCS / "judges.md", "two-judges", table(head, lines))


if __name__ == "__main__":
    main()
