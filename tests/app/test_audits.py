"""An audit in the page: progress, ranking and page."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from respodiff.app.audits import COLUMNS, Audited, Question, follow, rows
from respodiff.app.service import RUNS, Service
from respodiff.data.records import image_id
from respodiff.experiments.work import Progress

ASKED = Question(("a doctor", "", "a nurse "), attributes=("gender",), images=3)


@pytest.fixture
def judging(make_service: Callable[..., Service], tmp_path: Path) -> Service:
    """With labels for all images of `ASKED`."""
    table = tmp_path / "table.csv"
    ids = [image_id(prompt, i) for prompt in ("a doctor", "a nurse") for i in range(3)]
    table.write_text("id,gender\n" + "".join(f"{i},man\n" for i in ids))
    return make_service(f"table:{table}", batch=2)


def test_ranking_and_page(judging: Service) -> None:
    *steps, last = follow(judging, ASKED, threading.Event())
    assert isinstance(last, Audited) and all(isinstance(step, Progress) for step in steps)
    assert [s.done for s in steps if isinstance(s, Progress) and s.what == "generating run"] == [1, 2, 3, 4, 5, 6]
    found: list[list[Any]] = rows(last.found)
    assert [row[1] for row in found] == ["a doctor", "a nurse"] and all(len(row) == len(COLUMNS) and row[3] == 1 for row in found)
    assert [row[-1] for row in found] == ["not shown, p 0.500"] * 2, "three of three is no proof"
    assert last.page.is_file() and last.page.parent.parent == judging.out / RUNS


def test_a_stopped_one_keeps_its_images(judging: Service) -> None:
    stop = threading.Event()
    seen = []
    for step in follow(judging, ASKED, stop):
        seen.append(step)
        stop.set()
    assert [type(step) for step in seen] == [Progress] and len(list((judging.out / RUNS).iterdir())) == 1


def test_one_that_is_stopped_at_once_leaves_no_folder(judging: Service) -> None:
    stop = threading.Event()
    stop.set()
    assert list(follow(judging, ASKED, stop)) == [] and not list((judging.out / RUNS).iterdir())


@pytest.mark.parametrize(
    ("asked", "argument"),
    [
        (Question(()), "prompt"),
        (Question(("a",), attributes=()), "attributes"),
        (Question(("a",), attributes=("shoes",)), "shoes"),
        (Question(suite="none such"), "none such"),
    ],
)
def test_bad_input(judging: Service, asked: Question, argument: str) -> None:
    with pytest.raises(ValueError, match=argument):
        list(follow(judging, asked, threading.Event()))


def test_without_a_judge(service: Service) -> None:
    with pytest.raises(ValueError, match="judge"):
        list(follow(service, ASKED, threading.Event()))
