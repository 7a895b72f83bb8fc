"""A scored run as rows, as a data frame and as fairlearn's MetricFrame, with numbers counted by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from painted import GENDER, WORDS, ColourJudge, Painted, coloured, paint
from respodiff.concepts.concept import Attribute, Concept
from respodiff.data.records import ImageRecord
from respodiff.data.run_folder import RunFolder
from respodiff.evaluation.evaluate import evaluate, judge_all
from respodiff.evaluation.judges import FlagJudge
from respodiff.evaluation.scored_run import ScoredRun, asked_before, load_scored_run

JOB = Attribute("job", (Concept("cook", "a cook"), Concept("guard", "a guard")))
# 2 of 3 cooks and 1 of 4 guards are perceived as women; one cook that was asked for as a woman is a man.
ROWS: list[Painted] = [
    ("cook", "woman", (0, 0, 0)),
    ("cook", "woman", (1, 0, 0)),
    ("cook", "man", (0, 0, 0)),
    ("guard", "woman", (0, 1, 0)),
    ("guard", "man", (1, 1, 0)),
    ("guard", "man", (1, 1, 1)),
    ("guard", "man", (1, 1, 0)),
]


class Flags(FlagJudge):
    """Finds everything unsafe."""

    name, digest, version, threshold, rule = "flags", "f" * 16, "1", 0.5, "all"

    def score_batch(self, images: Any) -> list[float]:
        return [0.75 for _ in images]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return paint(tmp_path / "run", ROWS, seed=3)


@pytest.fixture
def scored(folder: RunFolder) -> ScoredRun:
    evaluate(folder, [ColourJudge(), Flags()], [GENDER, JOB], vocabulary=WORDS)
    return load_scored_run(folder, judge=["colour", "flags"])


def test_a_row_of_a_record_is_flat() -> None:
    concepts, margins = {"gender": "woman"}, {"gender": 0.5}
    record = ImageRecord("a", "f", "p", "q", categories=("x", "y"), concepts=concepts, modules=["1", "2"], margins=margins)
    row = ImageRecord.row(record)
    assert row["asked_gender"] == "woman" and row["margin_gender"] == 0.5 and row["categories"] == "x|y" and row["modules"] == "1|2"
    assert all(isinstance(value, str | int | float | None) for value in row.values()) and record.concepts == concepts


def test_rows_hold_what_was_asked_and_what_every_judge_said(scored: ScoredRun) -> None:
    rows = scored.rows()
    assert len(rows) == len(ROWS) and len({tuple(row) for row in rows}) == 1
    assert [row["asked_gender"] for row in rows] == [asked for _, asked, _ in ROWS]
    assert [row["colour/perceived_gender"] for row in rows] == ["man" if red else "woman" for _, _, (red, _, _) in ROWS]
    assert [row["colour/found"] for row in rows] == [group for group, _, _ in ROWS] and {row["colour/subject_correct"] for row in rows} == {
        True
    }
    assert {row["flags/unsafe"] for row in rows} == {True} and {row["flags/score"] for row in rows} == {0.75}
    assert [row["colour/unsafe"] for row in rows] == [bool(blue) for _, _, (_, _, blue) in ROWS]
    assert not {"colour/problem", "flags/found", "flags/perceived_gender"} & {*rows[0]}


def test_data_frames_have_a_row_an_image(folder: RunFolder, scored: ScoredRun) -> None:
    pytest.importorskip("pandas")
    plain, judged = folder.to_pandas(), scored.to_pandas()
    assert plain.id.tolist() == judged.id.tolist() == [r.id for r in folder.records()]
    assert plain.columns.tolist() == [c for c in judged.columns if "/" not in c and c != "asked_job"]
    assert plain.asked_gender.tolist() == [asked for _, asked, _ in ROWS] and set(plain.seed) == {3}
    assert (judged["colour/perceived_gender"] == "woman").groupby(judged.group).mean().to_dict() == {"cook": 2 / 3, "guard": 1 / 4}


def test_a_metric_frame_by_hand_and_against_what_devrat_counts(scored: ScoredRun) -> None:
    fairlearn = pytest.importorskip("fairlearn.metrics")
    frame = scored.to_metricframe("gender", "woman")
    rates = frame.by_group["selection_rate"].to_dict()
    assert rates == pytest.approx({"cook": 2 / 3, "guard": 1 / 4}) and frame.overall["selection_rate"] == pytest.approx(3 / 7)
    assert frame.difference()["selection_rate"] == pytest.approx(2 / 3 - 1 / 4)
    assert frame.by_group["count"].to_dict() == {"cook": 3, "guard": 4}
    assert rates == pytest.approx({group: row[0] / sum(row) for group, row in scored.known_counts("gender").items()})
    devrat = sum(max(abs(rate - 0.5), abs(0.5 - rate)) / 0.5 for rate in rates.values()) / 2
    assert evaluate(scored.folder, ColourJudge(), [GENDER], vocabulary=WORDS).devrat["gender"].mean == pytest.approx(devrat)
    asked = [float(name == "woman") for _, name, _ in ROWS]
    seen = [float(not red) for _, _, (red, _, _) in ROWS]
    parity = fairlearn.demographic_parity_difference(asked, seen, sensitive_features=[group for group, _, _ in ROWS])
    assert frame.difference()["selection_rate"] == pytest.approx(parity)
    equal = scored.to_metricframe("gender", "woman", metrics={"tpr": fairlearn.true_positive_rate, "fpr": fairlearn.false_positive_rate})
    assert equal.by_group["tpr"].to_dict() == {"cook": 0.5, "guard": 1.0} and equal.by_group["fpr"].to_dict() == {"cook": 1.0, "guard": 0.0}


def test_groups_of_several_columns(scored: ScoredRun) -> None:
    pytest.importorskip("fairlearn")
    frame = scored.to_metricframe("gender", "woman", by=["group", "asked_gender"])
    assert frame.by_group["selection_rate"]["cook", "woman"] == 0.5 and frame.by_group["count"]["guard", "man"] == 3


def test_what_was_not_asked_for_fails_in_metrics_that_need_it(tmp_path: Path) -> None:
    fairlearn = pytest.importorskip("fairlearn.metrics")
    folder = paint(tmp_path / "plain", [(group, None, colour) for group, _, colour in ROWS])
    evaluate(folder, ColourJudge(), [GENDER], vocabulary=WORDS)
    run = load_scored_run(folder)
    assert run.to_metricframe("gender", "woman").by_group["selection_rate"]["cook"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError):
        run.to_metricframe("gender", "woman", metrics=fairlearn.true_positive_rate)


def test_unknown_images_are_left_out_and_said(folder: RunFolder) -> None:
    pytest.importorskip("fairlearn")
    coloured((255, 255, 255)).resize((1, 1)).save(folder.path / folder.records()[0].file)  # changed since it was stored
    evaluate(folder, ColourJudge(), [GENDER], vocabulary=WORDS)
    run = load_scored_run(folder)
    assert run.rows()[0]["colour/perceived_gender"] == "unknown" and run.rows()[0]["colour/problem"] == "changed"
    with pytest.warns(UserWarning, match="1 of 7 images are left out"):
        frame = run.to_metricframe("gender", "woman")
    assert frame.by_group["count"].to_dict() == {"cook": 2, "guard": 4} and frame.by_group["selection_rate"]["cook"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("mood", "woman"), r"attribute is 'mood'.*allowed: gender \(woman, man\), job"),
        (("gender", "cook"), "concept is 'cook'"),
        (("gender", "woman", "nothing"), "by is 'nothing'; allowed: id"),
    ],
)
def test_a_metric_frame_of_what_is_not_there(arguments: tuple[str, ...], said: str, scored: ScoredRun) -> None:
    with pytest.raises(ValueError, match=said):
        scored.to_metricframe(*arguments[:2], **({"by": arguments[2]} if arguments[2:] else {}))


def test_without_the_packages_one_line_says_what_to_install(scored: ScoredRun, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pandas", "fairlearn.metrics"):
        monkeypatch.setitem(sys.modules, name, None)
    for call in (folder.to_pandas, scored.to_pandas, lambda: scored.to_metricframe("gender", "woman")):
        with pytest.raises(RuntimeError, match=r"pip install 'respodiff\[data\]'"):
            call()


def test_what_a_judge_was_asked_with_is_kept(tmp_path: Path) -> None:
    run, shares = paint(tmp_path / "run", [("cook", None, (0, 0, 0))]), {"cook": {"gender": {"woman": 0.25, "man": 0.75}}}
    judge = ColourJudge()
    assert asked_before(run, judge.name, judge.digest) == {}
    judge_all(run, judge, [GENDER], vocabulary=WORDS, min_margin=0.5, group_proportions=shares)
    assert asked_before(run, judge.name, judge.digest) == {"class_template": "{concept}", "min_margin": 0.5, "group_proportions": shares}


def test_targets_of_the_run_stay_where_a_judge_was_not_asked_for_them(tmp_path: Path) -> None:
    own = {"cook": {"gender": {"woman": 0.25, "man": 0.75}, "tone": {"light": 1.0}}}
    run, judge = paint(tmp_path / "run", [("cook", None, (0, 0, 0))], settings={"group_proportions": own}), ColourJudge()
    judge_all(run, judge, [GENDER], vocabulary=WORDS)
    assert asked_before(run, judge.name, judge.digest)["group_proportions"] == own
