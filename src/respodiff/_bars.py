"""Keeps the progress bars of libraries off the screen while they read folders, which takes a second."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def without_bars(*libraries: Any) -> Iterator[None]:
    """While active, these libraries (`diffusers`, `transformers`) draw no progress bars; then they do as before."""
    drawing = [lib.utils.logging for lib in libraries if lib.utils.logging.is_progress_bar_enabled()]
    try:
        for logging in drawing:
            logging.disable_progress_bar()
        yield
    finally:
        for logging in drawing:
            logging.enable_progress_bar()
