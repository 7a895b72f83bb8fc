"""Kills trainings and generations at random moments, and lets two processes write to one place."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.command import respodiff
from tests.tiny_models import sd

from benchmarks.torture.trials import Tally, Wrong, tiny
from respodiff.data.run_folder import RunFolder

Started = tuple[multiprocessing.Process, Path]
FORK: Any = multiprocessing.get_context("fork")  # a child starts with libraries and model in memory: milliseconds in place of seconds
SETTINGS = ("iterations=12", "rollouts=2", "rollout_batch=2", "steps=3", "batch=2", "refresh_every=4")
TRAIN = ("train", "--concept", "woman", *(part for pair in SETTINGS for part in ("--set", pair)))
GENERATE = ("generate", "--prompt", "a doctor", "--prompt", "a nurse", "--images", "12", "--steps", "2", "--batch", "4")
SECONDS = 300
"""Time limit of a trial, which runs whole commands."""


def _work(pipe: Any, arguments: Sequence[str], log: Path) -> None:
    with tiny(pipe), patch("respodiff.cli.train.SAVE_EVERY", 0.0):
        done = respodiff(*arguments)
    log.write_text(done.stderr)
    os._exit(done.returncode)


class Writers:
    """Commands on one tiny pipeline, in processes of their own, that write to one place; ``state`` tells what it holds."""

    def __init__(self, out: Path, state: Callable[[Path], Any]) -> None:
        self.pipe, self.out, self.state = sd(), out, state

    def start(self, arguments: Sequence[str]) -> Started:
        """A process that runs a command, and the file of what it says."""
        log = self.out.parent / f"log{os.urandom(6).hex()}"
        process = FORK.Process(target=_work, args=(self.pipe, [*arguments, "--out", str(self.out)], log), daemon=True)
        process.start()
        return process, log

    def made(self, arguments: Sequence[str]) -> Any:
        """What is there after a command; `Wrong` if it fails."""
        code, said = ended(self.start(arguments))
        if code:
            raise Wrong(f"exit code {code}: {said[-300:]}")
        return self.state(self.out)

    def clear(self) -> None:
        """Nothing is left of what was there, nor of what stands beside it under its name."""
        for path in (self.out, *self.out.parent.glob(f".{self.out.name}*")):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def kill(self, tally: Tally, rng: random.Random, n: int, arguments: Sequence[str], more: Sequence[str] = ()) -> Tally:
        """Kills a command at n random moments and finishes it: what is there must be what one makes that runs through."""
        expected = self.made(arguments)
        self.clear()
        began = time.monotonic()
        self.made(arguments)
        usual = time.monotonic() - began
        while tally.trials < n:
            self.clear()
            began = time.monotonic()
            process, _ = self.start(arguments)
            process.join(rng.uniform(0, usual))
            if not process.is_alive():  # it was done before: so long it takes now, with whatever shares the cores
                usual = time.monotonic() - began
            else:
                usual *= 1.02
                process.kill()
                process.join()
                tally.begun += (self.out / "manifest.jsonl").exists() or self.out.with_name(f".{self.out.name}.unfinished").exists()
                tally.attempt(f"{arguments[0]} killed", lambda: self._check([expected], [*arguments, *more]), SECONDS)
        return tally

    def race(self, tally: Tally, rng: random.Random, n: int, *commands: Sequence[str]) -> Tally:
        """Two processes write to one place at once, n times: it holds what one of them makes, and the other has done the same or said a line."""
        allowed = []
        for command in commands:
            self.clear()
            allowed.append(self.made(command))
        for _ in range(n):
            self.clear()
            tally.attempt(f"two of {commands[0][0]}", lambda: self._race(rng, commands, allowed), SECONDS)
        return tally

    def _race(self, rng: random.Random, commands: Sequence[Sequence[str]], allowed: Sequence[Any]) -> None:
        both = []
        for command in commands:
            both.append(self.start(command))
            time.sleep(rng.uniform(0, 0.2))
        ends = [ended(started) for started in both]
        if all(code for code, _ in ends) or any(
            code not in (0, 1, 2) or "Traceback" in said or "unexpected" in said for code, said in ends
        ):
            raise Wrong(f"they end with {ends}"[:400])
        self._check(allowed)

    def _check(self, allowed: Sequence[Any], command: Sequence[str] = ()) -> None:
        if (found := self.made(command) if command else self.state(self.out)) not in allowed:
            raise Wrong(f"{self.out.name} holds {found} in place of {allowed}"[:400])


def ended(started: Started) -> tuple[int, str]:
    """Exit code of a process, and what it said."""
    process, log = started
    try:
        process.join()
    finally:
        process.kill()  # where the trial took too long
    return int(process.exitcode or 0), log.read_text() if log.exists() else ""


def of_module(out: Path) -> Any:
    """Digest of a module file."""
    return hashlib.sha256(out.read_bytes()).hexdigest()


def of_run(out: Path) -> Any:
    """Digest of the rows of a run folder, and their number; `Wrong` for a row whose file is another one."""
    rows = []
    for r in RunFolder(out).records():
        if (found := hashlib.sha256((out / r.file).read_bytes()).hexdigest()) != r.digest:
            raise Wrong(f"row {r.id} says digest {r.digest[:12]}, its file has {found[:12]}")
        rows.append((r.id, r.file, r.prompt, r.seed, r.digest))
    return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest(), len(rows)


def train(place: Path, rng: random.Random, n: int) -> Tally:
    """Trainings, killed and resumed."""
    return Writers(place / "m.safetensors", of_module).kill(Tally(), rng, n, TRAIN, ["--resume"])


def generate(place: Path, rng: random.Random, n: int) -> Tally:
    """Generations, killed and repeated."""
    return Writers(place / "run", of_run).kill(Tally(), rng, n, GENERATE)


def two_writers(place: Path, rng: random.Random, n: int) -> Tally:
    """Two of the same generation, two of other seeds, two trainings."""
    tally, run, module = Tally(), Writers(place / "run", of_run), Writers(place / "m.safetensors", of_module)
    run.race(tally, rng, n // 2, GENERATE, GENERATE)
    run.race(tally, rng, n // 4, GENERATE, [*GENERATE, "--seed", "1"])
    return module.race(tally, rng, n - n // 2 - n // 4, TRAIN, TRAIN)
