"""The lines of the libraries' logs that say that weights are missing. Real files: `test_loading.py`."""

from __future__ import annotations

import logging
from threading import Thread

import pytest

from respodiff.pipelines.missing_weights import no_missing_weights


def tell() -> None:
    logging.getLogger("transformers.modeling_utils").warning("newly initialized: ['classifier.bias']")


def test_a_line_is_an_error_in_the_thread_that_loads() -> None:
    handlers = list(logging.getLogger("transformers").handlers)
    with pytest.raises(ValueError, match=r"lack weights of its model: classifier\.bias"), no_missing_weights():
        tell()
    with no_missing_weights():
        (other := Thread(target=tell)).start()
        other.join()
    assert logging.getLogger("transformers").handlers == handlers
