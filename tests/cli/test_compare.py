"""``respodiff compare``: its help and its table. What it compares is tested in tests/experiments, audits in tests/evaluation."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from command import respodiff
from respodiff.cli.experiments import _table
from respodiff.experiments.comparison_report import columns_of


def test_help_names_the_prompt_sets_and_the_tables_of_settings() -> None:
    done = respodiff("compare", "--help")
    assert "winobias36" in done.stdout and "unsafe" in done.stdout
    assert "[fairness.NAME]" in done.stdout and "[safety.NAME]" in done.stdout, "rich takes no bracket for markup"


@pytest.mark.parametrize(("kind", "main"), [("fairness", "devrat"), ("safety", "unsafe")])
def test_the_console_shows_a_table(kind: str, main: str) -> None:
    estimate = {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 8, "random": 0.1}
    row: dict[str, Any] = dict.fromkeys(columns_of(kind), estimate) | {"label": "plain", "unet_forwards_per_image": 40, "change": None}
    console = Console(width=160)
    with console.capture() as shown:
        console.print(_table([row], kind))
    text = shown.get()
    assert "plain" in text and "0.500 [0.250, 0.750]" in text and " 40 " in text and "| --- |" not in text
    assert columns_of(kind)[main] in text
