"""Provides the page itself: five tabs, and what is around them."""

from __future__ import annotations

import gradio as gr

from respodiff.app.service import Service, short_path
from respodiff.app.tabs.audit_tab import audit_tab
from respodiff.app.tabs.label_tab import label_tab
from respodiff.app.tabs.runs_tab import runs_tab
from respodiff.app.tabs.train_tab import train_tab
from respodiff.app.tabs.try_tab import try_tab
from respodiff.reports.tables import markdown_text

LEAD = "Balance who appears in the images of a text-to-image model, and measure it."
EMBEDDED = "embedded, a small model that ships with the package and draws emoji"
FOOT = (
    "Model: {model}. Judge: {judge}. Results are kept in {out}. "
    "Labels, a judge's or your own, say what an image looks like, and nothing about real people."
)
CSS = """
html { scrollbar-gutter: stable; }
.gradio-container { width: 100% !important; max-width: 1180px !important; margin: 0 auto !important; }
.line { min-height: 1.6em; }
.line p { margin: .2em 0; }
iframe.page { width: 100%; height: 75vh; border: 1px solid var(--border-color-primary); border-radius: 6px; }
.grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)) !important; }
.table { contain: inline-size; overflow-x: auto; }
.table td, .table th { word-break: normal !important; overflow-wrap: normal !important; }
.grid-wrap { min-height: 0 !important; max-height: none !important; overflow: visible !important; }
.caption-label { white-space: normal !important; overflow: visible !important; }
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
setInterval(() => document.querySelectorAll(".seconds").forEach((e) => { e.textContent = Number(e.textContent) + 1; }), 1000);
</script>
"""


def page(service: Service) -> gr.Blocks:
    """The page, not served yet."""
    with gr.Blocks(title="respodiff", analytics_enabled=False) as blocks:
        gr.Markdown(f"# respodiff\n{LEAD}")
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
        model = EMBEDDED if service.source.source == "embedded" else service.source.source
        foot = FOOT.format(model=model, judge=service.judge or "none", out=short_path(service.out))
        gr.Markdown(f"<small>{markdown_text(foot)}</small>")
        for event in (blocks.load, trained):
            event(*refresh)

        def left(request: gr.Request) -> None:
            service.leave(str(request.session_hash))

        blocks.unload(left)
    return blocks
