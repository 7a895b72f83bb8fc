"""Every pipeline through the quick checks, and those that differ through the slow ones. `benchmarks.backbones` runs every check on every one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.contracts.pipeline_checks import CHECKS, Refused, Skipped, outcome
from tests.tiny_models import TINY_PIPELINES, sd

from respodiff.methods.registry import NAMES
from respodiff.pipelines.registry import PIPELINES

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"
DIFFERENT = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLInstructPix2PixPipeline",
    "LatentConsistencyModelPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "Flux2KleinPipeline",
    "QwenImagePipeline",
    "ChromaPipeline",
    "SanaPipeline",
    "CogView4Pipeline",
    "HunyuanDiTPipeline",
    "Flux2Pipeline",
    "HiDreamImagePipeline",
)
STEERED_ALONE = ("QwenImageEditPipeline", "SanaSprintPipeline", "StableDiffusionXLModularPipeline")
TEXT_TO_IMAGE = [name for name, spec in PIPELINES.items() if not spec.images]
SOME = {
    "training": (*DIFFERENT, "StableDiffusionPipeline, v-prediction", "StableDiffusionInpaintPipeline, 9 channels"),
    "mixed batch": (*DIFFERENT, *STEERED_ALONE),
    "sizes": (*DIFFERENT, *STEERED_ALONE),
    "schedulers": ("StableDiffusionPipeline", "StableDiffusion3Pipeline"),
    "shared model, threads": ("StableDiffusionPipeline", "FluxPipeline"),
    "LoRA": ("StableDiffusionPipeline", "StableDiffusion3Pipeline"),
}
ONE = ("guidance off", "half precision", "attention slicing", "gradient checkpointing", "training, compiled", "DeepCache", "offloading")


@pytest.mark.parametrize("name", TINY_PIPELINES)
def test_conditional_rows_alone_and_the_latents_of_a_loop_by_hand(name: str) -> None:
    outcome(CHECKS["rows"], TINY_PIPELINES[name])
    outcome(CHECKS["loop by hand"], TINY_PIPELINES[name])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("check", "name"), [(check, name) for check, names in SOME.items() for name in names])
def test_pipelines_that_differ(check: str, name: str) -> None:
    word, note = outcome(CHECKS[check], TINY_PIPELINES[name])
    if word == "skipped":
        pytest.skip(note)
    assert word == "works", note


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("check", ONE)
def test_what_does_not_depend_on_the_class(check: str) -> None:
    word, note = outcome(CHECKS[check], TINY_PIPELINES["StableDiffusionPipeline"])
    if word == "skipped":
        pytest.skip(note)
    assert word == "works", note


def test_every_class_of_the_table_has_a_row() -> None:
    assert set(PIPELINES) <= set(TINY_PIPELINES)


def test_a_wrong_result_is_an_error_and_no_outcome() -> None:
    def wrong(_make: object) -> str:
        raise AssertionError("two latents differ")

    def refuses(_make: object) -> str:
        raise Refused("no")

    def skips(_make: object) -> str:
        raise Skipped("no accelerator")

    with pytest.raises(AssertionError):
        outcome(wrong, sd)
    assert outcome(refuses, sd) == ("refused", "no") and outcome(skips, sd) == ("skipped", "no accelerator")


def test_the_page_has_a_cell_for_every_pipeline_and_feature() -> None:
    found = json.loads((DOCS / "results" / "backbones.json").read_text())
    assert list(found["rows"]) == list(TINY_PIPELINES)
    assert all(list(row) == list(CHECKS) for row in found["rows"].values())
    assert {cell[0] for row in found["rows"].values() for cell in row.values()} <= {"works", "refused", "skipped"}
    assert list(found["methods"]) == TEXT_TO_IMAGE and all(list(row) == list(NAMES) for row in found["methods"].values())
    page = (DOCS / "backbones.md").read_text()
    assert all(f"| {name} |" in page for name in TINY_PIPELINES) and all(f"| {check} |" in page for check in CHECKS)
