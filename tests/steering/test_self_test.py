from __future__ import annotations

import pytest
import torch
from tests.tiny_models import TINY_PIPELINES, sd

from respodiff.steering.self_test import examine


@pytest.mark.parametrize(
    "name",
    [
        "StableDiffusionPipeline",
        "StableDiffusionControlNetInpaintPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInstructPix2PixPipeline",
        "StableDiffusion3Pipeline",
        "FluxPipeline",
        "LatentConsistencyModelImg2ImgPipeline",
        "Flux2Pipeline",
        "HiDreamImagePipeline",
        "SanaSprintImg2ImgPipeline",
        "QwenImageEditPipeline",
        "ZImageControlNetPipeline",
    ],
)
def test_healthy_pipelines_pass(name: str) -> None:
    found = examine(TINY_PIPELINES[name]())
    assert found["supported"] and found["pipeline"] == name and len(found["shape"]) == 3
    assert all(c["passed"] for c in found["checks"].values()), found["checks"]


def test_it_notices_a_site_that_is_never_reached() -> None:
    pipe = sd()
    unet = pipe.unet
    unet.forward = lambda sample, *_, **__: (torch.zeros_like(sample),)
    assert not examine(pipe)["checks"]["every step is steered"]["passed"]


def test_it_notices_rows_that_should_not_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("respodiff.steering.steer.row_blocks", lambda _pipe, rows, *_: {"cond": slice(0, rows)})
    checks = examine(sd())["checks"]
    assert not checks["conditional rows alone are shifted"]["passed"]
    assert "row 0, 1 of 2" in checks["conditional rows alone are shifted"]["detail"]


def test_it_notices_that_nothing_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("respodiff.steering.steer.row_blocks", lambda *_: {})
    checks = examine(sd())["checks"]
    assert not checks["a module changes the image"]["passed"] and not checks["conditional rows alone are shifted"]["passed"]
    assert checks["the pipeline is as before"]["passed"]
