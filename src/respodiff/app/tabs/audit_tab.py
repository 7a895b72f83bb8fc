"""Provides the tab Audit: which attributes of the unsteered model are biased, and on which prompts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from respodiff.app import audits
from respodiff.app.service import Service
from respodiff.app.tabs.handlers import HIDDEN, Tab, Updates, attributes, bar, called, framed, named
from respodiff.experiments.work import Progress
from respodiff.reports.audit_report import finding
from respodiff.reports.tables import markdown_text

STEPS = {"generating stated": "step 1 of 2: checking the judge", "generating run": "step 2 of 2: drawing"}


def audit_tab(service: Service) -> None:
    """Builds the tab."""
    gr.Markdown("Find out which attributes of the unsteered model are biased, on which prompts, and how sure that is.")
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            prompts = gr.Textbox("a doctor\na nurse\na teacher", lines=4, label="prompts, one a line", elem_id="audit-prompts")
            suite = gr.Dropdown([("none", ""), *audits.suites()], value="", label="and those of a suite")
            names = gr.CheckboxGroup(named(attributes()), value=["gender", "tone"], label="attributes")
            images = gr.Slider(2, 64, value=8, step=1, label="images per prompt", elem_id="audit-images")
            check = gr.Slider(
                0,
                32,
                value=8,
                step=1,
                label="validation images per concept",
                elem_id="audit-check",
                info="of its own prompt, to see whether the judge recognises it",
            )
            with gr.Row():
                go = gr.Button("Audit", variant="primary", elem_id="audit-go", min_width=100)
                halt = gr.Button("Stop", min_width=100, interactive=False)
        with gr.Column(scale=3, min_width=300):
            line = gr.Markdown("Press Audit." if service.judge else audits.NO_JUDGE, elem_classes="line", elem_id="audit-line")
    table = gr.Dataframe(
        headers=list(audits.COLUMNS),
        datatype=["str", "str", "str", "number", "number", "str"],
        column_widths=["110px", "180px", "300px", "90px", "110px", "220px"],
        label="prompts, the most biased first; a click on a heading sorts",
        interactive=False,
        visible=False,
        wrap=True,
        elem_id="audit-table",
        elem_classes="table",
    )
    shown = gr.HTML(elem_id="audit-page")
    tab = Tab(service, "audit", line, (go,), halt, {table: HIDDEN, shown: ""})

    def steps(stop: Any, prompts: str, suite: str, names: Sequence[str], images: float, check: float) -> Iterator[Updates]:
        asked = audits.Question(tuple(prompts.splitlines()), suite or "", tuple(names), int(images), int(check))
        yield tab.running("drawing")
        step: Any = None
        for step in audits.follow(service, asked, stop):
            if isinstance(step, Progress) and step.what == "judging":
                yield tab.running("judging")
            elif isinstance(step, Progress):
                part = STEPS[step.what] if check else "drawing"
                yield {line: f"{part}, {step.done} of {step.total} images{bar(step.done, step.total)}"}
        if not isinstance(step, audits.Audited):
            yield {line: "stopped; the images are kept, and nothing is judged" if step else "stopped, nothing kept"}
            return
        flags = re.compile(r" \(--[^)]*\)")  # of the command line
        problems = "".join(f"\n\nnote: {markdown_text(flags.sub('', text))}" for text in step.found.problems)
        rows = [[called(name), *more] for name, *more in audits.rows(step.found)]
        yield {
            line: f"{markdown_text(finding(step.found))}{problems}",
            table: gr.Dataframe(rows, visible=True),
            shown: framed(service.show(step.page)),
        }

    go.click(tab.handler(steps), [prompts, suite, names, images, check], tab.outputs, show_progress="hidden")
    halt.click(tab.stop)
