"""Handlers of the tabs: errors in one line, and an end when they are closed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from respodiff.app.service import Service

pytest.importorskip("gradio", reason="needs the extra app")
from respodiff.app.tabs.handlers import Tab


def test_bad_input_is_one_line(service: Service) -> None:
    def steps(_stop: threading.Event, text: str) -> Iterator[dict[Any, Any]]:
        yield {"gallery": text}
        raise ValueError("prompt is '<b>'; give\na text")

    seen = list(Tab(service, "try", "line").handler(steps)(SimpleNamespace(session_hash="a"), "hello"))
    assert seen == [{"gallery": "hello"}, {"line": "**Error:** prompt is '&lt;b&gt;'; give a text"}] and service.working == 0


@pytest.mark.parametrize("error", [None, ValueError, KeyError])
def test_what_starts_work_is_off_while_it_goes_on_and_old_results_are_gone(service: Service, error: type[Exception] | None) -> None:
    def steps(_stop: threading.Event) -> Iterator[dict[Any, Any]]:
        yield {}
        if error:
            raise error

    tab = Tab(service, "try", "line", ("go",), "halt", {"table": ""})
    seen: list[dict[str, Any]] = []
    try:
        seen += tab.handler(steps)(SimpleNamespace(session_hash="a"))
    except KeyError:
        assert error is KeyError
        run = tab.handler(steps)(SimpleNamespace(session_hash="a"))
        seen = [next(run) for _ in range(3)]
    states = [(step["go"]["interactive"], step["halt"]["interactive"]) for step in seen if "go" in step]
    assert states == [(False, True), (True, False)] and seen[0]["table"] == ""


def test_a_closed_handler_ends_its_work(service: Service) -> None:
    closed: list[bool] = []

    def steps(_stop: threading.Event) -> Iterator[dict[Any, Any]]:
        try:
            while True:
                yield {}
        finally:
            closed.append(True)

    run = Tab(service, "try", "line").handler(steps)(SimpleNamespace(session_hash="a"))
    next(run)
    assert service.working == 1
    run.close()  # type: ignore[attr-defined]
    assert closed == [True] and service.working == 0
