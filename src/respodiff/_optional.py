"""Provides the import of packages that single features need."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def optional(module: str, what: str, extra: str) -> Any:
    """The module; RuntimeError with one line that says which extra of respodiff ``what`` needs."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise RuntimeError(f"{what} needs the package {package} ({error}); run: pip install 'respodiff[{extra}]'") from error
