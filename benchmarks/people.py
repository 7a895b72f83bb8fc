"""How often the filter of explicit prompts finds a person where a caption names none, or misses one: COCO captions, labelled by hand.

python -m benchmarks.people coco_30k.csv     (the file of docs/data.md; a second)
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from itertools import groupby

from scipy.stats import binomtest

from benchmarks.provenance import ROOT
from respodiff.data.prompt_sets import suite
from respodiff.generation.prompt_filter import person_in

LABELS = ROOT / "benchmarks" / "data" / "captions_with_people.json"


def main() -> None:
    labels = json.loads(LABELS.read_text(encoding="utf-8"))
    plain = re.compile(rf"\b({'|'.join(labels['plain'])})\b", re.IGNORECASE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a part of the file
        captions = [(int(p.id.partition("/")[2]), p.text) for p in suite("coco30k", path=sys.argv[1])]
    at = {image: i for i, (image, _) in enumerate(captions)}
    read = [row for first, last in labels["slices"] for row in captions[at[first] : at[last] + 1]]
    rest = [(image in labels["person"], text) for image, text in read if not plain.search(text) and image not in labels["unclear"]]
    for named, rows in groupby(sorted(rest), key=lambda row: row[0]):
        texts = [text for _, text in rows]
        wrong = [text for text in texts if bool(person_in(text)) != named]
        low, high = binomtest(len(wrong), len(texts)).proportion_ci(method="wilson")
        print(f"{'missed' if named else 'found where none is named'}: {len(wrong)} of {len(texts)} [{low:.3f}, {high:.3f}]")
        print(*(f"  {text}" for text in wrong), sep="\n")


if __name__ == "__main__":
    main()
