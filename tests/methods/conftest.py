"""Provides the tiny pipelines that the tests of trained methods share."""

from __future__ import annotations

from typing import Any

import pytest

from method_tools import MAKE, strong


@pytest.fixture(params=["sd", "sdxl"])
def pipe(request: pytest.FixtureRequest) -> Any:
    return strong(MAKE[request.param]())


@pytest.fixture
def plain_sd() -> Any:
    return strong(MAKE["sd"]())
