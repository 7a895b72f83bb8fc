"""Provides the page itself: five tabs of Gradio components, and the server. What a tab does is in the module of its name beside this one."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read at import: it would ask another machine for the newest version

import gradio as gr
import pandas as pd
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from respodiff.app import audits, labelling, pictures, reading, trainings
from respodiff.app.service import RUNS, ZIPS, Service
from respodiff.concepts.concept import Attribute, builtin
from respodiff.data import prompt_sets
from respodiff.data.run_folder import write_atomic
from respodiff.data.untrusted import shortened
from respodiff.evaluation.judges import NOTICE
from respodiff.experiments.work import Progress
from respodiff.reports.tables import markdown_text
from respodiff.training.config import LAST_SEED, TrainConfig

MOST = 8
"""Concepts of an attribute that have a slider, and a key when labelling."""
NONE = "none"
LEAD = (
    "Steer a text-to-image model towards balanced and safe images, and measure what changes. "
    "Model: {model}. Judge: {judge}. Results are kept in {out}."
)
CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
.line { min-height: 1.6em; }
.line p { margin: .2em 0; }
iframe.page { width: 100%; height: 75vh; border: 1px solid var(--border-color-primary); border-radius: 6px; }
.grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)) !important; }
.table { contain: inline-size; overflow-x: auto; }
.grid-wrap { max-height: none !important; overflow: visible !important; }
#label-image img { image-rendering: auto; object-fit: contain; }
.bar { height: 6px; border-radius: 3px; background: var(--border-color-primary); overflow: hidden; }
.bar div { height: 100%; background: var(--color-accent); }
"""
KEYS = """
<script>
document.addEventListener("keydown", (event) => {
  const field = event.target.closest("input, textarea, select, [contenteditable]");
  if (field || event.ctrlKey || event.metaKey || event.altKey) return;
  const id = event.key === "Backspace" ? "label-back" : /^[0-9]$/.test(event.key) ? "label-" + event.key : "";
  const box = id && document.getElementById(id);
  const button = box && (box.matches("button") ? box : box.querySelector("button"));
  if (button && button.offsetParent !== null) { event.preventDefault(); button.click(); }
});
</script>
"""
HEADERS = {"Content-Security-Policy": "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"}
"""A report needs no script, no other file and no network."""
Updates = dict[Any, Any]


@dataclass(frozen=True)
class Tab:
    """A tab whose handlers answer one line to bad input: ``line`` holds it, and every other component stays as it is."""

    service: Service
    kind: str
    line: Any

    def handler(self, steps: Callable[..., Iterator[Updates]]) -> Callable[..., Iterator[Updates]]:
        """A handler of (stop, inputs) as one of Gradio, which is stopped when the visitor asks or leaves."""

        def run(request: gr.Request, *inputs: Any) -> Iterator[Updates]:
            with self.service.work(str(request.session_hash), self.kind) as stop:
                try:
                    yield from steps(stop, *inputs)
                except (ValueError, OSError, RuntimeError) as error:
                    yield {self.line: said("Error", str(error) or type(error).__name__)}

        return run

    def stop(self, request: gr.Request) -> None:
        self.service.stop(str(request.session_hash), self.kind)


def said(label: str, text: str) -> str:
    """One line of Markdown, whatever the text holds."""
    return f"**{label}:** {markdown_text(shortened(text))}"


def bar(done: int, total: int) -> str:
    return f'<div class="bar"><div style="width:{100 * done / max(total, 1):.0f}%"></div></div>'


def framed(address: str) -> str:
    return f'<iframe class="page" sandbox title="report" src="{escape(address)}"></iframe>'


def page(service: Service) -> gr.Blocks:
    """The page, not served yet."""
    with gr.Blocks(title="respodiff", analytics_enabled=False) as blocks:
        lead = LEAD.format(model=service.source.source, judge=service.judge or "none", out=service.out)
        gr.Markdown(f"# respodiff\n{markdown_text(lead)}")
        with gr.Tab("Try"):
            refresh = try_tab(service)
        with gr.Tab("Train"):
            trained = train_tab(service)
        with gr.Tab("Audit"):
            audit_tab(service)
        with gr.Tab("Label") as label:
            label_tab(service, label)
        with gr.Tab("Runs") as runs:
            runs_tab(service, runs)
        gr.Markdown(f"<small>{NOTICE}</small>")
        for event in (blocks.load, trained):
            event(*refresh)

        def left(request: gr.Request) -> None:
            service.stop(str(request.session_hash))

        blocks.unload(left)
    return blocks


def _attributes() -> list[str]:
    return [name for name, entry in builtin().items() if isinstance(entry, Attribute) and len(entry.names) <= MOST]


def _shares(service: Service, name: str) -> list[dict[str, Any]]:
    """What a slider for every concept of a choice shows; those that are left over, and those of a concept alone, are hidden."""
    choice = service.choices().get(name)
    names = choice.concepts if choice and 1 < len(choice.concepts) <= MOST else ()
    shown = [{"label": f"share of {concept}", "value": round(100 / len(names)), "visible": True} for concept in names]
    return shown + [{"label": "share", "value": 0, "visible": False}] * (MOST - len(names))


def try_tab(service: Service) -> tuple[Any, ...]:
    """Gives what refreshes its choices, as arguments of an event."""
    gr.Markdown("Generate a prompt without and with steering, from the same noise, and see what the judge perceives in both.")
    known = list(service.choices())
    first = known[0] if known else NONE
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            prompt = gr.Textbox("a doctor", label="prompt", elem_id="try-prompt")
            choice = gr.Dropdown([*known, NONE], value=first, label="attribute", elem_id="try-attribute")
            sliders = [gr.Slider(0, 100, step=1, elem_id=f"share-{i}", **share) for i, share in enumerate(_shares(service, first))]
            safety = gr.CheckboxGroup(list(service.safety()), label="safety concepts to steer away from", visible=bool(service.safety()))
            with gr.Accordion("more settings", open=False):
                scale = gr.Slider(
                    -2, 3, value=1, step=0.05, label="scale", info="1 is as trained; a larger one is more even and loses more subjects"
                )
                skip = gr.Checkbox(
                    False, label="skip explicit prompts", info="prompts that state the attribute, or name no person, are not steered"
                )
                seed = gr.Number(0, label="seed", precision=0, minimum=0, maximum=LAST_SEED)
            images = gr.Slider(1, 48, value=8, step=1, label="images on each side", elem_id="try-images")
            with gr.Row():
                go = gr.Button("Generate", variant="primary", elem_id="try-go", min_width=100)
                halt = gr.Button("Stop", min_width=100)
        with gr.Column(scale=3, min_width=300):
            line = gr.Markdown("Press Generate.", elem_classes="line", elem_id="try-line")
            with gr.Row():
                left, right = (
                    gr.Gallery(
                        label=side,
                        columns=2,
                        object_fit="contain",
                        min_width=150,
                        height="auto",
                        elem_id=f"try-{side}",
                        format="png",
                        buttons=["download", "download_all", "fullscreen"],
                    )
                    for side in pictures.SIDES
                )
            seen = gr.Dataframe(
                headers=["images", "perceived", "count", "share [95 % interval]"],
                column_widths=["29%", "21%", "19%", "31%"],
                label="what the judge perceives",
                interactive=False,
                visible=False,
                wrap=True,
                elem_id="try-seen",
                elem_classes="table",
            )
            files = gr.Files(label="run folder (zip) and the same in Python", visible=False, interactive=False, elem_id="try-files")
            code = gr.Code(
                language="python",
                label="the same in Python",
                visible=False,
                elem_id="try-code",
                lines=1,
                wrap_lines=True,
                show_line_numbers=False,
            )
    tab = Tab(service, "try", line)

    def steps(
        stop: Any, text: str, name: str, scale: float, safety: Sequence[str], skip: bool, seed: float, images: float, *shares: float
    ) -> Iterator[Updates]:
        modules = service.choices().get(name)
        weights = tuple(float(x or 0) for x in shares[: len(modules.concepts)]) if modules else ()
        wish = pictures.Wish(
            text, name if name != NONE else "", weights, float(scale or 0), tuple(safety), skip, int(seed or 0), int(images or 0)
        )
        pictures.settings(service, wish)  # what makes no sense is said before anything is cleared
        out = service.new_place(RUNS, text)
        try:
            yield from _drawn(service, wish, out, stop, line=line, left=left, right=right, seen=seen, files=files, code=code)
        finally:
            if not any(out.iterdir()):
                out.rmdir()

    inputs = [prompt, choice, scale, safety, skip, seed, images, *sliders]
    gr.on([go.click, prompt.submit], tab.handler(steps), inputs, [line, left, right, seen, files, code], show_progress="hidden")
    halt.click(tab.stop)
    choice.change(lambda name: [gr.Slider(**share) for share in _shares(service, name)], choice, sliders, show_progress="hidden")

    def choices(now: str) -> list[Any]:
        names = [*service.choices(), NONE]
        return [
            gr.Dropdown(names, value=now if now in names else names[0]),
            gr.CheckboxGroup(list(service.safety()), visible=bool(service.safety())),
        ]

    return choices, choice, [choice, safety]


def _drawn(
    service: Service, wish: pictures.Wish, out: Path, stop: Any, *, line: Any, left: Any, right: Any, seen: Any, files: Any, code: Any
) -> Iterator[Updates]:
    yield {
        line: "waiting for a turn, then drawing the first images",
        left: [],
        right: [],
        seen: gr.skip(),
        files: gr.Files(visible=False),
        code: gr.Code(visible=False),
    }
    plain, steered = list[str](), list[tuple[str, str]]()
    rows: list[list[str]] = []

    def look() -> Updates:
        rows[:] = pictures.perceived(service, wish, out)
        return {seen: gr.Dataframe(rows, visible=bool(rows))}

    for pair in pictures.draw(service, wish, out, stop):
        plain.append(str(pair.unsteered))
        steered.append((str(pair.steered), pair.concepts))
        yield {line: f"{len(plain)} of {pair.total} images on each side{bar(len(plain), pair.total)}", left: plain, right: steered}
        if len(plain) % service.batch == 0 or len(plain) == pair.total:
            yield look()
    if not plain:
        return
    if len(plain) % service.batch and len(plain) < wish.images:  # stopped within a batch
        yield look()
    text = pictures.script(service, wish)
    script = service.new_place(ZIPS, wish.prompt, ".py")
    write_atomic(script, text)
    zipped = shutil.make_archive(str(script.with_suffix("")), "zip", out)
    done = (
        f"done: {len(plain)} images on each side, kept in {markdown_text(str(out))}"
        if len(plain) == wish.images
        else f"stopped after {len(plain)} images on each side"
    )
    done += "" if service.judge else f". {pictures.NO_JUDGE}"
    yield {line: done, files: gr.Files([zipped, str(script)], visible=True), code: gr.Code(text, visible=True)}


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


def audit_tab(service: Service) -> None:
    gr.Markdown("Find out which attributes of the unsteered model are biased, on which prompts, and how sure that is.")
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            prompts = gr.Textbox("a doctor\na nurse\na teacher", lines=4, label="prompts, one a line", elem_id="audit-prompts")
            suite = gr.Dropdown(
                ["", *prompt_sets.names()], value="", label="suite of prompts, besides", info="docs/data.md says what each holds"
            )
            names = gr.CheckboxGroup(_attributes(), value=["gender", "tone"], label="attributes")
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
                halt = gr.Button("Stop", min_width=100)
        with gr.Column(scale=3, min_width=300):
            line = gr.Markdown("Press Audit." if service.judge else audits.NO_JUDGE, elem_classes="line", elem_id="audit-line")
    table = gr.Dataframe(
        headers=list(audits.COLUMNS),
        datatype=["str", "str", "number", "str", "number", "str", "str"],
        column_widths=["110px", "150px", "90px", "140px", "100px", "230px", "110px"],
        label="prompts, the most biased first; a click on a heading sorts",
        interactive=False,
        visible=False,
        wrap=True,
        elem_id="audit-table",
        elem_classes="table",
    )
    shown = gr.HTML(elem_id="audit-page")
    tab = Tab(service, "audit", line)

    def steps(stop: Any, prompts: str, suite: str, names: Sequence[str], images: float, check: float) -> Iterator[Updates]:
        asked = audits.Question(tuple(prompts.splitlines()), suite or "", tuple(names), int(images), int(check))
        step: Any = None
        for step in audits.follow(service, asked, stop):
            if isinstance(step, Progress):
                yield {line: f"{step.what}: {step.done} of {step.total}{bar(step.done, step.total)}"}
        if not isinstance(step, audits.Audited):
            yield {line: "stopped; the images are kept, and nothing is judged"}
            return
        problems = "".join(f"\n\nnote: {markdown_text(text)}" for text in step.found.problems)
        rows = audits.rows(step.found)
        yield {
            line: f"done: {step.found.summary.n} images{problems}",
            table: gr.Dataframe(rows, visible=True),
            shown: framed(service.show(step.page)),
        }

    go.click(tab.handler(steps), [prompts, suite, names, images, check], [line, table, shown], show_progress="hidden")
    halt.click(tab.stop)


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
            attribute = gr.Dropdown(_attributes(), value="gender", label="attribute")
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
            line: f"{text}{bar(now.at, len(now.files))}" + (f"\n\n{markdown_text(str(now.table))}" if there else ""),
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
        yield {line: markdown_text(str(found)), shown: framed(service.show(found)), file: gr.File(str(kept), visible=True)}

    go.click(tab.handler(steps), folder, [line, shown, file], show_progress="hidden")
    opened.select(lambda: gr.Dropdown(service.runs()), None, folder)


def check_port(host: str, port: int) -> None:
    """ValueError where nothing can listen."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise ValueError(f"--port is {port} and --host {host!r}, where nothing can listen ({error}); give another one") from error


def serve(service: Service, host: str, port: int, started: Callable[[str], None]) -> gr.Blocks:
    """Serve the page on one port, in threads; ``started`` is called with its address once it listens. ``close()`` ends it.

    OSError if it cannot listen.
    """

    def report(request: HttpRequest) -> Response:
        found = service.page(request.path_params["name"])
        return Response(status_code=404) if found is None else Response(found, media_type="text/html", headers=HEADERS)

    blocks = page(service).queue(default_concurrency_limit=None)
    blocks.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        inbrowser=False,
        share=False,
        ssr_mode=False,  # it would start a second server
        run_history=False,
        footer_links=[],
        max_file_size="1kb",  # nothing is uploaded
        allowed_paths=[str(service.out)],
        app_kwargs={"routes": [Route("/pages/{name}", report)]},
        theme=gr.themes.Default(primary_hue="blue", neutral_hue="gray", radius_size="sm"),
        css=CSS,
        head=KEYS,
    )
    started(f"http://{host}:{port}")
    return blocks
