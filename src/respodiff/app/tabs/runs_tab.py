"""Provides the tab Runs: a folder as a report."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import gradio as gr

from respodiff.app import reading
from respodiff.app.service import ZIPS, Service, short_path
from respodiff.app.tabs.handlers import Tab, Updates, framed
from respodiff.reports.tables import markdown_text


def runs_tab(service: Service, opened: Any) -> None:
    gr.Markdown("Open a run folder, a comparison or an audit as a report. Images that nobody has judged are judged first.")
    with gr.Row():
        folder = gr.Dropdown(
            service.runs(), value=None, label="folder, or its path", allow_custom_value=True, scale=4, elem_id="runs-folder"
        )
        go = gr.Button("Open", variant="primary", scale=1, min_width=100, elem_id="runs-go")
    line = gr.Markdown("Choose a folder, and press Open.", elem_classes="line", elem_id="runs-line")
    shown = gr.HTML(elem_id="runs-page")
    file = gr.File(label="the page", visible=False, interactive=False)
    tab = Tab(service, "runs", line)

    def steps(_stop: Any, text: str) -> Iterator[Updates]:
        yield {line: "reading"}
        found = reading.open_folder(service, text or "")
        kept = found if found.is_relative_to(service.out) else shutil.copyfile(found, service.new_place(ZIPS, found.stem, ".html"))
        yield {line: markdown_text(short_path(found)), shown: framed(service.show(found)), file: gr.File(str(kept), visible=True)}

    go.click(tab.handler(steps), folder, [line, shown, file], show_progress="hidden")
    opened.select(lambda: gr.Dropdown(service.runs()), None, folder)
