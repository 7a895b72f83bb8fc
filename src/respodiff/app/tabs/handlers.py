"""Provides what the handlers of all tabs have in common: errors in one line, an end when the visitor leaves, and pieces of Markdown and HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from html import escape
from typing import Any

import gradio as gr

from respodiff.app.service import Service
from respodiff.concepts.concept import Attribute, builtin
from respodiff.data.untrusted import shortened
from respodiff.reports.tables import markdown_text

MOST = 8
"""Concepts of an attribute that have a slider, and a key when labelling."""
Updates = dict[Any, Any]


@dataclass(frozen=True)
class Tab:
    """A tab whose handlers answer one line to bad input, and show nothing of an earlier press.

    Attributes:
        line: it holds the line. starts: what starts the work, off while it goes on. halt: what stops it, on only then.
        cleared: updates that take the last results off the page.
    """

    service: Service
    kind: str
    line: Any
    starts: tuple[Any, ...] = ()
    halt: Any = None
    cleared: Updates = field(default_factory=dict)

    def handler(self, steps: Callable[..., Iterator[Updates]]) -> Callable[..., Iterator[Updates]]:
        """A handler of (stop, inputs) as one of Gradio, which is stopped when the visitor asks or leaves."""

        def run(request: gr.Request, *inputs: Any) -> Iterator[Updates]:
            with self.service.work(str(request.session_hash), self.kind) as stop:
                if begun := self._switched(True) | self.cleared:
                    yield begun
                try:
                    yield from steps(stop, *inputs)
                except (ValueError, OSError, RuntimeError) as error:
                    yield {self.line: said("Error", str(error) or type(error).__name__)}
                except Exception:
                    yield self._switched(False)
                    raise
            if ended := self._switched(False):
                yield ended

        return run

    def _switched(self, working: bool) -> Updates:
        return {start: gr.update(interactive=not working) for start in self.starts} | (
            {self.halt: gr.update(interactive=working)} if self.halt else {}
        )

    @property
    def outputs(self) -> list[Any]:
        """All that a handler of this tab changes."""
        return [self.line, *self.cleared, *self.starts, *([self.halt] if self.halt else [])]

    def stop(self, request: gr.Request) -> None:
        """Stops the work of the visitor who asks."""
        self.service.stop(str(request.session_hash), self.kind)

    def running(self, text: str) -> Updates:
        """A line with seconds that run, for work that shows nothing for a while."""
        others = "after the work of others: " if self.service.working > 1 else ""
        return {self.line: f'{others}{text}, <span class="seconds">0</span> s'}


HIDDEN: Any = gr.update(visible=False)


def said(label: str, text: str) -> str:
    """One line of Markdown, whatever the text holds."""
    return f"**{label}:** {markdown_text(shortened(text))}"


def bar(done: int, total: int) -> str:
    """A bar of progress, as HTML."""
    return f'<div class="bar"><div style="width:{100 * done / max(total, 1):.0f}%"></div></div>'


def framed(address: str) -> str:
    """A page of ours as HTML: a link, and a frame without scripts."""
    link = f'<a href="{escape(address)}" target="_blank">open as a page</a>'
    return f'{link}<iframe class="page" sandbox title="report" src="{escape(address)}"></iframe>'


def called(name: str) -> str:
    """What the page calls an attribute."""
    return {"tone": "skin tone"}.get(name, name)


def named(names: Iterable[str]) -> list[tuple[str, str]]:
    """(what the page calls it, name) of attributes."""
    return [(called(name), name) for name in names]


def attributes() -> list[str]:
    """Built-in attributes that have no more than `MOST` concepts."""
    return [name for name, entry in builtin().items() if isinstance(entry, Attribute) and len(entry.names) <= MOST]


def gallery(title: str, elem_id: str = "") -> Any:
    """A gallery under its title, two images a row."""
    with gr.Column(min_width=280):
        gr.Markdown(title)
        return gr.Gallery(
            show_label=False,
            columns=2,
            object_fit="contain",
            height="auto",
            elem_id=elem_id or None,
            format="png",
            buttons=["download", "fullscreen"],
        )
