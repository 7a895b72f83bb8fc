from __future__ import annotations

from typing import Any

import pytest
from tests.published import PUBLISHED
from tests.tiny_models import TINY_PIPELINES

from respodiff.pipelines.registry import PIPELINES


def value_of(pipe: Any, path: str) -> Any:
    part, *keys = path.split(".")
    found: Any = getattr(pipe, part).config
    if keys == ["_class_name"]:
        return type(getattr(pipe, part)).__name__
    for key in keys:
        found = found[int(key)] if key.isdigit() else found[key]
    return tuple(found) if isinstance(found, list) else found


def numbers(value: Any) -> list[float]:
    return [float(v) for v in value] if isinstance(value, tuple | list) else [float(value)]


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_tiny_models_are_cut_down_from_published_ones(name: str) -> None:
    pipe, told = TINY_PIPELINES[name](), PUBLISHED[name]
    assert {path: value_of(pipe, path) for path in told.same} == dict(told.same)
    for group in told.shares:
        own, full = (
            [n for path, value in group.items() for n in numbers(of(path, value))]
            for of in (lambda p, _: value_of(pipe, p), lambda _, v: v)
        )
        assert [n / own[0] for n in own] == pytest.approx([n / full[0] for n in full]), group
    if "transformer.axes_dims_rope" in [path for group in told.shares for path in group]:
        assert sum(value_of(pipe, "transformer.axes_dims_rope")) == value_of(pipe, "transformer.attention_head_dim")


def test_every_text_to_image_transformer_has_an_entry() -> None:
    missing = {name for name, spec in PIPELINES.items() if spec.model == "transformer" and not spec.images} - PUBLISHED.keys()
    assert not missing
    assert all("/" in entry.model for entry in PUBLISHED.values())
