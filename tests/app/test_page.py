"""The page as Gradio has it: its tabs, errors in one line, and what is served. No browser."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from respodiff.app.service import Service
from server import free_port, served


@pytest.fixture
def page() -> Any:
    """The module, which needs the extra app."""
    pytest.importorskip("gradio", reason="needs the extra app")
    from respodiff.app import page

    return page


def test_every_tab_says_what_it_is_for(service: Service, page: Any) -> None:
    config = json.dumps(page.page(service).get_config_file(), default=str)
    assert all(f'"label": "{name}"' in config for name in ("Try", "Train", "Audit", "Label", "Runs"))


def test_bad_input_is_one_line_and_the_rest_stays(service: Service, page: Any) -> None:
    def steps(_stop: threading.Event, text: str) -> Iterator[dict[Any, Any]]:
        yield {"gallery": text}
        raise ValueError("prompt is '<b>'; give\na text")

    seen = list(page.Tab(service, "try", "line").handler(steps)(SimpleNamespace(session_hash="a"), "hello"))
    assert seen == [{"gallery": "hello"}, {"line": "**Error:** prompt is '&lt;b&gt;'; give a text"}] and service.working == 0


def test_a_closed_handler_ends_its_work(service: Service, page: Any) -> None:
    closed: list[bool] = []

    def steps(_stop: threading.Event) -> Iterator[dict[Any, Any]]:
        try:
            while True:
                yield {}
        finally:
            closed.append(True)

    run = page.Tab(service, "try", "line").handler(steps)(SimpleNamespace(session_hash="a"))
    next(run)
    assert service.working == 1
    run.close()  # type: ignore[attr-defined]
    assert closed == [True] and service.working == 0


@pytest.mark.parametrize(("name", "shown"), [("gender", 2), ("none", 0), ("shoes", 0)])
def test_a_slider_for_every_concept(service: Service, name: str, shown: int, page: Any) -> None:
    assert [s["visible"] for s in page._shares(service, name)] == [True] * shown + [False] * (page.MOST - shown)


def test_a_taken_port_is_one_line(page: Any) -> None:
    with free_port() as (port, taken):
        taken.listen()
        with pytest.raises(ValueError, match="--port"):
            page.check_port("127.0.0.1", port)


@pytest.mark.slow
def test_reports_are_served_without_scripts_and_nothing_else_is(service: Service, tmp_path: Path, page: Any) -> None:
    (tmp_path / "a.html").write_text("<p>hello")
    with served(service) as address, urllib.request.urlopen(address + service.show(tmp_path / "a.html"), timeout=60) as answer:
        assert answer.read() == b"<p>hello" and "sandbox" in answer.headers["Content-Security-Policy"]
        for other in ("/pages/2.html", f"/gradio_api/file={tmp_path}/a.html".replace("/app", ""), "/gradio_api/file=/etc/passwd"):
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(address + other, timeout=60)
