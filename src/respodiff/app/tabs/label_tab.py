"""Provides the tab Label: a person's own labels of a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from respodiff.app import labelling
from respodiff.app.service import ZIPS, Service, short_path
from respodiff.app.tabs.handlers import MOST, Tab, Updates, attributes, bar
from respodiff.reports.tables import markdown_text


def label_tab(service: Service, opened: Any) -> None:
    gr.Markdown(
        "Label the images of a run yourself, blind: you see neither the prompt nor what was asked for or perceived. Keys 1 to 9 answer, 0 is unknown, Backspace goes back."
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            run = gr.Dropdown(
                service.single_runs(), value=None, label="run folder, or its path", allow_custom_value=True, elem_id="label-run"
            )
            annotator = gr.Textbox(
                "", label="annotator", info="a name of your own; a second annotator gives another one", elem_id="label-annotator"
            )
            attribute = gr.Dropdown(attributes(), value="gender", label="attribute")
            go = gr.Button("Start", variant="primary", elem_id="label-go")
            file = gr.File(label="labels (CSV), for calibrate and the judge table:", visible=False, interactive=False, elem_id="label-file")
        with gr.Column(scale=3, min_width=300):
            line = gr.Markdown("Press Start.", elem_classes="line", elem_id="label-line")
            image = gr.Image(
                label="what do you see?", visible=False, interactive=False, height=360, format="png", elem_id="label-image", buttons=[]
            )
            with gr.Row():
                buttons = [
                    gr.Button(visible=False, elem_id=f"label-{(i + 1) % 10 if i < MOST else 0}", min_width=120) for i in range(MOST + 1)
                ]
            back = gr.Button("Back (Backspace)", visible=False, elem_id="label-back", size="sm")
            agreed = gr.Markdown("", elem_id="label-agreement")
    task = gr.State(None)
    outputs = [task, line, image, *buttons, back, file, agreed]
    tab = Tab(service, "label", line)

    def at(now: labelling.Task) -> Updates:
        *concepts, unknown = now.options
        asked = [gr.Button(f"{i}  {name}", visible=not now.done) for i, name in enumerate(concepts, start=1)]
        asked += [gr.Button(visible=False)] * (MOST - len(concepts)) + [gr.Button(f"0  {unknown}", visible=not now.done)]
        there = now.table.is_file()
        text = f"all {len(now.files)} images are labelled" if now.done else f"image {now.at + 1} of {len(now.files)}"
        kept = service.new_place(ZIPS, now.table.stem, ".csv") if now.done else None
        if kept:
            shutil.copyfile(now.table, kept)  # the run folder may be elsewhere, from where no file is served
        return {
            task: now,
            line: f"{text}{bar(now.at, len(now.files))}" + (f"\n\n{markdown_text(short_path(now.table))}" if there else ""),
            image: gr.Image(now.image, visible=not now.done),
            **dict(zip(buttons, asked, strict=True)),
            back: gr.Button(visible=now.at > 0),
            file: gr.File(str(kept), visible=True) if kept else gr.File(visible=False),
            agreed: "\n\n".join(map(markdown_text, labelling.agreements(now.run, now.attribute))),
        }

    def begin(_stop: Any, run: str, annotator: str, attribute: str) -> Iterator[Updates]:
        yield at(labelling.Task.begin(service.folder(run or ""), annotator or "", attribute))

    def answer(place: int) -> Callable[..., Iterator[Updates]]:
        def steps(_stop: Any, now: labelling.Task | None) -> Iterator[Updates]:
            if now is not None and place < len(now.options):
                yield at(now.answer(now.options[place]))

        return steps

    def before(_stop: Any, now: labelling.Task | None) -> Iterator[Updates]:
        if now is not None:
            yield at(now.back())

    go.click(tab.handler(begin), [run, annotator, attribute], outputs, show_progress="hidden")
    for place, button in enumerate(buttons):
        button.click(tab.handler(answer(place if place < MOST else -1)), task, outputs, show_progress="hidden", trigger_mode="once")
    back.click(tab.handler(before), task, outputs, show_progress="hidden")
    opened.select(lambda: gr.Dropdown(service.single_runs()), None, run)
