"""Provides trials: what may come out of one, damage to bytes and to JSON, and the command line in this process."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import random
import resource
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from tests.command import Done, respodiff

T = TypeVar("T")
SECONDS, CPU_SECONDS = 120, 20
"""Time limits of a trial; that of the clock is wide, as other work may share the cores."""
MEMORY = Path("/dev/shm")
"""A folder in memory, where there is one: waiting for the disk at every image would take an hour, and a kill loses nothing that a disk keeps."""


class Hang(BaseException):
    """A trial takes too long; no `except Exception` of the library holds it back."""


class Wrong(Exception):
    """A result that is not what it says."""


@dataclass
class Tally:
    """Trials of one kind by outcome: ``right``, ``refused``, or one of the failures; what failed, in a line each; and how many were `begun`."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    begun: int = 0
    """Commands that were killed after they had written something to go on from."""

    def attempt(self, about: str, trial: Callable[[], T], seconds: float = SECONDS) -> T | None:
        """The result of a trial; None where the library refuses it, which is as good."""
        try:
            with limited(seconds), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = trial()
        except Hang as error:
            self.fail("hang", f"{about}: {error}")
        except Wrong as error:
            self.fail("wrong", f"{about}: {error}")
        except (ValueError, OSError) as error:
            self.outcomes["refused"] += 1
            if "\n" in str(error).strip() or isinstance(error, UnicodeError):
                self.fail("traceback", f"{about}: {error!r}")
        except Exception as error:
            self.fail("traceback", f"{about}: {type(error).__name__}: {error}")
        else:
            self.outcomes["right"] += 1
            return result
        return None

    def fail(self, kind: str, about: str) -> None:
        """Counts a failure and keeps the first ones."""
        self.outcomes[kind] += 1
        self.failures += [f"{kind}, {about}"[:500]] if len(self.failures) < 20 else []

    @property
    def trials(self) -> int:
        return sum(self.outcomes.values())

    def to_json(self) -> dict[str, Any]:
        failed = self.trials - self.outcomes["right"] - self.outcomes["refused"]
        begun = {"begun": self.begun} if self.begun else {}
        return {"trials": self.trials, **dict(sorted(self.outcomes.items())), **begun, "failed": failed, "failures": self.failures}


def measured(trials: Callable[[Path, random.Random, int], Tally], n: int, seed: str) -> dict[str, Any]:
    """What came out of n trials, with seconds; in a process of their own, whose CPU seconds are all theirs."""
    torch.set_num_threads(1)  # a pool of threads would not survive a fork
    logging.disable(logging.WARNING)
    os.environ.pop("RESPODIFF_TRACEBACK", None)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as place:
        found = trials(Path(place), random.Random(seed), n).to_json()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(u.ru_utime + u.ru_stime for u in used)
    return found | {"seconds": round(time.monotonic() - began, 1), "cpu_seconds": round(cpu, 1)}


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """While active, `Hang` is raised after so many seconds, or after `CPU_SECONDS` of this process; it says where."""

    def ring(_: int, frame: FrameType | None) -> None:
        at = f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else ""
        raise Hang(f"{time.process_time() - began:.1f} CPU seconds, at {at}")

    began = time.process_time()
    clocks = {signal.SIGALRM: (signal.ITIMER_REAL, seconds), signal.SIGPROF: (signal.ITIMER_PROF, CPU_SECONDS)}
    for number, (clock, limit) in clocks.items():
        signal.signal(number, ring)
        signal.setitimer(clock, limit)
    try:
        yield
    finally:
        for clock, _ in clocks.values():
            signal.setitimer(clock, 0)


@contextlib.contextmanager
def tiny(pipe: Any) -> Iterator[None]:
    """While active, commands have this pipeline for every model."""
    with patch("respodiff.cli.generate.open_model", lambda *_: pipe), patch("respodiff.cli.train.open_model", lambda *_: pipe):
        yield


def command(*arguments: str) -> Done:
    """A command in this process: ValueError where it is refused, `Wrong` if it ends in anything but its result or one clean line."""
    done = respodiff(*arguments)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    said = done.stdout + done.stderr
    if done.returncode and (len(errors) != 1 or "unexpected" in errors[0] or len(errors[0]) > 1100):
        raise Wrong(f"exit code {done.returncode}: {' | '.join(errors)[:300]}")
    if "Traceback" in said or "\x1b" in said or (not done.returncode and errors):
        raise Wrong(f"exit code {done.returncode}, but it says {said[-300:]!r}")
    if done.returncode:
        raise ValueError(errors[0])
    return done


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes with a few bits turned, or a part cut, zeroed, doubled, moved or made of noise."""
    if not data:
        return rng.randbytes(8)
    out, n = bytearray(data), len(data)
    at, length = rng.randrange(n + 1), rng.choice([1, 2, 8, 64, n])
    how = rng.choice(["bit", "bit", "bit", "bits", "cut", "zero", "noise", "drop", "double", "longer", "empty"])
    if how in ("bit", "bits"):
        for _ in range(1 if how == "bit" else 8):
            out[rng.randrange(n)] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del out[at:]
    elif how in ("zero", "noise"):
        end = min(n, at + length)
        out[at:end] = bytes(end - at) if how == "zero" else rng.randbytes(end - at)
    elif how == "drop":
        del out[at : at + length]
    elif how == "double":
        out[at:at] = out[at : at + length]
    elif how == "longer":
        out += rng.randbytes(length)
    else:
        out.clear()
    return bytes(out)


ODD: list[Any] = [
    *(
        None,
        True,
        -1,
        0,
        10**30,
        10**400,
        1e308,
        float("inf"),
        float("nan"),
        "",
        "x" * 300_000,
        "\x1b[31m\a",
        "[/big]",
        "=1+1",
        "../../../etc",
    ),
    *("a\0b", "\u202e", "<script>", "|", "/dev/zero", [], {}, [[]], [1, "a", None], {"a": {"b": []}}, [0] * 1000, "1e5", "NaN"),
]
"""Values that stand where others are expected."""


def changed(value: Any, rng: random.Random) -> Any:
    """A JSON object with one of its values, at any depth, replaced, left out or doubled under another name."""
    out = copy.deepcopy(value)
    at = out
    while isinstance(at, dict | list) and at:
        key = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
        inner = at[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.5:
            at = inner
            continue
        if rng.random() < 0.2:
            del at[key]
        else:
            at[key] = rng.choice([*ODD, inner])
        break
    return out


def nested(text: str, rng: random.Random) -> str:
    """The JSON text, now and then with brackets without end in it."""
    return text if rng.random() < 0.95 else text[: rng.randrange(len(text) + 1)] + "[" * 50_000


def as_text(value: Any, rng: random.Random) -> str:
    """JSON of a changed object."""
    return nested(json.dumps(changed(value, rng)), rng)


def write(path: Path, data: bytes) -> Path:
    """The file with these bytes, whatever stood there."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path
