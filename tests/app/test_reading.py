"""Folders of every kind are opened as their page."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from respodiff.app import pictures, reading
from respodiff.app.service import RUNS, Service
from respodiff.data.records import image_id
from respodiff.reports.html import html_report


@pytest.fixture
def judging(make_service: Callable[..., Service], tmp_path: Path) -> Service:
    table = tmp_path / "table.csv"
    table.write_text("id,gender\n" + "".join(f"{image_id('a doctor', i)},man\n" for i in range(2)))
    return make_service(f"table:{table}")


def test_a_pair_of_runs_is_one_report_and_is_judged_first(judging: Service) -> None:
    out = judging.new_place(RUNS, "a doctor")
    list(pictures.draw(judging, pictures.Wish("a doctor", "gender", images=2), out, threading.Event()))
    page = reading.open_folder(judging, "a-doctor").read_text()
    assert "unsteered" in page and "steered" in page and page.index("unsteered") < page.index(", steered")
    assert "images" in reading.open_folder(judging, "a-doctor/steered").read_text()


def test_a_page_that_is_there_is_shown(judging: Service, tmp_path: Path) -> None:
    written = html_report(tmp_path / "c" / "compare.html", title="t", lead="l", sections=[])
    assert reading.open_folder(judging, str(tmp_path / "c")) == written


def test_other_folders_are_refused(judging: Service, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "compare.html").write_text("of something else")
    for wrong in ("", "missing", str(tmp_path / "other")):
        with pytest.raises(ValueError, match="folder"):
            reading.open_folder(judging, wrong)
