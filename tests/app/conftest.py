"""A service on a tiny pipeline with two random modules of gender."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from respodiff.app.service import Service
from respodiff.pipelines.source import ModelSource


@pytest.fixture
def make_service(tiny_pipe: Any, make_module: Callable[..., Any], tmp_path: Path) -> Callable[..., Service]:
    """Factory: ``make_service(judge="", **fields)``."""

    def make(judge: str = "", **more: Any) -> Service:
        files = [make_module(n, attribute="gender", seed=i).save(tmp_path / f"{n}.safetensors") for i, n in enumerate(("woman", "man"))]
        return Service(tiny_pipe, ModelSource("tiny"), judge, tmp_path / "app", tuple(files), **more)

    return make


@pytest.fixture
def service(make_service: Callable[..., Service]) -> Service:
    return make_service()
