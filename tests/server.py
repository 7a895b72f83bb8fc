"""Serves the page of `respodiff app` on a free port of this machine, for tests."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def free_port() -> Iterator[tuple[int, socket.socket]]:
    """A port that nobody listens on, bound while the block runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield probe.getsockname()[1], probe


@contextmanager
def served(service: Any) -> Iterator[str]:
    """The address of the page, served while the block runs."""
    from respodiff.app.server import serve

    with free_port() as (port, _):
        pass
    said: list[str] = []
    blocks = serve(service, "127.0.0.1", port, said.append)
    try:
        yield said[0]
    finally:
        blocks.close()
