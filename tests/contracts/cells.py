"""What is tried on every pipeline of the table in docs/backbones.md: one function a column.

A cell takes a maker of fresh pipelines, and gives a note when the feature works, raises `Refused` with the library's own reason, or
`Skipped` where this machine has not got what it needs. A wrong result is an AssertionError: there is no fourth outcome.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.contracts import cells_company, cells_drawing, cells_training
from tests.contracts.cell import Maker, Refused, Skipped

CELLS: dict[str, Callable[[Maker], str]] = {
    "rows": cells_drawing.rows,
    "loop by hand": cells_drawing.raw,
    "guidance off": cells_drawing.unguided,
    "mixed batch": cells_drawing.mixed,
    "schedulers": cells_drawing.schedulers,
    "sizes": cells_drawing.sizes,
    "half precision": cells_drawing.half,
    "attention slicing": cells_drawing.slicing,
    "training": cells_training.training,
    "gradient checkpointing": cells_training.checkpointing,
    "torch.compile": cells_company.compiled,
    "training, compiled": cells_training.compiled_training,
    "LoRA": cells_company.lora,
    "DeepCache": cells_company.deepcache,
    "shared model, threads": cells_company.shared,
    "offloading": cells_company.offload,
}
"""Column -> cell."""


def outcome(cell: Callable[[Maker], str], make: Maker) -> tuple[str, str]:
    """("works" | "refused" | "skipped", note)."""
    try:
        return "works", cell(make)
    except Refused as error:
        return "refused", str(error)
    except Skipped as error:
        return "skipped", str(error)
