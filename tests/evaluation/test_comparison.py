"""Two runs on the same noise: who is paired with whom, and distances between sets of images."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from painted import GENDER, WORDS, ColourJudge, Painted, paint
from respodiff.data.run_folder import RunFolder
from respodiff.evaluation.comparison import collect, compare, pairs_of, split_label
from respodiff.evaluation.evaluate import judge_all
from respodiff.evaluation.judges import FeatureJudge
from respodiff.evaluation.metrics import distances, paired
from respodiff.evaluation.scored_run import ScoredRun

ROWS: list[Painted] = [("cook", None, (i % 2, 0, 0)) for i in range(4)]


def judged(run: RunFolder, judges: Any = None) -> ScoredRun:
    return judge_all(run, judges or ColourJudge(), [GENDER], vocabulary=WORDS)


def test_images_are_paired_by_their_noise(tmp_path: Path) -> None:
    base = judged(paint(tmp_path / "a", ROWS))
    assert pairs_of(base, judged(paint(tmp_path / "b", ROWS))) == [(i, i) for i in range(4)]
    assert pairs_of(base, judged(paint(tmp_path / "c", ROWS, seed=1))) == [], "another run seed is another noise"
    assert pairs_of(base, judged(paint(tmp_path / "d", ROWS[:2]))) == [(0, 0), (1, 1)]
    own = judged(paint(tmp_path / "e", ROWS, own_seed=0))
    assert pairs_of(base, own) == [], "a data set's seed 0 is not the run's seed 0"
    assert len(pairs_of(own, judged(paint(tmp_path / "f", ROWS, own_seed=0)))) == 4


def test_photographs_have_no_noise(tmp_path: Path) -> None:
    photographs = judged(paint(tmp_path / "a", ROWS, settings={"imported": True}))
    drawn = judged(paint(tmp_path / "b", ROWS))
    found = compare(photographs, drawn)
    assert found.paired == 0 and found.tests == () and found.drift is None
    seeded = judged(paint(tmp_path / "c", ROWS, settings={"imported": True}, own_seed=5))
    assert compare(seeded, seeded).paired == 4


def test_unknown_images_are_in_no_pair_of_a_test(tmp_path: Path) -> None:
    run, other = paint(tmp_path / "a", ROWS), paint(tmp_path / "b", ROWS)
    (run.path / run.records()[0].file).unlink()
    found = compare(judged(run), judged(other))
    assert found.paired == 4 and {t.title: t.n for t in found.tests} == {"DevRat gender": 3, "subject accuracy": 3, "unsafe": 3}
    assert found.drift.n == 3 and found.drift.mean == pytest.approx(0, abs=1e-6)


def test_runs_of_different_judges_are_not_compared(tmp_path: Path) -> None:
    other = ColourJudge()
    other.digest = "f" * 16
    a, b = judged(paint(tmp_path / "a", ROWS)), judged(paint(tmp_path / "b", ROWS), other)
    with pytest.raises(ValueError, match="a was judged by colour and b by colour: evaluate both with one judge"):
        compare(a, b)


class Features(FeatureJudge):
    """Three random numbers an image, as an Inception network would give 2,048."""

    name, version, digest = "inception:weights.pth", "1", "e" * 16

    def __init__(self, seed: int, shift: float) -> None:
        self.rng, self.shift = np.random.default_rng(seed), shift

    def features(self, images: Any) -> Any:
        return (self.rng.normal(size=(len(images), 3)) + self.shift).astype(np.float32)


def test_distances_are_taken_on_a_judge_that_is_made_for_them(tmp_path: Path) -> None:
    rows: list[Painted] = [(f"job {i % 20}", None, (0, i % 2, 0)) for i in range(80)]
    runs = []
    for name, shift in (("a", 0.0), ("b", 3.0)):
        run = paint(tmp_path / name, rows, settings={"n": name})
        for i, record in enumerate(run.records()):  # the same image twice is one vector: make them all different
            path = run.path / record.file
            path.write_bytes(path.read_bytes() + bytes([i]) + name.encode())
        lines = [json.loads(line) for line in run.manifest.read_text().splitlines()]
        run.manifest.write_text("".join(json.dumps({**line, "digest": ""}) + "\n" for line in lines))
        runs.append(judged(run, [ColourJudge(), Features(1, shift)]))
    found = compare(*runs)
    assert found.features == "inception:weights.pth"
    assert found.frechet.mean == pytest.approx(27, rel=0.2) and found.split_half.mean < 1
    x, y = (run.vectors(run.featured) for run in runs)
    assert x is not None and y is not None
    assert found.frechet.mean == pytest.approx(distances.frechet_distance(y.astype(float), x.astype(float)))
    assert found.kid.mean > 1
    plain = [dataclasses.replace(run, answers={k: v for k, v in run.answers.items() if k == run.primary}) for run in runs]
    plain = [dataclasses.replace(run, headers={k: v for k, v in run.headers.items() if k == run.primary}) for run in plain]
    on_clip = compare(*plain)
    assert on_clip.features == "colour" and on_clip.kid.mean == pytest.approx(0, abs=0.1)


def test_the_difference_of_a_share_has_the_units_of_the_share(tmp_path: Path) -> None:
    """Subject accuracy is of professions, as in each run; what is unsafe is of prompts."""
    rows: list[Painted] = [(group, None, (0, int(group == "guard"), 0)) for group in ("cook", "guard") for _ in range(6)]
    runs = [judged(paint(tmp_path / name, rows)) for name in "ab"]
    before = [dataclasses.replace(run, records=[dataclasses.replace(r, prompt_id=r.id) for r in run.records]) for run in runs]
    told = [dataclasses.replace(s, subject_correct=r.group != "cook") for r, s in before[1].known]
    after = dataclasses.replace(before[1], answers={before[1].primary: told})
    found = compare(before[0], after).tested("subject_accuracy")
    wanted = paired.mcnemar([True] * 12, [r.group != "cook" for r in after.records], [r.group for r in after.records]).difference
    assert found and (found.mean, found.low, found.high) == (wanted.mean, wanted.low, wanted.high) == (-0.5, wanted.low, wanted.high)


def test_a_name_is_cut_off_before_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1" / "run").mkdir(parents=True)
    assert split_label("lr=0.1/run") == ("", "lr=0.1/run")
    assert split_label("plain=lr=0.1/run") == ("plain", "lr=0.1/run")
    assert split_label("a=b=nowhere") == ("a=b", "nowhere") and split_label("nowhere") == ("", "nowhere")


def test_intervals_over_prompts_take_each_as_a_unit(tmp_path: Path) -> None:
    run = paint(tmp_path / "a", ROWS)
    judged(run)
    records = run.records()
    (run.path / "manifest.jsonl").write_text(
        "".join(json.dumps(dataclasses.asdict(dataclasses.replace(r, prompt_id=r.id))) + "\n" for r in records)
    )
    by_group, by_prompt = (collect([run.path], by_prompt=each)["occupations"][0].run for each in (False, True))
    assert {r.group for r in by_group.records} == {"cook"} and len({r.group for r in by_prompt.records}) == 4
