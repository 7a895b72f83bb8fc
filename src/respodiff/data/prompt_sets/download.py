"""Where a published data set comes from: a file of yours, a folder of data sets, the cache, or a pinned address on first use.

What is fetched is checked against its published size and its structure before it is kept. Its SHA-256 is written beside it on first use
and compared from then on; the digest goes with the run.
"""

from __future__ import annotations

import os
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from respodiff.data.run_folder import file_digest, write_atomic

DATA = "RESPODIFF_DATA"
"""Environment variable: a folder in which data sets lie under their published names."""
_REVISION = "3d10dd1b2df4ec4e74edcadac4200c7401585138"
_HOME = f"https://raw.githubusercontent.com/rohitgandikota/erasing/{_REVISION}/data"
_TIMEOUT = 30.0  # seconds without a byte


@dataclass(frozen=True)
class Source:
    """A published file and what is known of it.

    Attributes:
        suite: name for messages and the cache. title: what people call it.
        names: file names under which it is published, the fetched one first.
        url: address that pins the content. size: of the fetched file, in bytes. rows: prompts in it.
        labels: category -> rows that carry it, empty where there are none.
    """

    suite: str
    title: str
    names: tuple[str, ...]
    url: str
    size: int
    rows: int
    labels: Mapping[str, int]

    def differences(self, rows: int, labels: Sequence[str]) -> list[str]:
        """In which respects a file of ``rows`` prompts and these labels (one entry a prompt and label) differs from the published one."""
        found = Counter(labels)
        out = [] if rows == self.rows else [f"{rows:,} prompts instead of {self.rows:,}"]
        wrong = [c for c in self.labels if found[c] != self.labels[c]]
        out += [f"{c} {found[c]:,} instead of {self.labels[c]:,}" for c in wrong]
        if unknown := sorted(found.keys() - self.labels.keys()) if self.labels else []:
            out.append(f"unknown categories: {', '.join(unknown)[:200]}")
        return out


I2P = Source(
    suite="i2p",
    title="I2P",
    names=("unsafe-prompts4703.csv", "i2p_benchmark.csv", "i2p.csv"),
    url=f"{_HOME}/unsafe-prompts4703.csv",
    size=1_376_625,
    rows=4703,
    labels={
        "sexual": 931,
        "shocking": 856,
        "harassment": 824,
        "self-harm": 801,
        "violence": 756,
        "illegal activity": 727,
        "hate": 231,
    },
)
COCO = Source(
    suite="coco30k",
    title="COCO-30k",
    names=("coco_30k.csv", "coco30k.csv"),
    url=f"{_HOME}/coco_30k.csv",
    size=2_460_030,
    rows=30_000,
    labels={},
)


@dataclass(frozen=True)
class Located:
    """A data set on this machine: its path, and the SHA-256 of what is there."""

    path: Path
    digest: str


def locate(source: Source, path: str | Path | None, check: Callable[[Path], list[str]]) -> Located:
    """The file of a data set: ``path``, else one in the folder of ``RESPODIFF_DATA``, else the cached or freshly fetched one.

    Args:
        source: what is looked for.
        path: a file of the user's, or None.
        check: reads a file and says in which respects it is not the published one; what was fetched must pass.

    Raises:
        OSError: not here, and no network; or what came is not what was published (nothing is kept then).
        ValueError: the file or folder that was named is not there, or the cached file has changed.
    """
    if path is not None:
        mine = Path(path).expanduser()
        if not mine.is_file():
            raise ValueError(f"path is {str(path)!r}, which is no file; give the {source.title} file ({source.url})")
        return Located(mine, file_digest(mine))
    if folder := os.environ.get(DATA):
        if not Path(folder).expanduser().is_dir():
            raise ValueError(f"{DATA} is {folder!r}, which is no folder; name the folder that holds {source.names[0]}, or unset it")
        for name in source.names:
            if (theirs := Path(folder).expanduser() / name).is_file():
                return Located(theirs, file_digest(theirs))
    cached = cache_folder() / _REVISION[:12] / source.names[0]
    if not cached.is_file():
        _fetch(source, cached, check)
    return Located(cached, _remembered(cached))


def cache_folder() -> Path:
    """``respodiff/data`` in the user's cache folder (``XDG_CACHE_HOME``, else ``~/.cache``)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "respodiff" / "data"


def _remembered(cached: Path) -> str:
    """Digest of a cached file, the same as at its first use or ValueError."""
    beside, found = cached.with_name(cached.name + ".sha256"), file_digest(cached)
    if not beside.exists():
        write_atomic(beside, found + "\n")
    first = beside.read_text(encoding="utf-8").strip()
    if first != found:
        raise ValueError(
            f"{cached} has changed since its first use (SHA-256 {first[:12]}..., now {found[:12]}...): delete it and {beside.name} to fetch it again"
        )
    return found


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on")


def _advice(source: Source, reason: str) -> str:
    return (
        f"{source.title} ({source.names[0]}, {source.size:,} bytes) is not on this machine and {reason}: fetch {source.url} and give it "
        f"with --suite-path FILE, or put it into a folder and set {DATA} to that; then repeat the command"
    )


def _fetch(source: Source, target: Path, check: Callable[[Path], list[str]]) -> None:
    if _offline():
        raise OSError(_advice(source, "HF_HUB_OFFLINE forbids fetching it"))
    try:
        content = _download(source.url, source.size + 1)
    except (OSError, HTTPException) as error:  # urllib's errors and time-outs are OSErrors
        raise OSError(_advice(source, f"cannot be fetched ({error})")) from error
    if len(content) != source.size:
        came = f"{len(content):,}" if len(content) < source.size else f"more than {source.size:,}"
        raise OSError(_advice(source, f"what came is not it ({came} bytes)"))
    partial = target.with_name(f"{target.stem}.{os.getpid()}.partial{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        _require_published(source, partial, check)
        partial.replace(target)
    except OSError as error:
        raise error if error.errno is None else OSError(f"cannot write to {target.parent}: {error.strerror}; set XDG_CACHE_HOME") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _require_published(source: Source, path: Path, check: Callable[[Path], list[str]]) -> None:
    try:
        wrong = check(path)
    except ValueError as error:
        wrong = [str(error)]
    if wrong:
        raise OSError(_advice(source, f"what came is not it ({'; '.join(wrong)})"))


def _download(url: str, limit: int) -> bytes:
    """At most ``limit`` bytes of what is at ``url``."""
    request = urllib.request.Request(url, headers={"User-Agent": "respodiff"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
        content: bytes = answer.read(limit)
    return content
