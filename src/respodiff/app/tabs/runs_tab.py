"""Provides the tab Runs: a folder as a report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from respodiff.app import reading
from respodiff.app.service import Service, short_path
from respodiff.app.tabs.handlers import Tab, Updates, framed
from respodiff.reports.tables import markdown_text


def runs_tab(service: Service, opened: Any) -> None:
    """Builds the tab, whose list of runs is read again when it is ``opened``."""
    gr.Markdown("Open a run, a comparison or an audit as a report. Images that nobody has judged are judged first.")
    with gr.Row():
        folder = gr.Dropdown(service.runs(), value=None, label="run, or its path", allow_custom_value=True, scale=4, elem_id="runs-folder")
        go = gr.Button("Open", variant="primary", scale=1, min_width=100, elem_id="runs-go")
    line = gr.Markdown("Choose a run, and press Open.", elem_classes="line", elem_id="runs-line")
    shown = gr.HTML(elem_id="runs-page")
    tab = Tab(service, "runs", line, (go,), cleared={shown: ""})

    def steps(_stop: Any, text: str) -> Iterator[Updates]:
        yield tab.running("reading")
        found = reading.open_folder(service, text or "")
        yield {line: markdown_text(short_path(found)), shown: framed(service.show(found))}

    go.click(tab.handler(steps), folder, tab.outputs, show_progress="hidden")
    opened.select(lambda: gr.Dropdown(service.runs()), None, folder)
