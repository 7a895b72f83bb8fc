"""Provides the tab Train: a concept from two phrases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import pandas as pd

from respodiff.app import trainings
from respodiff.app.service import Service
from respodiff.app.tabs.handlers import HIDDEN, Tab, Updates, bar, gallery
from respodiff.reports.tables import markdown_text
from respodiff.training.config import LAST_SEED, TrainConfig

ENOUGH = 50.0
"""Percent of the goal from which a training is not asked to be longer."""


def train_tab(service: Service) -> Callable[..., Any]:
    """Builds the tab; gives the event after a training."""
    gr.Markdown("Train a concept from two phrases, without images or labels. The finished module can be chosen in Try.")
    usual = TrainConfig()
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            target = gr.Textbox("a woman", label="target phrase", info="what images are steered to", elem_id="train-target")
            neutral = gr.Textbox("a person", label="neutral phrase", info="what is steered", elem_id="train-neutral")
            opposite = gr.Textbox(
                "", label="contrast (optional)", info="what images are steered away from, such as a man", elem_id="train-opposite"
            )
            with gr.Row():
                go = gr.Button("Train", variant="primary", elem_id="train-go", min_width=100)
                halt = gr.Button("Stop and keep", elem_id="train-stop", min_width=100, interactive=False)
            with gr.Accordion("more settings", open=False):
                iterations = gr.Slider(1, 5000, value=usual.iterations, step=1, label="iterations", elem_id="train-iterations")
                seed = gr.Number(0, label="seed", precision=0, minimum=0, maximum=LAST_SEED)
        with gr.Column(scale=3, min_width=280):
            line = gr.Markdown("Press Train.", elem_classes="line", elem_id="train-line")
            reach = gr.LinePlot(x="iteration", y="effect, %", color="line", title="effect", height=200, min_width=280, visible=False)
            with gr.Row():
                galleries = [gallery(title) for title in ("neutral phrase, unsteered", "steered so far")]
            file = gr.DownloadButton("module", visible=False, elem_id="train-file", size="sm")
    before, after = galleries
    tab = Tab(service, "train", line, (go,), halt, {reach: HIDDEN, before: [], after: [], file: HIDDEN})

    def steps(stop: Any, target: str, neutral: str, opposite: str, iterations: float, seed: float) -> Iterator[Updates]:
        concept = trainings.concept_of(target, neutral, opposite)
        config = TrainConfig.preset("default", concept, iterations=int(iterations or 0), seed=int(seed or 0))
        yield tab.running("preparing")
        found = None
        for found in trainings.follow(service, concept, config, stop):
            now = f"{found.iteration} of {found.iterations} iterations, loss {found.loss:.4f}"
            update: Updates = {line: now + bar(found.iteration, found.iterations)}
            if found.iteration == 1:
                update[before] = found.plain
            if found.looked_at == found.iteration:
                update |= {before: found.plain, after: found.samples, reach: _plot(found)}
            if found.file:
                done = (
                    "done" if found.iteration == found.iterations else f"stopped after {found.iteration} of {found.iterations} iterations"
                )
                update |= {
                    line: f"{done}: module {markdown_text(repr(found.file.stem))} {reached(found)}; choose it in Try",
                    file: gr.update(value=str(found.file), visible=True),
                }
            yield update
        if found is None:
            yield {line: "stopped, nothing kept"}

    done = go.click(tab.handler(steps), [target, neutral, opposite, iterations, seed], tab.outputs, show_progress="hidden")
    halt.click(tab.stop)
    refreshed: Callable[..., Any] = done.then
    return refreshed


def reached(found: trainings.Progress) -> str:
    """How far a module is on its way to the goal, in words."""
    if not found.effects or found.effects[-1][0] != found.iteration:
        return "is kept, and has no effect that can be measured"
    effect = found.effects[-1][1]
    more = "" if effect >= ENOUGH else "; train longer" if effect > 0 else ", as it leads away from it; train longer"
    return f"reached {max(0.0, effect):.0f} % of the goal{more}"


def _plot(found: trainings.Progress) -> Any:
    """The effect so far, and the goal, on axes that hold both from 0 on."""
    rows = [
        (0, 0.0, "reached"),
        *((i, effect, "reached") for i, effect in found.effects),
        (0, 100.0, "goal"),
        (found.iterations, 100.0, "goal"),
    ]
    values = [value for _, value, _ in rows]
    data = pd.DataFrame(rows, columns=["iteration", "effect, %", "line"])
    return gr.LinePlot(data, y_lim=[min(values), max(values)], x_lim=[0, found.iterations], visible=bool(found.effects))
