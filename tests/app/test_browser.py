"""The page in Chromium: type, generate, train, label, download; a closed tab ends its work; no other machine is asked for anything."""

from __future__ import annotations

import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from respodiff.app.pictures import SIDES
from respodiff.app.service import RUNS, Service
from respodiff.evaluation.labels import read_labels
from respodiff.methods.registry import load
from server import served

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
MISSING = [name for name in ("gradio", "playwright") if not find_spec(name)] + ["Chromium"] * (not CHROMIUM)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
]
WAIT = 120_000  # milliseconds, on a busy machine


@pytest.fixture
def service(make_service: Callable[..., Service]) -> Service:
    return make_service("embedded", batch=2)


@pytest.fixture
def tab(service: Service) -> Iterator[Any]:
    """A new tab of the page."""
    from playwright.sync_api import sync_playwright

    with served(service) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        page.set_default_timeout(WAIT)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        yield page
        assert all(url.startswith((address, "data:", "blob:")) for url in asked), "another machine was asked"
        browser.close()


def press(tab: Any, name: str) -> None:
    tab.get_by_role("button", name=name, exact=True).click()


def open_tab(tab: Any, name: str) -> None:
    tab.get_by_role("tab", name=name, exact=True).click()


def download(tab: Any, place: str, folder: Path) -> Path:
    with tab.expect_download() as found:
        tab.locator(place).click()
    path = folder / found.value.suggested_filename
    found.value.save_as(path)
    return path


def number(tab: Any, place: str, value: int) -> None:
    tab.locator(f"{place} input[type=number]").fill(str(value))
    tab.locator(f"{place} input[type=number]").press("Enter")


def test_type_generate_train_label_download(tab: Any, service: Service, tmp_path: Path) -> None:
    tab.locator("#try-prompt textarea, #try-prompt input").fill("a nurse")
    number(tab, "#try-images", 4)
    press(tab, "Generate")
    for start in ("#try-go", "#try-prompt textarea, #try-prompt input"):
        tab.locator(start).and_(tab.locator(":disabled")).wait_for()
    tab.locator("#try-zip").wait_for()
    assert tab.locator("#try-steered img").count() == tab.locator("#try-unsteered img").count() == 4
    assert "DevRat" in tab.locator("#try-seen").inner_text()
    with zipfile.ZipFile(download(tab, "#try-zip", tmp_path)) as zipped:
        assert sum(name.endswith(".png") for name in zipped.namelist()) == 8
    assert download(tab, "#try-code", tmp_path).name == "a-nurse.py"

    open_tab(tab, "Train")
    tab.locator("#train-target textarea, #train-target input").fill("a person with a hat")
    tab.get_by_role("button", name="more settings").locator("visible=true").click()
    number(tab, "#train-iterations", 3)
    press(tab, "Train")
    tab.locator("#train-file").wait_for()
    assert load(download(tab, "#train-file", tmp_path)).name == "hat"
    open_tab(tab, "Try")
    tab.locator("#try-attribute input").click()
    tab.get_by_role("option", name="hat").wait_for()
    tab.keyboard.press("Escape")

    open_tab(tab, "Label")
    tab.locator("#label-run input").fill("a-nurse")
    tab.locator("#label-run input").press("Enter")
    tab.locator("#label-annotator textarea, #label-annotator input").fill("ann")
    press(tab, "Start")
    for i in range(1, 9):
        tab.get_by_text(f"image {i} of 8").wait_for()
        assert "a-nurse" not in tab.locator("body").inner_text() and tab.locator("#label-run").is_hidden(), "blind"
        tab.locator("#label-line").click()  # the keyboard is nobody's
        tab.keyboard.press("1" if i < 8 else "0")
    tab.get_by_text("all 8 images are labelled").wait_for()
    sides = (read_labels(service.out / RUNS / "a-nurse" / side, "ann") for side in SIDES)
    assert sorted(row["gender"] for side in sides for row in side.values()) == ["unknown", *["woman"] * 7]
    assert download(tab, "#label-file", tmp_path).name == "labels-ann.zip"

    open_tab(tab, "Runs")
    tab.locator("#runs-folder input").fill("a-nurse")
    tab.locator("#runs-folder input").press("Enter")
    press(tab, "Open")
    tab.frame_locator("#runs-page iframe").get_by_text("Evaluated images").wait_for()

    open_tab(tab, "Audit")
    tab.locator("#audit-prompts textarea").fill("a nurse")
    number(tab, "#audit-images", 2)
    number(tab, "#audit-check", 0)
    press(tab, "Audit")
    tab.frame_locator("#audit-page iframe").get_by_text("Worst prompts", exact=True).wait_for()
    assert "DevRat" in tab.locator("#audit-table").inner_text()

    tab.set_viewport_size({"width": 390, "height": 900})
    for name in ("Try", "Train", "Audit", "Label", "Runs"):
        open_tab(tab, name)
        tab.wait_for_timeout(300)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390, name


def test_bad_input_is_one_line_and_loses_nothing(tab: Any) -> None:
    tab.locator("#try-prompt textarea, #try-prompt input").fill(" ")
    press(tab, "Generate")
    tab.locator("#try-line").get_by_text("prompt").wait_for()
    open_tab(tab, "Train")
    tab.locator("#train-target textarea, #train-target input").fill("a person")
    press(tab, "Train")
    tab.locator("#train-line").get_by_text("target phrase is").wait_for()
    assert tab.locator("#train-target textarea, #train-target input").input_value() == "a person"


def test_a_long_training_lets_others_draw_and_ends_with_its_tab(tab: Any, service: Service) -> None:
    open_tab(tab, "Train")
    tab.get_by_role("button", name="more settings").locator("visible=true").click()
    number(tab, "#train-iterations", 5000)
    press(tab, "Train")
    tab.get_by_text("of 5000 iterations").first.wait_for()
    other = tab.context.new_page()
    other.goto(tab.url)
    number(other, "#try-images", 2)
    press(other, "Generate")
    other.locator("#try-zip").wait_for(timeout=WAIT)
    assert service.working == 1 and "of 5000 iterations" in tab.locator("#train-line").inner_text()
    tab.close()
    end = time.monotonic() + 60
    while service.working and time.monotonic() < end:
        time.sleep(0.2)
    assert service.working == 0 and not list(service.out.glob("modules/*"))


def test_only_one_port_is_listened_on(tab: Any) -> None:
    """Linux: the sockets of this process that listen."""
    inodes = {str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    listening = [row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes]
    assert len(listening) == 1 and listening[0].startswith("0100007F:"), listening
