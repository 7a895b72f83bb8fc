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

import torch
from tests.command import respodiff
from tests.tiny_models import sd

from benchmarks.torture.trials import Tally, Wrong, tiny
from respodiff.data.run_folder import RunFolder

Started = tuple[multiprocessing.Process, Path]
FORK: Any = multiprocessing.get_context("fork")  # a child starts with libraries and model in memory: milliseconds in place of seconds
TRAIN = (
    "train",
    "--concept",
    "woman",
    "--iterations",
    "12",
    "--json",
    *(part for pair in ("rollouts=2", "rollout_batch=2", "steps=3", "batch=2", "refresh_every=4") for part in ("--set", pair)),
)
GENERATE = ("generate", "--prompt", "a doctor", "--prompt", "a nurse", "--images", "12", "--steps", "2", "--batch", "4", "--json")


def _work(pipe: Any, arguments: Sequence[str], log: Path) -> None:
    with tiny(pipe), patch("respodiff.cli.train.SAVE_EVERY", 0.0):
        done = respodiff(*arguments)
    log.write_text(done.stderr)
    os._exit(done.returncode)


class Kills:
    """Commands on one tiny pipeline, in processes of their own."""

    def __init__(self, place: Path, rng: random.Random) -> None:
        torch.set_num_threads(1)  # a pool of threads would not survive the fork
        self.pipe, self.place, self.rng = sd(), place, rng
        self.started: list[Any] = []

    def start(self, *arguments: str) -> Started:
        """A process that runs a command, and the file of what it says."""
        log = self.place / f"log-{self.rng.getrandbits(48):012x}"
        process = FORK.Process(target=_work, args=(self.pipe, arguments, log))
        process.start()
        self.started.append(process)
        return process, log

    def attempt(self, tally: Tally, about: str, trial: Callable[[], None]) -> None:
        """A trial whose processes end with it."""
        tally.attempt(about, trial, seconds=120)
        for process in self.started:
            process.kill()
            process.join()
        self.started.clear()

    def finish(self, *arguments: str) -> str:
        """What a command says on stderr; `Wrong` if it fails."""
        code, said = ended(self.start(*arguments))
        if code:
            raise Wrong(f"exit code {code}: {said[-300:]}")
        return said

    def kill(
        self, tally: Tally, arguments: Sequence[str], more: Sequence[str], out: Path, state: Callable[[Path], Any], times: int
    ) -> None:
        """Kills the command at ``times`` random moments and finishes it: its output must be that of a command that ran through."""
        self.finish(*arguments, "--out", str(out))
        expected = state(out)
        began = time.monotonic()
        clear(out)
        self.finish(*arguments, "--out", str(out))
        usual, done = time.monotonic() - began, 0
        while done < times:
            clear(out)
            process, _ = self.start(*arguments, "--out", str(out))
            time.sleep(self.rng.uniform(0, usual))
            if not process.is_alive():
                continue
            process.kill()
            process.join()
            done += 1
            self.attempt(tally, f"{arguments[0]} killed", lambda: self._same(arguments, more, out, state, expected))

    def _same(self, arguments: Sequence[str], more: Sequence[str], out: Path, state: Callable[[Path], Any], expected: Any) -> None:
        self.finish(*arguments, *more, "--out", str(out))
        if (found := state(out)) != expected:
            raise Wrong(f"{out.name} differs from that of a run that was not killed: {found} in place of {expected}"[:400])

    def race(self, tally: Tally, commands: Sequence[Sequence[str]], out: Path, state: Callable[[Path], Any], times: int) -> None:
        """Two processes write to one place at once: it holds what one of them makes, and the other has done the same or said a line."""
        allowed = []
        for command in commands:
            clear(out)
            self.finish(*command, "--out", str(out))
            allowed.append(state(out))
        for _ in range(times):
            clear(out)
            self.attempt(tally, f"two of {commands[0][0]}", lambda: self._raced(commands, out, state, allowed))

    def _raced(self, commands: Sequence[Sequence[str]], out: Path, state: Callable[[Path], Any], allowed: Sequence[Any]) -> None:
        both = []
        for command in commands:
            both.append(self.start(*command, "--out", str(out)))
            time.sleep(self.rng.uniform(0, 0.2))
        ends = [ended(started) for started in both]
        if all(code for code, _ in ends) or any(
            code not in (0, 1, 2) or "Traceback" in said or "unexpected" in said for code, said in ends
        ):
            raise Wrong(f"they end with {ends}"[:400])
        if (found := state(out)) not in allowed:
            raise Wrong(f"{out.name} holds what neither of them makes: {found} in place of {allowed}"[:400])


def ended(started: Started) -> tuple[int, str]:
    """Exit code of a process, and what it said."""
    process, log = started
    process.join()
    return int(process.exitcode or 0), log.read_text() if log.exists() else ""


def clear(out: Path) -> None:
    """Nothing is left of ``out``, nor of what stands beside it under its name."""
    for path in out.parent.glob(f"*{out.name}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in out.parent.glob(f".{out.name}*"):
        path.unlink()


def of_module(out: Path) -> Any:
    """Digest of a module file."""
    return hashlib.sha256(out.read_bytes()).hexdigest()


def of_run(out: Path) -> Any:
    """Rows of a run folder and digests of their images; `Wrong` for a row whose file is another one."""
    rows = {}
    for r in RunFolder(out).records():
        if (found := hashlib.sha256((out / r.file).read_bytes()).hexdigest()) != r.digest:
            raise Wrong(f"row {r.id} says digest {r.digest[:12]}, its file has {found[:12]}")
        rows[r.id] = (r.file, r.prompt, r.seed, r.digest)
    return hashlib.sha256(json.dumps(sorted(rows.items())).encode()).hexdigest(), len(rows)


def trials(place: Path, rng: random.Random, kills: int, races: int) -> list[Tally]:
    """Killed trainings, killed generations, and two writers of run folders and of modules."""
    work, out = Kills(place, rng), place / "out"
    tallies = [Tally("kills_train"), Tally("kills_generate"), Tally("two_writers")]
    work.kill(tallies[0], TRAIN, ("--resume",), out / "m.safetensors", of_module, kills)
    tallies[1].began = time.monotonic()
    work.kill(tallies[1], GENERATE, (), out / "run", of_run, kills)
    tallies[2].began = time.monotonic()
    work.race(tallies[2], [GENERATE, GENERATE], out / "run", of_run, races // 2)
    work.race(tallies[2], [GENERATE, (*GENERATE, "--seed", "1")], out / "run", of_run, races // 4)
    work.race(tallies[2], [TRAIN, TRAIN], out / "m.safetensors", of_module, races - races // 2 - races // 4)
    return tallies
