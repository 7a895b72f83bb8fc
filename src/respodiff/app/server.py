"""Provides the server of the page, on one port."""

from __future__ import annotations

import socket
from collections.abc import Callable

import gradio as gr
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from respodiff.app.page import CSS, KEYS, page
from respodiff.app.service import Service

HEADERS = {"Content-Security-Policy": "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"}
"""A report needs no script, no other file and no network."""


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

    def report(request: Request) -> Response:
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
