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
