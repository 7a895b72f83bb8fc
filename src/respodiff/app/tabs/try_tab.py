"""Provides the tab Try: a prompt without and with steering, from the same noise."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from respodiff.app import pictures
from respodiff.app.service import RUNS, ZIPS, Service, short_path
from respodiff.app.tabs.handlers import MOST, Tab, Updates, bar
from respodiff.data.run_folder import write_atomic
from respodiff.reports.tables import markdown_text
from respodiff.training.config import LAST_SEED

NONE = "none"


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
        f"done: {len(plain)} images on each side, kept in {markdown_text(short_path(out))}"
        if len(plain) == wish.images
        else f"stopped after {len(plain)} images on each side"
    )
    done += "" if service.judge else f". {pictures.NO_JUDGE}"
    yield {line: done, files: gr.Files([zipped, str(script)], visible=True), code: gr.Code(text, visible=True)}


def _shares(service: Service, name: str) -> list[dict[str, Any]]:
    """What a slider for every concept of a choice shows; those that are left over, and those of a concept alone, are hidden."""
    choice = service.choices().get(name)
    names = choice.concepts if choice and 1 < len(choice.concepts) <= MOST else ()
    shown = [{"label": f"share of {concept}", "value": round(100 / len(names)), "visible": True} for concept in names]
    return shown + [{"label": "share", "value": 0, "visible": False}] * (MOST - len(names))
