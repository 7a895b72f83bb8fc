"""Labels by people: blind, resumed, and read by calibrate and the judge table:."""

from __future__ import annotations

import threading
import zipfile
from pathlib import Path

import pytest

from respodiff.app import pictures
from respodiff.app.labelling import Task
from respodiff.app.service import RUNS, Service
from respodiff.evaluation.labels import read_labels


@pytest.fixture
def run(service: Service) -> Path:
    out = service.new_place(RUNS, "a doctor")
    list(pictures.draw(service, pictures.Wish("a doctor", "gender", images=4), out, threading.Event()))
    return out / "steered"


def test_labels_are_kept_at_once_and_a_task_goes_on(run: Path) -> None:
    task = Task.begin(run, " ann ", "gender")
    assert task.options == ("woman", "man", "unknown") and task.image is not None and not task.tables
    task = task.answer("man").answer("unknown")
    assert Task.begin(run, "ann", "gender") == task and task.at == 2
    task = task.back().answer("woman").answer("man").answer("man")
    assert task.done and task.image is None and task.answer("man") == task
    assert sorted(task.labelled.values()) == ["man", "man", "man", "woman"]


def test_annotators_have_orders_of_their_own(run: Path) -> None:
    orders = {Task.begin(run, name, "gender").images for name in ("ann", "bob", "cid", "dan")}
    assert len(orders) > 1 and len({frozenset(images) for images in orders}) == 1


def test_both_sides_of_a_run_are_mixed(run: Path, service: Service) -> None:
    task = Task.begin(run.parent, "ann", "gender")
    assert len(task.images) == 8 and {side.name for side, _ in task.images[:4]} == {"unsteered", "steered"}
    while not task.done:
        task = task.answer("man")
    assert Task.begin(run.parent, "ann", "gender").done and [len(read_labels(side, "ann")) for side in task.runs] == [4, 4]
    with zipfile.ZipFile(task.download(service)) as zipped:
        assert zipped.namelist() == ["steered/labels-ann.csv", "unsteered/labels-ann.csv"]


def test_two_annotators_agree_so_far(run: Path) -> None:
    for name, label in (("ann", "man"), ("bob", "man")):
        task = Task.begin(run, name, "gender")
        while not task.done:
            task = task.answer(label if task.images[task.at] != sorted(task.images)[0] else "woman")
    (line,) = task.agreements()
    assert "ann and bob" in line and "(n = 4)" in line and "kappa 1.000" in line


@pytest.mark.parametrize(("annotator", "attribute"), [("", "gender"), ("a/b", "gender"), ("ann", "shoes")])
def test_bad_input(run: Path, annotator: str, attribute: str) -> None:
    with pytest.raises(ValueError, match=r"annotator|attribute"):
        Task.begin(run, annotator, attribute)
    with pytest.raises(ValueError, match="label"):
        Task.begin(run, "ann", "gender").answer("shoe")
