"""A comparison drawn by several processes: each takes the next method that nobody has begun.

A small UNet does not fill the cores that one process gives it: on 2 cores, two processes of one thread each draw 1.5 times as many images
of the embedded model as one process of two threads. Adapters and run folders are the same, so a killed comparison goes on with any number of
workers.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
from collections.abc import Callable, Iterator
from typing import Any

from respodiff.experiments.compare import MethodComparison, Progress

PATIENCE = 5.0
"""Seconds after which a silent worker is looked at: it may have died without a word."""


def run(make: Callable[[], MethodComparison], comparison: MethodComparison, workers: int) -> Iterator[Progress]:
    """Train and draw what is missing, in so many processes; with one, in this one.

    Args:
        make: makes the same comparison in another process; must be picklable (a function of a module, or a `functools.partial` of one).
        comparison: this process's own. workers: 1 or more.

    Raises:
        ValueError: as `MethodComparison.run` does, in whichever process; the others are stopped, and nothing that was finished is lost.
        RuntimeError: a worker died (killed, or out of memory).
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}; allowed: 1 or more")
    if workers == 1:
        yield from comparison.run()
        return
    context = multiprocessing.get_context("spawn")
    names, said = context.Queue(), context.Queue()
    for name in [*comparison.names, *[None] * workers]:
        names.put(name)
    threads = max(1, (os.cpu_count() or 1) // workers)
    started = [context.Process(target=_work, args=(make, names, said, i, threads), daemon=True) for i in range(workers)]
    for process in started:
        process.start()
    try:
        yield from _heard(comparison, said, started)
    finally:
        for process in started:
            process.terminate()
            process.join()


def _heard(comparison: MethodComparison, said: Any, started: list[Any]) -> Iterator[Progress]:
    """Progress of all workers together, until every one has said that it is done."""
    left = {name: comparison.remaining(name) for name in comparison.names}
    done, working = dict.fromkeys(range(len(started)), 0.0), set(range(len(started)))
    while working:
        try:
            worker, what, value = said.get(timeout=PATIENCE)
        except queue.Empty:
            if dead := [i for i in working if not started[i].is_alive()]:
                code = started[dead[0]].exitcode
                raise RuntimeError(f"a worker ended with code {code} before its work did; run again with fewer --workers") from None
            continue
        if what == "failed":
            raise value
        if what == "ended":
            working.discard(worker)
            continue
        name, step, remaining = value
        done[worker], left[name] = step.done, remaining
        total = sum(done.values())
        yield Progress(step.what, total, total + sum(left.values()))


def _work(make: Callable[[], MethodComparison], names: Any, said: Any, worker: int, threads: int) -> None:
    """One process: takes names until there are none, and says how far it is."""
    import torch

    torch.set_num_threads(threads)
    try:
        comparison = make()
        while (name := names.get()) is not None:
            for step in comparison.run([name]):
                said.put((worker, "at", (name, step, comparison.remaining(name))))
        said.put((worker, "ended", None))
    except (ValueError, OSError, RuntimeError) as error:
        said.put((worker, "failed", type(error)(str(error))))
