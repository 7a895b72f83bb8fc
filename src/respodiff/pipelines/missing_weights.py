"""Refuses models whose files lack weights, which the libraries would fill with random numbers."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten


class _Listener(logging.Handler):
    """Keeps what was logged in the thread that made it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.thread, self.said = threading.get_ident(), list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self.thread:
            self.said.append(record.getMessage())


ONE_AT_A_TIME = threading.RLock()
"""Held while a model loads, as handlers are of the whole process."""


@contextmanager
def no_missing_weights() -> Iterator[None]:
    """ValueError where files lack weights that a model has: libraries take random ones, and tell of it in a line of their log alone."""
    listener, loggers = _Listener(), [logging.getLogger(name) for name in ("diffusers", "transformers")]
    with ONE_AT_A_TIME:
        before = [(logger.level, logger.handlers) for logger in loggers]
        try:
            for logger in loggers:
                quiet = logger.level > logging.WARNING  # then the listener alone hears warnings
                logger.handlers = [listener, *logger.handlers] if not quiet else [listener]
                logger.setLevel(min(logger.level, logging.WARNING))
            yield
        finally:
            for logger, (level, handlers) in zip(loggers, before, strict=True):
                logger.handlers = handlers
                logger.setLevel(level)
    for said in listener.said:
        if "newly initialized" in said:
            name = re.search(r"^([\w.{}, ]*\w)\s*\|.*MISSING|newly initialized: \['([^']*)", said, re.MULTILINE)
            raise ValueError(
                f"its files lack weights of its model: {shorten(name[1] or name[2] if name else said, 100, placeholder=' ...')}"
            )
