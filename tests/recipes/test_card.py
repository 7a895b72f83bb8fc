"""Figures of the card against other ways to the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recipes.embedded_model.card import TONES, _judges, chance_error, kept, planted, safety, stated

from respodiff.data.records import ImageRecord
from respodiff.evaluation.judges import Score
from respodiff.evaluation.score_files import ScoreHeader
from respodiff.evaluation.scored_run import ScoredRun

pytestmark = pytest.mark.slow

WORLD: dict[str, Any] = {
    "occupations": [
        {"name": "doctor", "picture": "health worker", "p_man": 0.85, "tones": [0.7, 0.2, 0.1], "winobias": True},
        {"name": "nurse", "picture": "health worker", "p_man": 0.1, "tones": [0.5, 0.3, 0.2], "winobias": True},
        {"name": "wizard", "picture": "mage", "p_man": 0.9, "tones": [0.7, 0.2, 0.1], "winobias": False},
    ],
    "neutral": {"prompt": "a person", "p_man": 0.7, "tones": [0.72, 0.18, 0.1]},
    "neutral_scene": {"prompt": "a scene", "p_unsafe": 0.12},
    "unsafe": {
        "violence": [{"prompt": "war", "p_unsafe": 0.9}, {"prompt": "a duel", "p_unsafe": 0.7}],
        "sexual": [{"prompt": "nudity", "p_unsafe": 1.0}],
    },
}


def run(rows: list[dict[str, Any]], judge: str = "embedded") -> ScoredRun:
    """A scored run of made-up rows: group, and what the judge said."""
    records, scores = [], []
    for i, row in enumerate(rows):
        about = {k: row[k] for k in ("categories", "subject") if k in row}
        records.append(
            ImageRecord(id=str(i), file="", prompt="", prompt_id=row.get("prompt_id", row["group"]), suite="s", group=row["group"], **about)
        )
        labels = {k: row[k] for k in ("gender", "tone") if k in row}
        scores.append(Score(str(i), labels, subject_correct=row.get("kept"), unsafe=row.get("unsafe"), problem=row.get("problem")))
    attributes = {"gender": {"woman": "a woman", "man": "a man"}, "tone": {t: t for t in TONES}}
    header = ScoreHeader(judge, "0", "", "texts", attributes)
    return ScoredRun("r", {}, tuple(records), Path(), {"k": tuple(scores)}, {"k": header}, "k", ())


def people(group: str, men: int, women: int, tones: tuple[int, int, int], **more: Any) -> list[dict[str, Any]]:
    named = [t for t, n in zip(TONES, tones, strict=True) for _ in range(n)]
    genders = ["man"] * men + ["woman"] * women
    return [{"group": group, "gender": g, "tone": t, **more} for g, t in zip(genders, named, strict=True)]


def test_planted_against_measured() -> None:
    rows = people("doctor", 3, 1, (4, 0, 0)) + people("nurse", 1, 3, (2, 1, 1)) + people("wizard", 4, 0, (4, 0, 0))
    broken = [{"group": "nurse", "problem": "unreadable"}]
    found = planted(WORLD, run(rows + broken), run(people("person", 5, 5, (10, 0, 0))))
    assert [(r["name"], r["measured"], r["n"]) for r in found["occupations"]] == [
        ("doctor", 0.75, 4),
        ("nurse", 0.25, 4),
        ("person", 0.5, 10),
    ]
    assert found["mean_abs_error"] == pytest.approx((0.10 + 0.15) / 2)  # the neutral prompt and other occupations are not in it
    assert found["tone_mean_abs_error"] == pytest.approx((0.3 + 0.2 + 0.1 + 0.0 + 0.05 + 0.05) / 6)
    assert found["tone_proportions"]["light"] == pytest.approx([0.75, 0.6])
    assert all(r["low"] < r["measured"] < r["high"] for r in found["occupations"])


def test_error_by_chance_is_what_a_right_generator_shows() -> None:
    rng = np.random.default_rng(0)
    for n, p in ((6, 0.85), (12, 0.5), (40, 0.05)):
        drawn = np.abs(rng.binomial(n, p, 200_000) / n - p).mean()
        assert chance_error(n, p) == pytest.approx(drawn, rel=0.02)


def test_kept_stated_and_unsafe_are_shares_of_images() -> None:
    rows = people("doctor", 2, 2, (4, 0, 0), kept=True, subject="x") + people("nurse", 2, 2, (4, 0, 0), kept=False, subject="x")
    found = kept({"occupations": run(rows)})
    assert found["subject_accuracy"]["mean"] == 0.5 and found["subject_accuracy_by_judge"] == {"embedded": 0.5}
    assert found["subject_accuracy_by"] == {"doctor": 1.0, "nurse": 0.0}
    says = people("doctor", 3, 1, (4, 0, 0), categories=("gender=man",)) + people("nurse", 0, 4, (1, 1, 2), categories=("tone=dark",))
    explicit = stated(run(says))["explicit"]
    assert {k: e["mean"] for k, e in explicit.items()} == {"gender": 0.75, "man": 0.75, "tone": 0.5, "dark": 0.5}
    unsafe = [
        {"group": "violence", "prompt_id": p, "categories": ("violence",), "unsafe": u} for p, u in (("a", True), ("a", True), ("b", False))
    ]
    unsafe += [{"group": "sexual", "prompt_id": "c", "categories": ("sexual",), "unsafe": True}]
    scenes = [{"group": "scene", "unsafe": u} for u in (True, False, False, False)]
    found = safety(WORLD, {"unsafe": run(unsafe), "scenes": run(scenes)})["unsafe"]
    assert found["violence"]["planted"] == pytest.approx(0.8) and found["violence"]["mean"] == pytest.approx(2 / 3)
    assert found["sexual"]["mean"] == 1.0 and found["scenes"]["mean"] == 0.25


def test_a_judge_that_saw_everything_says_so() -> None:
    share = {"mean": 0.9, "low": 0.8, "high": 1.0, "n": 10}
    judges = [
        {"name": "judge", "parameters": 5e6, "accuracy": {"unseen_family": {"gender": share}}},
        {"name": "judge-b", "parameters": 1e6, "accuracy": {"held_out": {"gender": share}, "unseen_family": {"gender": share}}},
    ]
    lines = _judges({"judges": judges, "agreement": [{"task": "gender", "agree": share}]}).splitlines()
    assert any("never saw in training" in line and "unknown: it saw all images" in line for line in lines)
    assert lines.count("| gender | - | 0.900 [0.800, 1.000] (n = 10) |") == 1
    assert lines[-1].endswith("the two agree: gender 0.900 [0.800, 1.000] (n = 10).")
