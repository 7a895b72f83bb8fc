"""A task for the workers of an engine that draws, and ends its worker once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from respodiff.data.shards import Shard
from respodiff.experiments.work import Drawing, draw
from worker_tasks import end_worker


@dataclass
class DrawsAndDies(Drawing):
    """Ends its worker after the first image of a shard with several, the first time."""

    marker: Path = Path()

    def __call__(self, unit: tuple[int, Shard]) -> Any:
        if not self.marker.exists():
            for _ in draw(self.pipe, self.runs[unit[0]], unit[1]):
                self.marker.touch()
                end_worker()
        return super().__call__(unit)
