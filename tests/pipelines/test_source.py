from __future__ import annotations

import pickle

import pytest

from respodiff.pipelines.source import ModelSource, lora_weight


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("style.safetensors", ("style.safetensors", 1.0)),
        ("a/b.safetensors:0.6", ("a/b.safetensors", 0.6)),
        ("owner/name:-1", ("owner/name", -1.0)),
        ("C:/loras/b.safetensors", ("C:/loras/b.safetensors", 1.0)),
    ],
)
def test_loras_may_have_a_weight(text: str, found: tuple[str, float]) -> None:
    assert lora_weight(text) == found


@pytest.mark.parametrize(
    ("field", "value"),
    [("dtype", "int8"), ("offload", "disk"), ("quantize", "int2"), ("lora", ("a:two",)), ("lora", ("a:11",)), ("lora", (":1",))],
)
def test_what_is_not_allowed_is_refused_before_anything_is_loaded(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field} is "):
        ModelSource("x", **{field: value})  # type: ignore[arg-type]


def test_a_source_travels_to_workers_and_says_what_a_command_must_repeat() -> None:
    source = ModelSource("x", device="cuda", variant="fp16", lora=("a:0.5", "b"), scheduler="dpm", trains=True)
    assert pickle.loads(pickle.dumps(source)) == source
    assert source.changed() == {"variant": "fp16", "lora": ["a:0.5", "b"]} and ModelSource("x").changed() == {}
