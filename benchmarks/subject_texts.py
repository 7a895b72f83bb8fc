"""How a subject is asked for: by its own name, or by the word that the judge knows it by (`Vocabulary.text`), on labelled images.

    python -m benchmarks.subject_texts          (seconds; prints a table)

The images are `benchmarks/data/labelled`; the embedded judge was trained on them, so what it misses here it was never told.
"""

from __future__ import annotations

from PIL import Image

from benchmarks.known_truth import LABELLED
from benchmarks.tables import table
from respodiff.data.tables import read_table
from respodiff.evaluation.judges import EMBEDDED, ClipJudge, Vocabulary, image_text
from respodiff.evaluation.metrics.fairness import wilson


def main() -> None:
    words = Vocabulary.embedded()
    rows = [row for _, row in read_table(LABELLED / "labels.csv", ["file", "subject"]) if row["subject"] in words.subjects]
    images = [Image.open(LABELLED / row["file"]) for row in rows]
    lines = []
    for name in EMBEDDED:
        judge = ClipJudge.load(name)
        cells = [name]
        for texts in ([image_text(s) for s in words.subjects], [words.text(s) for s in words.subjects]):
            found, _ = judge.choose(images, texts)
            e = wilson(sum(words.subjects[k] == row["subject"] for k, row in zip(found, rows, strict=True)), len(rows))
            cells.append(f"{e.mean:.3f} [{e.low:.3f}, {e.high:.3f}]")
        lines.append([*cells, str(len(rows))])
    print(table(["judge", "by its own name", "as the judge knows it", "n"], lines))


if __name__ == "__main__":
    main()
