"""Tables of labels by people are what calibrate and the judge table: read."""

from __future__ import annotations

from pathlib import Path

import pytest

from painted import coloured
from respodiff.data.import_images import import_folder
from respodiff.evaluation import judges
from respodiff.evaluation.evaluate import evaluate
from respodiff.evaluation.labels import annotator_agreement, annotators, label_table, read_labels, write_label


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for i in range(3):
        coloured((80 * i, 60, 30), (32, 32)).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "images.csv").write_text("file,prompt\n0.png,a doctor\n1.png,a doctor\n2.png,a nurse\n")
    return import_folder(tmp_path / "images", tmp_path / "images.csv", tmp_path / "run").path


def label(run: Path, annotator: str, *labels: str, attribute: str = "gender") -> list[str]:
    from respodiff.data.run_folder import RunFolder

    files = [r.file for r in RunFolder(run).records()]
    for file, text in zip(files, labels, strict=False):
        write_label(run, annotator, file, attribute, text)
    return files


def test_labels_of_several_attributes_stand_in_one_table(run: Path) -> None:
    files = label(run, "ann", "woman", "unknown")
    label(run, "ann", "dark", attribute="tone")
    assert label_table(run, "ann").read_text() == f"file,gender,tone\n{files[0]},woman,dark\n{files[1]},unknown,\n"
    assert read_labels(run, "ann")[files[0]] == {"gender": "woman", "tone": "dark"} and annotators(run) == ["ann"]


def test_a_label_can_be_taken_back(run: Path) -> None:
    files = label(run, "ann", "woman", "man")
    write_label(run, "ann", files[0], "gender", "")
    assert list(read_labels(run, "ann")) == [files[1]]


def test_the_judge_table_reads_them(run: Path) -> None:
    label(run, "ann", "woman", "man", "unknown")
    found = evaluate(run, f"table:{label_table(run, 'ann')}")
    assert found.counts["gender"] == {"a doctor": {"woman": 1, "man": 1, "unknown": 0}, "a nurse": {"woman": 0, "man": 0, "unknown": 1}}


@pytest.mark.slow
def test_calibrate_reads_them(run: Path) -> None:
    from respodiff.concepts.concept import attribute
    from respodiff.evaluation.calibration import calibrate

    label(run, "ann", "woman", "man", "unknown")
    judge = judges.load_judge("embedded")
    assert calibrate(label_table(run, "ann"), judge, [attribute("gender")])[judge.digest]["gender"]["n"] == 2


def test_agreement_is_of_the_images_that_both_have_labelled(run: Path) -> None:
    label(run, "ann", "woman", "man", "man")
    assert annotator_agreement(run, "ann", "bob", "gender") is None
    label(run, "bob", "woman", "woman")
    found = annotator_agreement(run, "ann", "bob", "gender")
    assert found and found[0].n == 2 and found[0].mean == 0.5


def test_wrong_names_and_files_are_refused(run: Path) -> None:
    with pytest.raises(ValueError, match="annotator"):
        label_table(run, "../ann")
    with pytest.raises(ValueError, match="file"):
        write_label(run, "ann", "images/none.png", "gender", "man")
