"""The tab Try has a slider for every concept."""

from __future__ import annotations

import pytest

from respodiff.app.service import Service

pytest.importorskip("gradio", reason="needs the extra app")
from respodiff.app.tabs.handlers import MOST
from respodiff.app.tabs.try_tab import _shares


@pytest.mark.parametrize(("name", "shown"), [("gender", 2), ("none", 0), ("shoes", 0)])
def test_a_slider_for_every_concept(service: Service, name: str, shown: int) -> None:
    assert [s["visible"] for s in _shares(service, name)] == [True] * shown + [False] * (MOST - shown)
