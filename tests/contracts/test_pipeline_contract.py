"""Every row of the table through the cells that are quick; the others through the classes that differ. `benchmarks.backbones` runs all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.backbones import as_table
from tests.contracts.cell import Refused, Skipped
from tests.contracts.cells import CELLS, outcome
from tests.tiny_models import TINY_PIPELINES, sd

from respodiff.pipelines.registry import PIPELINES

DIFFERENT = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLInstructPix2PixPipeline",
    "LatentConsistencyModelPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
)
SOME = {
    "training": (*DIFFERENT, "StableDiffusionPipeline, v-prediction", "StableDiffusionInpaintPipeline, 9 channels"),
    "mixed batch": DIFFERENT,
    "sizes": DIFFERENT,
    "schedulers": ("StableDiffusionPipeline", "StableDiffusion3Pipeline"),
    "shared model, threads": ("StableDiffusionPipeline", "FluxPipeline"),
    "LoRA": ("StableDiffusionPipeline", "StableDiffusion3Pipeline"),
}
ONE = ("guidance off", "half precision", "attention slicing", "gradient checkpointing", "training, compiled", "DeepCache", "offloading")


@pytest.mark.parametrize("name", TINY_PIPELINES)
def test_conditional_rows_alone_and_the_latents_of_a_loop_by_hand(name: str) -> None:
    outcome(CELLS["rows"], TINY_PIPELINES[name])
    outcome(CELLS["loop by hand"], TINY_PIPELINES[name])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("cell", "name"), [(c, n) for c, names in SOME.items() for n in names])
def test_cells(cell: str, name: str) -> None:
    word, note = outcome(CELLS[cell], TINY_PIPELINES[name])
    if word == "skipped":
        pytest.skip(note)
    assert word == "works", note


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cell", ONE)
def test_cells_that_do_not_depend_on_the_class(cell: str) -> None:
    word, note = outcome(CELLS[cell], TINY_PIPELINES["StableDiffusionPipeline"])
    if word == "skipped":
        pytest.skip(note)
    assert word == "works", note


def test_every_class_of_the_table_has_a_row() -> None:
    assert set(PIPELINES) <= set(TINY_PIPELINES)


def test_a_wrong_cell_is_an_error_and_no_outcome() -> None:
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
    found = json.loads((Path(__file__).parents[2] / "docs" / "results" / "backbones.json").read_text())
    assert list(found["rows"]) == list(TINY_PIPELINES)
    assert all(list(row) == list(CELLS) for row in found["rows"].values())
    assert {cell[0] for row in found["rows"].values() for cell in row.values()} <= {"works", "refused", "skipped"}
    table = as_table(found["rows"])
    assert all(name in table for name in TINY_PIPELINES) and all(cell in table for cell in CELLS)
