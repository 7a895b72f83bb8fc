"""How well h of the plain model's first steps tells what its images show: the tables of docs/method.md, "What a noise favours".

    python -m benchmarks.leaning --runs runs/beyond               (about 9 minutes on 2 CPU cores)
    python -m benchmarks.leaning --runs runs/beyond --safety      (a minute: what favours violence and sexual, the rest as it was kept)

Labels are the judge's, of the plain runs that `benchmarks.beyond` has drawn; h is read anew from the same noise. Figures per call of the model:
the share of images of which the surest alternative is the one that is seen, and the chance that of two images of one prompt with different
labels the scores rank the right one higher (0.5 is nothing). Writes docs/results/leaning.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.main_job import DOCS, say
from benchmarks.tables import fill, interval, table
from respodiff.concepts.concept import attribute, concept
from respodiff.data.prompt_sets import suite
from respodiff.data.run_folder import write_atomic
from respodiff.evaluation.evaluate import judge_all
from respodiff.evaluation.metrics.alignment import mean_interval
from respodiff.evaluation.scored_run import ScoredRun
from respodiff.evaluation.verdicts import flags_of
from respodiff.generation.config import GenerateConfig
from respodiff.generation.image_adapters import ALIGNED, UNSAFE
from respodiff.generation.prediction import Moment, alignment_margin, means, read, scores
from respodiff.generation.safety_mode import contrast_prompts
from respodiff.pipelines.latents import noise
from respodiff.pipelines.loading import load_pipeline

RESULTS = DOCS / "results" / "leaning.json"
CALLS = (1, 3, 5, 9)
REPEATS = 4
SETTINGS = GenerateConfig()
OTHER_NOISE = (
    ("things, noise that nothing was chosen on", "general", range(1, 5)),
    ("people at work, noise that nothing was chosen on", "occupations", range(4, 12)),
    ("people at work, other occupations", "occupations-unseen", range(4)),
)
"""Label, suite and repeats of harmless images of which only h is read."""


class Reader:
    """Reads h of images of a run at every call, once each."""

    def __init__(self) -> None:
        self.pipe = load_pipeline("embedded")

    def moment(self, calls: int) -> Moment:
        return Moment(calls, SETTINGS.steps, SETTINGS.guidance)

    def of(self, run: ScoredRun, calls: int) -> tuple[Tensor, list[int]]:
        """h (n, F) of the first repeats of a run, and their row numbers."""
        rows = [i for i, r in enumerate(run.records) if r.repeat < REPEATS]
        noises = [(r.prompt, r.prompt_id, r.repeat) for r in (run.records[i] for i in rows)]
        return self.read(noises, calls), rows

    def read(self, noises: Sequence[tuple[str, str, int]], calls: int) -> Tensor:
        """h (n, F) of (text, id of the prompt, repeat)."""
        found = []
        for start in range(0, len(noises), SETTINGS.batch):
            some = noises[start : start + SETTINGS.batch]
            latents = torch.cat([noise(self.pipe, SETTINGS.seed, prompt_id, repeat) for _, prompt_id, repeat in some])
            found.append(read(self.pipe, [text for text, _, _ in some], latents, self.moment(calls)))
        return torch.cat(found)


def ranked(assignment_scores: np.ndarray[Any, Any], seen: Sequence[int], groups: Sequence[str]) -> dict[str, Any]:
    """Mean over prompts of the chance that of two images with labels a and b the first scores higher on a minus b."""
    labels, chances, prompts = np.array(seen), [], []
    for group in sorted(set(groups)):
        own = np.array(groups) == group
        wins = [
            float(
                np.mean(np.subtract.outer(assignment_scores[own & (labels == a)] @ sign, assignment_scores[own & (labels == b)] @ sign) > 0)
            )
            for a in range(assignment_scores.shape[1])
            for b in range(a)
            if (own & (labels == a)).any() and (own & (labels == b)).any()
            for sign in [np.eye(assignment_scores.shape[1])[a] - np.eye(assignment_scores.shape[1])[b]]
        ]
        if wins:
            chances.append(float(np.mean(wins)))
            prompts.append(group)
    e = mean_interval(chances, prompts)
    return {"mean": e.mean, "low": max(0.0, e.low), "high": min(1.0, e.high), "n": len(chances)}


def share(hits: Sequence[bool], groups: Sequence[str]) -> dict[str, Any] | None:
    if not len(hits):
        return None
    e = mean_interval(np.array(hits, float), list(groups))
    return {"mean": e.mean, "low": max(0.0, e.low), "high": min(1.0, e.high), "n": len(hits)}


def of_attribute(reader: Reader, run: ScoredRun, name: str) -> dict[str, Any]:
    """Call -> how right the reading of an attribute is."""
    whole, out = attribute(name), {}
    for calls in CALLS:
        h, rows = reader.of(run, calls)
        centres = means(reader.pipe, [c.target for c in whole.concepts], reader.moment(calls))
        seen = [whole.names.index(run.scores[i].labels[name]) for i in rows]
        groups = [run.records[i].prompt_id for i in rows]
        assignment_scores, margin = scores(h, centres), alignment_margin(h, centres)
        best = assignment_scores.argmax(1)
        certain = margin.max(1) >= ALIGNED
        right = [bool(b == s) for b, s in zip(best, seen, strict=True)]
        out[str(calls)] = {
            "right": share(right, groups),
            "sure": share([bool(c) for c in certain], groups),
            "right where sure": share(
                [r for r, c in zip(right, certain, strict=True) if c], [g for g, c in zip(groups, certain, strict=True) if c]
            ),
            "ranked": ranked(assignment_scores, seen, groups),
        }
        say(f"{name}, call {calls}: {out[str(calls)]['right']}")
    return out


def of_safety(reader: Reader, runs: Mapping[str, ScoredRun]) -> dict[str, Any]:
    """Run -> share of its images that favour what violence or sexual takes out, at the first call; of unsafe prompts those flagged apart."""
    moment, out = reader.moment(1), {}
    centres = [means(reader.pipe, contrast_prompts(c.negative, c.neutral), moment) for c in map(concept, ("violence", "sexual"))]
    for name, run in runs.items():
        h, rows = reader.of(run, 1)
        hit = np.max([alignment_margin(h, m)[:, 0] for m in centres], axis=0) > UNSAFE
        groups, flags = [run.records[i].prompt_id for i in rows], flags_of(run)
        out[name] = share([bool(x) for x in hit], groups)
        if name == "unsafe-plain" and flags is not None:
            chosen = [k for k, i in enumerate(rows) if flags[i]]
            out["unsafe-plain, flagged"] = share([bool(hit[k]) for k in chosen], [groups[k] for k in chosen])
        say(f"{name}: {out[name]}")
    for label, prompts, repeats in OTHER_NOISE:
        noises = [(p.text, p.id, i) for p in suite(prompts) for i in repeats]
        hit = np.max([alignment_margin(reader.read(noises, 1), m)[:, 0] for m in centres], axis=0) > UNSAFE
        out[label] = share([bool(x) for x in hit], [prompt_id for _, prompt_id, _ in noises])
        say(f"{label}: {out[label]}")
    return out


def publish(found: Mapping[str, Any]) -> None:
    write_atomic(RESULTS, json.dumps(found, indent=1) + "\n")
    lines = [
        [
            name,
            calls,
            interval(r["right"]),
            interval(r["sure"]),
            *(f"{interval(r[k])}, {r[k]['n']}" for k in ("right where sure", "ranked")),
        ]
        for name in ("gender", "tone")
        for calls, r in found[name].items()
    ]
    head = ["attribute", "step read, of 20", "surest is seen", "sure", "right where sure, n", "ranked right, prompts"]
    n = found["gender"][str(CALLS[0])]["right"]["n"]
    fill(DOCS / "method.md", "leaning", f"n = {n} images; the last two columns have an n of their own.\n\n" + table(head, lines))
    safe = [[name, interval(r), str(r["n"])] for name, r in found["safety"].items() if r]
    fill(DOCS / "method.md", "predicted-safety", table(["plain images of", "favour what is taken out", "n"], safe))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/beyond"))
    parser.add_argument("--safety", action="store_true")
    arguments = parser.parse_args()
    names = ("plain", "unsafe-plain", "general-plain")
    runs = {name: judge_all(arguments.runs / name, "embedded", ["gender", "tone"]) for name in names}
    reader = Reader()
    if arguments.safety:
        found = json.loads(RESULTS.read_text())
    else:
        found = {name: of_attribute(reader, runs["plain"], name) for name in ("gender", "tone")}
    publish({**found, "command": "python -m benchmarks.leaning", "safety": of_safety(reader, runs)})


if __name__ == "__main__":
    main()
