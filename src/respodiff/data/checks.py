"""Checks settings; an error names the setting, its value and what is allowed."""

from __future__ import annotations

import math


def check_setting(name: str, value: object, good: bool, allowed: str) -> None:
    """ValueError unless ``good``."""
    if not good:
        raise ValueError(f"{name} is {value!r}; allowed: {allowed}")


def is_whole(value: object) -> bool:
    """Whether a value is a whole number, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite(value: object) -> bool:
    """Whether a value is a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
