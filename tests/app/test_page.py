"""The page as Gradio has it. No browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from respodiff.app.service import Service

pytest.importorskip("gradio", reason="needs the extra app")
from respodiff.app.page import page


def test_every_tab_says_what_it_is_for(service: Service) -> None:
    config = json.dumps(page(service).get_config_file(), default=str)
    assert all(f'"label": "{name}"' in config for name in ("Try", "Train", "Audit", "Label", "Runs"))


def test_it_says_where_results_are_from_where_it_was_started(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = json.dumps(page(service).get_config_file(), default=str)
    assert "Results are kept in app." in config and str(tmp_path) not in config
