"""``respodiff app``: what it refuses before it listens, and the line it prints when it does."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from command import respodiff
from server import free_port

pytestmark = pytest.mark.slow
needs_gradio = pytest.mark.skipif(not find_spec("gradio"), reason="needs the extra app")


def test_without_gradio_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in [name for name in sys.modules if name.startswith("respodiff.app")]:
        monkeypatch.delitem(sys.modules, name)
    done = respodiff("app")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "respodiff[app]" in done.stderr


@needs_gradio
def test_what_cannot_be_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    with free_port() as (free, _):
        pass
    with free_port() as (port, taken):
        taken.listen()
        for arguments, said in (
            (["--port", str(port)], "--port"),
            (["--port", str(free), "--judge", "shoes"], "judge"),
            (["--port", str(free), "--model", "other", "--module", "gender"], "gender"),
        ):
            done = respodiff("app", "--out", str(tmp_path / "out"), *arguments)
            assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


@needs_gradio
def test_it_says_where_it_listens(tmp_path: Path) -> None:
    with free_port() as (port, _):
        pass
    command = [sys.executable, "-m", "respodiff", "app", "--port", str(port), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        assert process.stdout.readline() == f"Running on http://127.0.0.1:{port}\n"
    finally:
        process.terminate()
        process.communicate(timeout=60)
