"""Provides the tab Label: a person's own labels of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from respodiff.app.labelling import Task
from respodiff.app.service import Service, short_path
from respodiff.app.tabs.handlers import HIDDEN, MOST, Tab, Updates, attributes, bar, named
from respodiff.reports.tables import markdown_text


def label_tab(service: Service, opened: Any) -> None:
    """Builds the tab, whose list of runs is read again when it is ``opened``."""
    gr.Markdown("Label the images of a run yourself, blind: unsteered and steered ones are mixed, and nothing says which is which.")
    with gr.Row():
        with gr.Column(scale=2, min_width=280) as setup:
            run = gr.Dropdown(service.runs(), value=None, label="run, or its path", allow_custom_value=True, elem_id="label-run")
            annotator = gr.Textbox("", label="your name", elem_id="label-annotator")
            attribute = gr.Dropdown(named(attributes()), value="gender", label="attribute")
            go = gr.Button("Start", variant="primary", elem_id="label-go")
        with gr.Column(scale=3, min_width=280):
            line = gr.Markdown("Press Start.", elem_classes="line", elem_id="label-line")
            image = gr.Image(
                label="what do you see?", visible=False, interactive=False, height=360, format="png", elem_id="label-image", buttons=[]
            )
            with gr.Row():
                buttons = [
                    gr.Button(visible=False, elem_id=f"label-{(i + 1) % 10 if i < MOST else 0}", min_width=120) for i in range(MOST + 1)
                ]
            with gr.Row():
                back = gr.Button("Back (Backspace)", visible=False, elem_id="label-back", size="sm")
                leave = gr.Button("Another run", visible=False, elem_id="label-leave", size="sm")
            agreed = gr.Markdown("", elem_id="label-agreement")
            file = gr.DownloadButton("labels", visible=False, elem_id="label-file", size="sm")
    task = gr.State(None)
    outputs = [task, setup, line, image, *buttons, back, leave, file, agreed]
    tab = Tab(service, "label", line)

    def at(now: Task) -> Updates:
        *concepts, unknown = now.options
        asked = [gr.Button(f"{i}  {name}", visible=not now.done) for i, name in enumerate(concepts, start=1)]
        asked += [gr.Button(visible=False)] * (MOST - len(concepts)) + [gr.Button(f"0  {unknown}", visible=not now.done)]
        text = f"all {len(now.images)} images are labelled" if now.done else f"image {now.at + 1} of {len(now.images)}"
        tables = [markdown_text(short_path(table)) for table in now.tables] if now.done else []  # their names say which run
        return {
            task: now,
            setup: HIDDEN,
            line: f"{text}{bar(now.at, len(now.images))}" + "".join(f"\n\n{table}" for table in tables),
            image: gr.Image(now.image, visible=not now.done),
            **dict(zip(buttons, asked, strict=True)),
            back: gr.Button(visible=now.at > 0),
            leave: gr.Button(visible=True),
            file: gr.update(value=str(now.download(service)), visible=True) if now.done else HIDDEN,
            agreed: "\n\n".join(map(markdown_text, now.agreements())) if now.done else "",
        }

    def begin(_stop: Any, run: str, annotator: str, attribute: str) -> Iterator[Updates]:
        yield at(Task.begin(service.folder(run or ""), annotator or "", attribute))

    def answer(place: int) -> Callable[..., Iterator[Updates]]:
        def steps(_stop: Any, now: Task | None) -> Iterator[Updates]:
            if now is not None and place < len(now.options):
                yield at(now.answer(now.options[place]))

        return steps

    def before(_stop: Any, now: Task | None) -> Iterator[Updates]:
        if now is not None:
            yield at(now.back())

    def end() -> Updates:
        return dict.fromkeys((image, *buttons, back, leave, file), HIDDEN) | {
            task: None,
            setup: gr.update(visible=True),
            line: "Press Start.",
            agreed: "",
        }

    go.click(tab.handler(begin), [run, annotator, attribute], outputs, show_progress="hidden")
    for place, button in enumerate(buttons):
        button.click(tab.handler(answer(place if place < MOST else -1)), task, outputs, show_progress="hidden", trigger_mode="once")
    back.click(tab.handler(before), task, outputs, show_progress="hidden")
    leave.click(end, None, outputs, show_progress="hidden")
    opened.select(lambda: gr.Dropdown(service.runs()), None, run)
