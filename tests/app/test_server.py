"""The server: a taken port, and what is served. No browser."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest

from respodiff.app.service import Service
from server import free_port, served

pytest.importorskip("gradio", reason="needs the extra app")
from respodiff.app.server import check_port


def test_a_taken_port_is_one_line() -> None:
    with free_port() as (port, taken):
        taken.listen()
        with pytest.raises(ValueError, match="--port"):
            check_port("127.0.0.1", port)


@pytest.mark.slow
def test_reports_are_served_without_scripts_and_nothing_else_is(service: Service, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<p>hello")
    with served(service) as address, urllib.request.urlopen(address + service.show(tmp_path / "a.html"), timeout=60) as answer:
        assert answer.read() == b"<p>hello" and "sandbox" in answer.headers["Content-Security-Policy"]
        for other in ("/pages/2.html", f"/gradio_api/file={tmp_path}/a.html".replace("/app", ""), "/gradio_api/file=/etc/passwd"):
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(address + other, timeout=60)
