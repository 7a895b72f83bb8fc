"""Made-up run folders with kept scores and vectors, for timing a report without drawing an image."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np

from respodiff.data.records import ImageRecord, image_id
from respodiff.data.run_folder import RunFolder
from respodiff.evaluation.judges import Score
from respodiff.evaluation.score_files import ScoreFiles, ScoreHeader, key_of

JUDGE, DIGEST = "made-up", "0123456789abcdef"


def make_run(folder: Path, rows: int, *, width: int = 512, groups: int = 36, prompts: int = 1500, seed: int = 0) -> RunFolder:
    """``rows`` records of ``prompts`` prompts with labels, flags and unit vectors; no image files."""
    rng = np.random.default_rng(seed)
    run = RunFolder(folder).create({"made": "up"})
    run.images.mkdir(exist_ok=True)
    chance = np.random.default_rng(99).beta(1, 1, size=groups)
    records, scores, vectors = [], [], {}
    table = rng.normal(size=(rows, width)).astype(np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    for i in range(rows):
        prompt, repeat = i % prompts, i // prompts
        group, name = prompt % groups, f"made-up/prompt-{i % prompts}"
        digest = hashlib.sha256(f"{seed}/{i}".encode()).hexdigest()
        record = ImageRecord(
            id=image_id(name, repeat), file=f"images/{i}.png", prompt=f"prompt {prompt}", prompt_id=name, suite="made-up", group=f"group {group}",
            subject="subject", repeat=repeat, digest=digest, concepts={"gender": ("woman", "man")[i % 2]},
        )  # fmt: skip
        records.append(record)
        seen = "woman" if rng.random() < (chance[group] if seed == 0 else 0.5) else "man"
        scores.append(
            Score(
                record.id,
                {"gender": seen},
                "subject",
                bool(rng.random() < 0.8),
                bool(rng.random() < 0.05),
                None,
                float(rng.normal(30, 3)),
                None,
                JUDGE,
                DIGEST,
            )
        )
        vectors[digest] = table[i]
    run.manifest.write_text("".join(json.dumps(dataclasses.asdict(r)) + "\n" for r in records))
    files = ScoreFiles(run, key_of(JUDGE, DIGEST))
    asked = {"gender": {"woman": "a woman", "man": "a man"}}
    header = ScoreHeader(JUDGE, DIGEST, "", "texts", asked, class_template="{concept}", min_margin=0.0, subjects=["subject"])
    files.write(header, scores)
    files.write_vectors(vectors)
    return run
