"""Tasks for the workers of an engine: functions that another process can import, some of which end their worker."""

from __future__ import annotations

import os
import signal
import time
import warnings
from dataclasses import dataclass
from pathlib import Path


def end_worker() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def doubled(number: int) -> int:
    warnings.warn("numbers are doubled", stacklevel=1)
    return 2 * number


def refused(number: int) -> int:
    raise ValueError(f"number is {number}; allowed: none")


def deadly(number: int) -> int:
    end_worker()
    return number


@dataclass
class DeadlyOnce:
    """Ends its worker at one number, the first time."""

    marker: Path

    def __call__(self, number: int) -> int:
        if number == 3 and not self.marker.exists():
            self.marker.touch()
            end_worker()
        return number


@dataclass
class Sleeps:
    """Writes the process's number into a folder and sleeps."""

    folder: Path

    def __call__(self, number: int) -> None:
        (self.folder / str(os.getpid())).touch()
        time.sleep(600)


def train_a_line(place: int, folder: Path) -> None:
    """One of two processes that train a line together; leaves its weights in ``folder/PLACE.pt``."""
    import torch
    import torch.distributed as dist
    from recipes.embedded_model.loop import Loop

    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=place, world_size=2)
    torch.manual_seed(0)
    line = torch.nn.Linear(3, 1)

    def update(generator: torch.Generator) -> torch.Tensor:
        x = torch.randn(4, 3, generator=generator)
        torch.save(x, folder / f"{place}-batch.pt")
        return (line(x)[:, 0] - x.sum(1)).pow(2).mean()

    loop = Loop("line", folder / "state.safetensors", 0.05, warmup=2, steps=8, ema=0.9)
    torch.save(loop.run(line, update).state_dict(), folder / f"{place}.pt")
    dist.destroy_process_group()
