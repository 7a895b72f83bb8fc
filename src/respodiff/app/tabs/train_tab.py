"""Provides the tab Train: a concept from two phrases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr
import pandas as pd

from respodiff.app import trainings
from respodiff.app.service import Service
from respodiff.app.tabs.handlers import Tab, Updates, bar
from respodiff.reports.tables import markdown_text
from respodiff.training.config import LAST_SEED, TrainConfig


def train_tab(service: Service) -> Callable[..., Any]:
    """Gives the event after a training."""
    gr.Markdown("Train a concept from two phrases, without images or labels. The finished module can be chosen in Try.")
    usual = TrainConfig()
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            target = gr.Textbox("a woman", label="target phrase", info="what images are steered to", elem_id="train-target")
            neutral = gr.Textbox("a person", label="neutral phrase", info="what is steered", elem_id="train-neutral")
            opposite = gr.Textbox(
                "", label="opposite phrase (optional)", info="another alternative of the attribute", elem_id="train-opposite"
            )
            with gr.Accordion("more settings", open=False):
                iterations = gr.Slider(1, 5000, value=usual.iterations, step=1, label="iterations", elem_id="train-iterations")
                seed = gr.Number(0, label="seed", precision=0, minimum=0, maximum=LAST_SEED)
            with gr.Row():
                go = gr.Button("Train", variant="primary", elem_id="train-go", min_width=100)
                halt = gr.Button("Stop and keep", elem_id="train-stop", min_width=100)
        with gr.Column(scale=3, min_width=300):
            line = gr.Markdown("Press Train.", elem_classes="line", elem_id="train-line")
            with gr.Row():
                loss = gr.LinePlot(x="iteration", y="loss", title="loss", height=200, min_width=280, visible=False)
                reach = gr.LinePlot(
                    x="iteration", y="projection", title="projection (1: as far as the target)", height=200, min_width=280, visible=False
                )
            with gr.Row():
                before = gr.Gallery(
                    label="neutral phrase, unsteered", columns=2, height="auto", object_fit="contain", min_width=150, format="png"
                )
                after = gr.Gallery(label="steered so far", columns=2, height="auto", object_fit="contain", min_width=150, format="png")
            file = gr.File(label="module file", visible=False, interactive=False, elem_id="train-file")
    tab = Tab(service, "train", line)

    def steps(stop: Any, target: str, neutral: str, opposite: str, iterations: float, seed: float) -> Iterator[Updates]:
        concept = trainings.concept_of(target, neutral, opposite)
        config = TrainConfig.preset("default", concept, iterations=int(iterations or 0), seed=int(seed or 0))
        yield {
            line: "waiting for a turn, then making the first latents",
            before: [],
            after: [],
            loss: gr.LinePlot(visible=False),
            reach: gr.LinePlot(visible=False),
            file: gr.File(visible=False),
        }
        found = None
        for found in trainings.follow(service, concept, config, stop):
            now = f"{found.iteration} of {found.iterations} iterations, loss {found.losses[-1][1]:.4f}"
            update: Updates = {line: now + bar(found.iteration, found.iterations), loss: _plot(found.losses, "loss")}
            if found.iteration == 1:
                update[before] = found.plain
            if found.looked_at == found.iteration:
                update |= {before: found.plain, after: found.samples, reach: _plot(found.projections, "projection")}
            if found.file:
                how = (
                    "done"
                    if found.iteration == found.iterations
                    else f"stopped after {found.iteration} of {found.iterations} iterations, and kept as it was then"
                )
                reached = ""
                if found.projections:
                    reached = f", projection {(last := found.projections[-1][1]):.2f} ({config.projection:g} asked for)"
                    reached += ", which leads away from the target: train it for longer" if last <= 0 else ""
                update |= {
                    line: f"{how}: module {markdown_text(repr(found.file.stem))}{reached}; choose it in Try",
                    file: gr.File(str(found.file), visible=True),
                }
            yield update
        if found is None:
            yield {line: "stopped before the first iteration; there is nothing to keep"}

    done = go.click(
        tab.handler(steps), [target, neutral, opposite, iterations, seed], [line, loss, reach, before, after, file], show_progress="hidden"
    )
    halt.click(tab.stop)
    refreshed: Callable[..., Any] = done.then
    return refreshed


def _plot(points: Sequence[tuple[int, float]], name: str) -> Any:
    return gr.LinePlot(pd.DataFrame(points, columns=["iteration", name]), visible=bool(points))
