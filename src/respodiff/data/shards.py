"""Provides shards: equal parts of one run, each made by a process of its own, on one machine or several."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from respodiff.data.places import lock

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Part ``index`` of ``count``: 0 of 1 is the whole run. ValueError for an index outside of 0 to ``count`` - 1.

    A run is split by prompt, so that all images of a prompt are in one shard.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise ValueError(f"shard index is {self.index} of {self.count} shards; allowed: 0 to the number of shards minus 1")

    def __str__(self) -> str:
        return f"{self.index} of {self.count}"

    def take(self, items: Sequence[T]) -> Sequence[T]:
        """Every ``count``-th item, the first one at ``index``.

        >>> [Shard(i, 2).take("abc") for i in range(2)]
        ['ac', 'b']
        """
        return items[self.index :: self.count]

    def part(self, file: Path) -> Path:
        """The shard's own part of a file: ``manifest.0-of-2.jsonl`` of ``manifest.jsonl``; the file itself for the whole run."""
        return file if self.count == 1 else file.with_name(f"{file.stem}.{self.index}-of-{self.count}{file.suffix}")

    @contextmanager
    def lock(self, file: Path) -> Iterator[None]:
        """While the block runs, nobody else writes the file, or this part of it (`respodiff.data.places.lock`); other shards may write theirs."""
        with lock(file, shared=self.count > 1), lock(self.part(file)) if self.count > 1 else nullcontext():
            yield


WHOLE = Shard()


def parts_of(file: Path) -> dict[Shard, Path]:
    """The parts of a file that shards have written, by shard."""
    names = {path: re.fullmatch(r"(\d{1,6})-of-(\d{1,6})", path.stem.partition(".")[2]) for path in file.parent.glob(f"{file.stem}.*-of-*")}
    given = [(int(name[2]), int(name[1]), path) for path, name in names.items() if name and path.suffix == file.suffix]
    return {Shard(index, count): path for count, index, path in sorted(given) if index < count}
