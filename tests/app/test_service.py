"""Turns are fair, work stops when its visitor leaves, and choices are what is there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from respodiff.app.service import MODULES, RUNS, Service, short_path
from respodiff.pipelines.source import ModelSource


def test_a_turn_comes_before_the_next_step_of_long_work(service: Service) -> None:
    seen: list[str] = []

    def one_turn() -> None:
        with service.turns.turn():
            seen.append("picture")

    other = threading.Thread(target=one_turn)

    def training() -> Iterator[int]:
        for i in range(4):
            if i == 1:  # inside of a turn: the other one has to wait
                other.start()
                time.sleep(0.3)
            seen.append(f"iteration {i}")
            yield i

    with service.work("a", "train") as stop:
        list(service.by_turns(training(), stop))  # type: ignore[arg-type]
    other.join()
    assert seen == ["iteration 0", "iteration 1", "picture", "iteration 2", "iteration 3"]


def test_turns_exclude_each_other(service: Service) -> None:
    inside, most = [0], [0]

    def work() -> None:
        for _ in range(20):
            with service.turns.turn():
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.0005)
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def endless(closed: list[bool]) -> Iterator[int]:
    try:
        while True:
            yield 0
    finally:
        closed.append(True)


def test_work_stops_when_its_visitor_leaves_and_no_other_does(service: Service) -> None:
    closed: list[bool] = []
    with service.work("a", "train") as stop, service.work("b", "train") as other:
        steps = service.by_turns(endless(closed), stop)  # type: ignore[arg-type]
        next(steps)
        assert service.working == 2
        service.leave("a")
        assert list(steps) == [] and closed == [True] and stop.left and not other.is_set()
    assert service.working == 0


def test_a_closed_generator_closes_its_steps(service: Service) -> None:
    closed: list[bool] = []
    steps = service.by_turns(endless(closed), threading.Event())  # type: ignore[arg-type]
    next(steps)
    steps.close()
    assert closed == [True]


def test_new_work_of_a_kind_takes_the_place_of_the_old(service: Service) -> None:
    with service.work("a", "try") as first, service.work("a", "try") as second:
        assert first.is_set() and not second.is_set()
    assert service.working == 0


def test_choices_are_attributes_of_given_modules_and_trained_ones(service: Service, make_module: Callable[..., Any]) -> None:
    assert {name: c.concepts for name, c in service.choices().items()} == {"gender": ("woman", "man")}
    make_module("hat", seed=3).save(service.out / MODULES / "hat.safetensors")
    make_module("fire", kind="safety", negative="fire").save(service.out / MODULES / "fire.safetensors")
    choices = service.choices()
    assert list(choices) == ["gender", "hat"] and list(service.safety()) == ["fire"]
    assert choices["hat"].attribute.names == ("hat", "not hat") and [m.name for m in choices["hat"].load()] == ["hat"]


def test_modules_of_one_file_name_are_choices_of_their_own(service: Service, make_module: Callable[..., Any], tmp_path: Path) -> None:
    given = make_module("hat", attribute="", seed=3).save(tmp_path / "given" / "hat.safetensors")
    kept = make_module("hat", attribute="", seed=4).save(service.out / MODULES / "hat.safetensors")
    service.given = (given, kept)
    assert {name: c.sources for name, c in service.choices().items()} == {"hat": (str(given),), "hat-2": (str(kept),)}, "each file once"


def test_the_embedded_model_has_its_shipped_modules(service: Service) -> None:
    shipped = replace(service, source=ModelSource("embedded"), given=())
    assert {"gender", "tone"} <= set(shipped.choices()) and set(shipped.safety()) == {"violence", "sexual"}


def test_places_are_nobody_elses(service: Service) -> None:
    assert [service.new_place(RUNS, "A doctor!").name for _ in range(2)] == ["a-doctor", "a-doctor-2"]
    assert service.new_place(RUNS, "../医生").parent == service.out / RUNS
    assert service.new_place(RUNS, "hat", ".zip").is_file()


def test_runs_have_labels_of_their_own_and_those_that_are_gone_are_left_out(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [service.new_place(RUNS, "a doctor").name for _ in range(2)]
    (service.new_place(RUNS, "damaged") / "run.json").write_text("{")
    (service.out / RUNS / "gone").symlink_to(service.out / "nowhere")
    monkeypatch.setattr(Path, "is_dir", lambda _: True)  # it was one, and is removed before its time is asked
    found = {name: label for label, name in service.runs()}
    assert set(found) == {*names, "damaged"} and len(set(found.values())) == 3
    assert all(label.endswith(f"; {name}") for name, label in found.items()) and "cannot be read" in found["damaged"]


def test_folders_are_those_below_out_where_others_are_let_in(service: Service, tmp_path: Path) -> None:
    own = service.new_place(RUNS, "a")
    assert service.folder("a") == own and service.folder(str(tmp_path)) == tmp_path
    opened = replace(service, local=False)
    assert opened.folder(str(own)) == own
    for wrong in (str(tmp_path), "../..", "", "missing"):
        with pytest.raises(ValueError, match="folder is"):
            opened.folder(wrong)


def test_a_path_is_short_where_it_is_below_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert short_path(tmp_path / "here" / "app" / "runs") == "app/runs"
    assert short_path(tmp_path / "there") == str(tmp_path / "there")


def test_pages_are_those_that_were_shown(service: Service, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("a")
    address = service.show(tmp_path / "a.html")
    assert address == service.show(tmp_path / "a.html") == "/pages/1.html"
    assert service.page("1.html") == b"a" and service.page("../a.html") is None
