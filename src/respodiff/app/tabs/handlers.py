"""Provides what the handlers of all tabs have in common: errors in one line, an end when the visitor leaves, and pieces of Markdown and HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
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


def attributes() -> list[str]:
    """Built-in attributes that have no more than `MOST` concepts."""
    return [name for name, entry in builtin().items() if isinstance(entry, Attribute) and len(entry.names) <= MOST]
