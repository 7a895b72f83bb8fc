"""Runs independent pieces of work at the same time: on processes of this machine, or on a Ray cluster.

Order, balance, retries and lost workers are left to `concurrent.futures` and to Ray.
"""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

R = TypeVar("R")
Told = tuple[Any, list[str]]
"""A result, and the warnings on the way to it."""

UNITS = 8
"""Pieces of work for each worker: so that the last ones end at about the same time."""
RETRIES = 3
"""How often a piece of work is tried again when its worker is lost."""
PASSED_ON = (
    "HF_HUB_OFFLINE",
    "HF_HOME",
    "HF_HUB_DISABLE_PROGRESS_BARS",
    "TRANSFORMERS_VERBOSITY",
    "DIFFUSERS_VERBOSITY",
    "OMP_WAIT_POLICY",
)
"""Variables that workers on other machines get, too."""


@dataclass(frozen=True)
class Engine:
    """Where pieces of work run.

    Attributes:
        workers: how many at a time; 0 is as many as the Ray cluster has GPUs, or cores where ``gpus`` is 0.
        ray: on a Ray cluster instead of this machine's processes.
        address: of the cluster; empty is that of ``RAY_ADDRESS``, else one that runs on this machine, else a new one.
        gpus: GPUs a worker, such as .5 for two on one GPU. On this machine any number above 0 gives the workers its GPUs in turns.
    """

    workers: int = 2
    ray: bool = False
    address: str = ""
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.workers < (0 if self.ray else 1):
            raise ValueError(f"workers is {self.workers}; allowed: 1 or more, and 0 on a Ray cluster")
        if self.gpus < 0 or (self.gpus > 1 and self.gpus % 1):
            raise ValueError(f"gpus is {self.gpus:g}; allowed: 0, a part of 1, or a whole number, for each worker")

    def units(self, most: int) -> int:
        """In how many parts to split work that has at most so many: at least two."""
        return max(2, min(most, UNITS * (self.workers or 32)))

    def map(self, task: Callable[[Any], R], items: Iterable[Any]) -> Iterator[R]:
        """Yield ``task(item)`` of all items, in the order in which they end.

        Each worker holds a copy of the task, so that it may keep what is dear to load. A lost worker's piece is done again, at most `RETRIES`
        times: a task must be such that doing it again harms nothing. Workers end with this process, also if it is killed.

        Raises:
            RuntimeError: a piece lost its worker again and again, or Ray is not there.
            Exception: whatever a task raises; the others are given up.
        """
        said = set[str]()
        for result, told in (_on_ray if self.ray else _on_this_machine)(self, task, list(items)):
            for text in told:
                if text not in said:
                    warnings.warn(text, stacklevel=2)
                    said.add(text)
            yield result


class _Worker:
    """A copy of the task in a process of its own, in the folder of the parent."""

    def __init__(self, task: Callable[[Any], Any], folder: str) -> None:
        os.chdir(folder)
        self._task = task

    def call(self, item: Any) -> Told:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            result = self._task(item)
        return result, [str(w.message) for w in caught if w.category in (UserWarning, RuntimeWarning)]


_worker: _Worker


def _on_this_machine(engine: Engine, task: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Told]:
    from multiprocessing import get_context

    context = get_context("spawn")  # a fork would copy threads and GPU state
    left, lost = dict(enumerate(items)), 0
    while left:
        before = len(left)
        ours, theirs = context.Pipe()
        begin = (theirs, context.Value("i", 0), engine, task)
        pool = ProcessPoolExecutor(min(engine.workers, len(left)), context, _begin, begin)
        try:
            ends = {pool.submit(_call, item): key for key, item in left.items()}
            for end in as_completed(ends):
                try:
                    told = end.result()
                except BrokenProcessPool:  # the pool of a lost worker ends as a whole
                    continue
                del left[ends[end]]
                yield told
            pool.shutdown()
        finally:
            ours.close()  # ends workers that are still at work
            pool.shutdown(cancel_futures=True)
            theirs.close()
        lost = lost + 1 if len(left) == before else 0
        if lost > RETRIES:
            raise RuntimeError(f"workers were lost {lost} times in turn without a piece of work done (memory?); try fewer with --workers")


def _begin(parent: Any, started: Any, engine: Engine, task: Callable[[Any], Any]) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with started.get_lock():
        number, started.value = started.value, started.value + 1
    import torch

    if engine.gpus and torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())  # what "cuda" means from now on
    torch.set_num_threads(max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) // engine.workers)))
    _worker = _Worker(task, ".")


def _end_with(parent: Any) -> None:
    """End this process, whatever it does, once the parent's end of the pipe is closed."""
    parent.poll(None)
    os._exit(1)


def _call(item: Any) -> Told:
    return _worker.call(item)


def _on_ray(engine: Engine, task: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Told]:
    try:
        import ray
    except ImportError as error:
        raise RuntimeError(f"engine ray needs the package ray ({error}); run: pip install 'respodiff[ray]'") from error
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    if not items:
        return
    mine = not ray.is_initialized()
    if mine:
        about = {"runtime_env": {"env_vars": passed}, "log_to_driver": False, "logging_level": "ERROR"}
        ray.init(engine.address or None, **about)
    try:
        there = ray.cluster_resources()
        room = int(there.get("GPU", 0) / engine.gpus) if engine.gpus else int(there.get("CPU", 0))
        if not 1 <= max(1, engine.workers) <= room:
            what = f"GPUs for {room} workers of {engine.gpus:g}" if engine.gpus else f"{room} cores"
            raise ValueError(f"workers is {engine.workers}, and the Ray cluster has {what}; give as many as it has, or fewer")
        kind = ray.remote(_Worker).options(num_cpus=0 if engine.gpus else 1, num_gpus=engine.gpus)
        try:
            yield from _shared_out(kind, min(engine.workers or room, len(items)), task, items)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
    finally:
        if mine:
            ray.shutdown()


def _shared_out(kind: Any, count: int, task: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Told]:
    """Give each actor one item at a time, once it runs: one that finds no place on the cluster holds up nothing."""
    import ray

    waiting, lost, left = deque(range(len(items))), Counter[int](), len(items)
    running: dict[Any, tuple[Any, int]] = {}  # what will end -> actor, item: -1 is its start

    def begin() -> None:
        worker = kind.remote(task, str(Path.cwd()))
        running[worker.__ray_ready__.remote()] = worker, -1

    try:
        for _ in range(count):
            begin()
        while left:
            end = ray.wait(list(running))[0][0]
            worker, item = running.pop(end)
            try:
                told = ray.get(end)
            except ray.exceptions.RayActorError as error:
                ray.kill(worker)  # where it is out of reach alone
                lost[item] += 1
                if lost[item] > RETRIES * (count if item < 0 else 1):
                    raise RuntimeError(
                        f"workers of the Ray cluster were lost again and again ({error}); try fewer with --workers"
                    ) from error
                waiting.extend([item] * (item >= 0))
                begin()
                continue
            if item >= 0:
                left -= 1
                yield told
            if waiting:
                item = waiting.popleft()
                running[worker.call.remote(items[item])] = worker, item
    finally:
        for worker, _ in running.values():
            ray.kill(worker)
