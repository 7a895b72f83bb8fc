"""Measures `respodiff app` in Chromium, or makes the screenshots of docs/app.md. Needs the extras dev and app, and Chromium.

python -m benchmarks.app                      # seconds from the command to the first steered image; memory with one and two users
python -m benchmarks.app --pictures docs/app  # every tab at 1280 and 390 pixels, light and dark
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

TABS = ("Try", "Train", "Audit", "Label", "Runs")
WIDTHS, TALLEST, COLOURS = (1280, 390), {1280: 1500, 390: 2200}, 96
WAIT, TRIES = 300_000, 20  # milliseconds; screenshots until a frame is drawn
PROMPT, RUN = "a mechanic", "a-mechanic"
"""What the screenshots ask for, and its folder."""


@contextmanager
def running(folder: str) -> Iterator[tuple[str, int]]:
    """Address and process id of `respodiff app` on the embedded model, started in a folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "respodiff", "app", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder)
    try:
        assert process.stdout
        address = process.stdout.readline().removeprefix("Running on ").strip()
        if not address:
            raise RuntimeError("respodiff app did not start; what it said is above")
        yield address, process.pid
    finally:
        process.terminate()
        process.wait()


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser: Any, address: str, scheme: str = "light") -> Any:
    """A tab of a visitor of its own."""
    tab = browser.new_context(viewport={"width": WIDTHS[0], "height": 900}, color_scheme=scheme).new_page()
    tab.set_default_timeout(WAIT)
    tab.goto(address)
    return tab


def press(tab: Any, name: str) -> None:
    """A button of the open tab."""
    tab.get_by_role("button", name=name, exact=True).click()


def mib(pid: int, what: str) -> float:
    """VmRSS or VmHWM of a process, in MiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"{what}:\s+(\d+) kB", text)
    return int(found[1]) / 1024 if found else float("nan")


def measure() -> dict[str, float]:
    """One run: seconds since the command, and resident memory."""
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        began = time.perf_counter()
        with running(folder) as (address, pid):
            found = {"listening_seconds": time.perf_counter() - began, "idle_mib": mib(pid, "VmRSS")}
            first = opened(browser, address)
            press(first, "Generate")
            first.locator("#try-steered img").first.wait_for()
            found["first_steered_image_seconds"] = time.perf_counter() - began
            first.locator("#try-zip").wait_for()
            found["one_user_peak_mib"] = mib(pid, "VmHWM")
            tabs = [first, opened(browser, address)]
            for tab in tabs:
                tab.locator("#try-prompt textarea, #try-prompt input").fill("a nurse")
                press(tab, "Generate")
            for tab in tabs:
                tab.get_by_text("done: 8 images").wait_for()
            found["two_users_peak_mib"] = mib(pid, "VmHWM")
    return {name: round(value, 1) for name, value in found.items()}


def fill(tab: Any, name: str) -> None:
    """Open a tab of the page and use it."""
    tab.get_by_role("tab", name=name, exact=True).click()
    if name == "Try":
        tab.locator("#try-prompt textarea, #try-prompt input").fill(PROMPT)
        press(tab, "Generate")
        tab.locator("#try-zip").wait_for()
    elif name == "Train":
        press(tab, "Train")
        tab.locator("#train-file").wait_for()
    elif name == "Audit":
        for place, n in (("#audit-images", "4"), ("#audit-check", "2")):
            tab.locator(f"{place} input[type=number]").fill(n)
            tab.locator(f"{place} input[type=number]").press("Enter")
        press(tab, "Audit")
        tab.frame_locator("#audit-page iframe").get_by_text("Worst prompts", exact=True).wait_for()
    elif name == "Label":
        tab.locator("#label-run input").fill(RUN)
        tab.locator("#label-run input").press("Enter")
        tab.locator("#label-annotator textarea, #label-annotator input").fill("ann")
        press(tab, "Start")
        for i in (1, 2, 3):
            tab.get_by_text(f"image {i} of 16").wait_for()
            tab.locator("#label-line").click()
            tab.keyboard.press("1")
        tab.get_by_text("image 4 of 16").wait_for()
    else:
        tab.locator("#runs-folder input").fill(RUN)
        tab.locator("#runs-folder input").press("Enter")
        press(tab, "Open")
        tab.frame_locator("#runs-page iframe").get_by_text("Evaluated images").wait_for()


def shoot(tab: Any, path: Path) -> None:
    """A screenshot of the whole page, once the reports in its frames are drawn; RuntimeError if one of them stays empty."""
    for _ in range(TRIES):
        tab.wait_for_timeout(1500)  # charts are drawn anew
        tab.screenshot(path=path, full_page=True)
        boxes = [box for frame in tab.locator("iframe:visible").all() if (box := frame.bounding_box())]
        with Image.open(path) as image:
            seen = [
                image.crop((int(b["x"]) + 9, int(b["y"]) + 9, int(b["x"] + b["width"]) - 9, int(b["y"] + min(b["height"], 400)) - 9))
                for b in boxes
            ]
        if all(part.getcolors(1) is None for part in seen):
            return
    raise RuntimeError(f"the report in a frame of {path.name} is empty after {TRIES} screenshots")


def pictures(out: Path) -> None:
    """Screenshots of every tab in use; a page of its own for each scheme, as charts take the colours in which they were drawn."""
    out.mkdir(parents=True, exist_ok=True)
    for scheme in ("light", "dark"):
        with tempfile.TemporaryDirectory() as folder, running(folder) as (address, _), chromium() as browser:
            tab = opened(browser, address, scheme)
            for name in TABS:
                fill(tab, name)
                for width in WIDTHS:
                    tall = TALLEST[width] if name == "Audit" else 900  # what is out of sight of a frame is not drawn
                    tab.set_viewport_size({"width": width, "height": tall})
                    path = out / f"{name.lower()}-{width}-{scheme}.png"
                    shoot(tab, path)
                    with Image.open(path) as image:
                        cut = image.convert("RGB").crop((0, 0, image.width, min(image.height, TALLEST[width])))
                    cut.quantize(COLOURS).save(path, optimize=True)
                tab.set_viewport_size({"width": WIDTHS[0], "height": 900})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="make screenshots there, and measure nothing")
    folder = parser.parse_args().pictures
    if folder:
        pictures(folder)
    else:
        print(json.dumps(measure()))


if __name__ == "__main__":
    main()
