"""Flags that all verbs share."""

from __future__ import annotations

import pytest
import torch

from command import respodiff
from respodiff.cli.console import check_device, open_model


@pytest.mark.parametrize(
    ("build", "available", "said"),
    [(None, False, "built without CUDA"), ("13.0", False, "no NVIDIA driver or no GPU"), ("13.0", True, "cuda:0 to cuda:1")],
)
def test_a_device_that_is_not_there_says_why(build: str | None, available: bool, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def zeros(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(torch, "zeros", zeros)
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=f"--device is 'cuda:7', which is not available: .*{said}.*--device cpu"):
        check_device("cuda:7")


@pytest.mark.slow
def test_model_device_and_dtype_are_the_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    done = respodiff("doctor", "--json")
    assert done.stderr.splitlines()[0] == "model embedded, device cpu, dtype float32" and "Loading" not in done.stderr
    with pytest.raises(ValueError, match="--dtype is 'int8'"):
        open_model("embedded", "cpu", "int8")
