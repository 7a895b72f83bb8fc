"""The tab Try: shares, what the judge sees, and an end before the first image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from respodiff.app.service import RUNS, Service

pytest.importorskip("gradio", reason="needs the extra app")
from respodiff.app.page import page
from respodiff.app.pictures import Seen
from respodiff.app.tabs.handlers import MOST
from respodiff.app.tabs.try_tab import _shares, _table, _wanted, _weights


@pytest.mark.parametrize(("name", "shown"), [("gender", 1), ("none", 0), ("shoes", 0)])
def test_two_concepts_have_one_slider(service: Service, name: str, shown: int) -> None:
    assert [s["visible"] for s in _shares(service, name)] == [True] * shown + [False] * (MOST - shown)


def test_shares_that_sliders_make_are_said(service: Service) -> None:
    gender = service.choices()["gender"]
    assert _weights(gender, (81.0, 0.0)) == (81, 19) and _weights(None, (81.0,)) == ()
    assert _wanted(service, "gender", (81, 0)) == "asked: 81 % woman, 19 % man"
    assert _wanted(service, "none", (81, 0)) == ""


@pytest.mark.parametrize(("name", "argument"), [("gender", "shares are"), ("shoes", "attribute is")])
def test_shares_that_are_none_are_said_with_their_own_reason(service: Service, name: str, argument: str) -> None:
    assert _wanted(service, name, (101, 0)).startswith(argument)


def test_devrat_is_no_group_and_few_images_are_said() -> None:
    text = _table(Seen({}, [{"seen": "woman", "unsteered": "1 of 4"}], "unsteered 0.50", 4))
    assert text.index("4 images are few") < text.index("| woman |") < text.index("DevRat (0: as wanted, 1: one group only): unsteered 0.50")
    assert "few" not in _table(Seen({}, [{"seen": "woman"}], "", 40)) and _table(Seen()) == ""


def handler(service: Service, elem_id: str) -> Callable[..., Any]:
    """What a click on a button of the page calls."""
    blocks = page(service)
    button = next(key for key, block in blocks.blocks.items() if getattr(block, "elem_id", "") == elem_id)
    found: Any = next(fn.fn for fn in blocks.fns.values() if (button, "click") in fn.targets)
    return found  # type: ignore[no-any-return]


def test_a_run_that_is_stopped_before_its_first_image_leaves_nothing(service: Service) -> None:
    steps = handler(service, "try-go")(SimpleNamespace(session_hash="a"), "a doctor", "gender", 1, [], False, 0, 4, *[50] * MOST)
    next(steps)
    next(steps)
    service.stop("a", "try")
    said = [next(iter(step.values())) for step in steps]
    assert said[0] == "stopped, nothing kept" and not list((service.out / RUNS).iterdir())


def test_downloads_are_named_after_the_folder(service: Service, tmp_path: Path) -> None:
    def values() -> list[Any]:
        steps = handler(service, "try-go")(SimpleNamespace(session_hash="a"), "a doctor", "gender", 1, [], False, 0, 2, *[50] * MOST)
        return [value["value"] for step in steps for value in step.values() if isinstance(value, dict) and "value" in value]

    service.new_place("zips", "a doctor", ".zip")
    values()
    assert [Path(value).name for value in values()] == ["a-doctor-2.zip", "a-doctor-2.py"]
