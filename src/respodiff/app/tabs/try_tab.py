"""Provides the tab Try: a prompt without and with steering, from the same noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from respodiff.app import pictures
from respodiff.app.service import RUNS, Choice, Service, short_path
from respodiff.app.tabs.handlers import HIDDEN, MOST, Tab, Updates, bar, gallery, named
from respodiff.reports.images import asked_and_seen
from respodiff.reports.tables import markdown_table, markdown_text
from respodiff.training.config import LAST_SEED

NONE, FEW = "none", 30
"""No attribute; images below which the page warns that they are few."""
DEVRAT = "DevRat (0: as wanted, 1: one group only)"


def try_tab(service: Service) -> tuple[Any, ...]:
    """Builds the tab; gives what refreshes its choices, as arguments of an event."""
    known = list(service.choices())
    first = known[0] if known else NONE
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            prompt = gr.Textbox("a doctor", label="prompt", elem_id="try-prompt")
            choice = gr.Dropdown(named([*known, NONE]), value=first, label="attribute", elem_id="try-attribute")
            sliders = [gr.Slider(0, 100, step=1, elem_id=f"share-{i}", **share) for i, share in enumerate(_shares(service, first))]
            wanted = gr.Markdown(_wanted(service, first), elem_classes="line", elem_id="try-wanted")
            safety = gr.CheckboxGroup(list(service.safety()), label="keep out", visible=bool(service.safety()))
            images = gr.Slider(1, 48, value=8, step=1, label="images on each side", elem_id="try-images")
            with gr.Row():
                go = gr.Button("Generate", variant="primary", elem_id="try-go", min_width=100)
                halt = gr.Button("Stop", min_width=100, interactive=False, elem_id="try-stop")
            with gr.Accordion("more settings", open=False):
                scale = gr.Slider(
                    -2, 3, value=1, step=0.05, label="scale", info="1 is as trained; a larger one steers more and loses more subjects"
                )
                skip = gr.Checkbox(False, label="leave prompts alone that already say it", info="and prompts without people")
                seed = gr.Number(0, label="seed", precision=0, minimum=0, maximum=LAST_SEED)
        with gr.Column(scale=3, min_width=280):
            line = gr.Markdown("Press Generate.", elem_classes="line", elem_id="try-line")
            asked = gr.Markdown(elem_id="try-asked")
            with gr.Row():
                galleries = [gallery(side, f"try-{side}") for side in pictures.SIDES]
            seen = gr.Markdown(elem_id="try-seen", elem_classes="table")
            with gr.Row():
                pack = gr.DownloadButton("pictures (zip)", visible=False, elem_id="try-zip", size="sm")
                code = gr.DownloadButton("code (.py)", visible=False, elem_id="try-code", size="sm")
    cleared = {asked: "", seen: "", pack: HIDDEN, code: HIDDEN} | {place: [] for place in galleries}
    tab = Tab(service, "try", line, (go, prompt), halt, cleared)

    def steps(
        stop: Any, text: str, name: str, scale: float, safety: Sequence[str], skip: bool, seed: float, images: float, *values: float
    ) -> Iterator[Updates]:
        weights = _weights(service.choices().get(name), values)
        name = name if name != NONE else ""
        wish = pictures.Wish(text, name, weights, float(scale or 0), tuple(safety), skip, int(seed or 0), int(images or 0))
        shares = pictures.asked(service, wish)
        pictures.settings(service, wish)  # what makes no sense makes no folder
        title = f"**{markdown_text(text)}**" + (f", asked: {markdown_text(shares)}" if shares else "")
        yield tab.running("drawing")
        out, pairs, found = service.new_place(RUNS, text), list[pictures.Pair](), pictures.Seen()

        def shown() -> Updates:
            captions = [found.captions.get(side, {}) for side in pictures.SIDES]
            left = [(str(p.unsteered), captions[0].get(p.unsteered, "")) for p in pairs]
            right = [(str(p.steered), captions[1].get(p.steered) or asked_and_seen(p.asked, "")) for p in pairs]
            return {asked: title, **dict(zip(galleries, (left, right), strict=True)), seen: _table(found)}

        for pair in pictures.draw(service, wish, out, stop):
            pairs.append(pair)
            yield shown() | {line: f"{len(pairs)} of {wish.images} images on each side{bar(len(pairs), wish.images)}"}
            if len(pairs) % service.batch == 0:
                found = pictures.perceived(service, wish, out)
                yield shown()
        if not pairs:
            yield {line: "stopped, nothing kept"}
            return
        if found.n < len(pairs):
            found = pictures.perceived(service, wish, out)
        files = pictures.download(service, wish, out, len(pairs))
        done = "done: " if len(pairs) == wish.images else f"stopped after {len(pairs)} of {wish.images}: "
        done += f"{len(pairs)} images on each side, kept in {markdown_text(short_path(out))}"
        done += "" if service.judge else f". {pictures.NO_JUDGE}"
        given = (gr.update(value=str(file), visible=True) for file in files)
        yield shown() | {line: done} | dict(zip((pack, code), given, strict=True))

    inputs = [prompt, choice, scale, safety, skip, seed, images, *sliders]
    gr.on([go.click, prompt.submit], tab.handler(steps), inputs, tab.outputs, show_progress="hidden")
    halt.click(tab.stop)
    choice.change(lambda name: [gr.Slider(**share) for share in _shares(service, name)], choice, sliders, show_progress="hidden")
    gr.on(
        [choice.change, *(slider.change for slider in sliders)],
        lambda name, *values: _wanted(service, name, values),
        [choice, *sliders],
        wanted,
        show_progress="hidden",
        trigger_mode="always_last",
    )

    def choices(now: str) -> list[Any]:
        names = [*service.choices(), NONE]
        return [
            gr.Dropdown(named(names), value=now if now in names else names[0]),
            gr.CheckboxGroup(list(service.safety()), visible=bool(service.safety())),
        ]

    return choices, choice, [choice, safety]


def _table(found: pictures.Seen) -> str:
    """What the judge sees, as Markdown."""
    if not found.rows:
        return ""
    few = f"{found.n} images are few: the brackets (95 % intervals) say how little they tell.\n\n" if found.n < FEW else ""
    table = "\n".join(markdown_table(found.rows))
    return f"{few}{table}" + (f"\n\n{DEVRAT}: {found.devrat}" if found.devrat else "")


def _shares(service: Service, name: str) -> list[dict[str, Any]]:
    """What sliders for the shares of a choice show: of two concepts one, as the other has the rest; those that are left over are hidden."""
    choice = service.choices().get(name)
    names = choice.concepts if choice and 1 < len(choice.concepts) <= MOST else ()
    shown = [{"label": f"share of {concept}", "value": round(100 / len(names)), "visible": True} for concept in names]
    shown = shown[:1] if len(shown) == 2 else shown
    return shown + [{"label": "share", "value": 0, "visible": False}] * (MOST - len(shown))


def _weights(choice: Choice | None, values: Sequence[float]) -> tuple[float, ...]:
    """Shares of the concepts of a choice from the values of the sliders."""
    if not choice or not 1 < len(choice.concepts) <= MOST:
        return ()
    given = [float(value or 0) for value in values[: len(choice.concepts)]]
    return (given[0], 100 - given[0]) if len(given) == 2 else tuple(given)


def _wanted(service: Service, name: str, values: Sequence[float] = ()) -> str:
    """The shares that sliders make, or why they make none."""
    weights = _weights(service.choices().get(name), values) if values else ()
    try:
        shares = pictures.asked(service, pictures.Wish("", name if name != NONE else "", weights))
    except ValueError as error:
        return markdown_text(str(error))
    return f"asked: {markdown_text(shares)}" if shares else ""
