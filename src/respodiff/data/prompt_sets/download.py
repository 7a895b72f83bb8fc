"""Finds the file of a published data set: the user's own, one in a folder of data sets, the cached one, or a download on first use.

A download is checked against its published size and structure before it is kept. Its address pins a commit. Its SHA-256, known or recorded on
first use, is checked from then on; the digest goes with the run.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from respodiff.data.records import Prompt
from respodiff.data.run_folder import file_digest, write_atomic

DATA = "RESPODIFF_DATA"
"""Environment variable: a folder in which data sets lie under their published names."""
REVISION = "3d10dd1b2df4ec4e74edcadac4200c7401585138"
HOME = f"https://raw.githubusercontent.com/rohitgandikota/erasing/{REVISION}/data"


@dataclass(frozen=True)
class Source:
    """A published file and what is known of it.

    Attributes:
        title: name in messages. names: published file names, the downloaded one first.
        size: of the download, in bytes. rows: prompts in it. labels: category -> rows that carry it; empty if there are none.
        images: images per prompt of the published protocol.
        read: file -> prompts, one a row.
        sha256: of the file, "" where none is published.
    """

    title: str
    names: tuple[str, ...]
    size: int
    rows: int
    labels: Mapping[str, int]
    images: int
    read: Callable[[Path], list[Prompt]]
    sha256: str = ""

    @property
    def url(self) -> str:
        """Address that pins the content."""
        return f"{HOME}/{self.names[0]}"

    def differences(self, rows: Sequence[Prompt]) -> list[str]:
        """How a file of these prompts differs from the published one."""
        found = Counter(label for p in rows for label in p.categories)
        out = [] if len(rows) == self.rows else [f"{len(rows):,} prompts instead of {self.rows:,}"]
        out += [f"{c} {found[c]:,} instead of {n:,}" for c, n in self.labels.items() if found[c] != n]
        if unknown := sorted(found.keys() - self.labels.keys()) if self.labels else []:
            out.append(f"unknown categories: {', '.join(unknown)[:200]}")
        return out


def locate(source: Source, path: str | Path | None) -> Path:
    """The file of a data set: ``path``, else one in the folder of ``RESPODIFF_DATA``, else the cached or freshly downloaded one.

    Raises:
        OSError: it is not here and cannot be downloaded, or the download is not the published file (nothing is kept then).
        ValueError: the named file or folder does not exist, or the cached file has changed.
    """
    if path is not None:
        if not (own := Path(path).expanduser()).is_file():
            raise ValueError(f"path is {str(path)!r}, which is no file; give the {source.title} file ({source.url})")
        return own
    if folder := os.environ.get(DATA):
        if not Path(folder).expanduser().is_dir():
            raise ValueError(f"{DATA} is {folder!r}, which is no folder; name the folder that holds {source.names[0]}, or unset it")
        if kept := [file for name in source.names if (file := Path(folder).expanduser() / name).is_file()]:
            return kept[0]
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "respodiff" / "data" / REVISION[:12] / source.names[0]
    if not cached.is_file():
        _fetch(source, cached)
    beside, found = cached.with_name(cached.name + ".sha256"), file_digest(cached)
    if not beside.exists():
        write_atomic(beside, (source.sha256 or found) + "\n")
    if (first := beside.read_text(encoding="utf-8").strip()) != found:
        raise ValueError(
            f"{cached} has changed since its first use (SHA-256 {first[:12]}..., now {found[:12]}...): delete it and {beside.name} to fetch it again"
        )
    return cached


def _fetch(source: Source, target: Path) -> None:
    import pooch  # here, for suites that need no file

    def download(url: str, file: str, _: Any) -> None:
        pooch.HTTPDownloader()(url, file, None)
        size = Path(file).stat().st_size
        if wrong := [f"{size:,} bytes"] if size != source.size else source.differences(source.read(Path(file))):
            raise ValueError("; ".join(wrong))

    pooch.get_logger().setLevel("WARNING")
    try:
        if os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on"):
            raise ConnectionError("HF_HUB_OFFLINE forbids it")
        pooch.retrieve(source.url, source.sha256 or None, target.name, target.parent, downloader=download)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors without a number
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(f"cannot write to {target.parent}: {error.strerror}; set XDG_CACHE_HOME") from error
        reason = "cannot be fetched" if isinstance(error, OSError) else "what came is not it"
        raise OSError(
            f"{source.title} ({source.names[0]}, {source.size:,} bytes) is not on this machine and {reason} ({error}): fetch {source.url} and "
            f"give it with --suite-path FILE, or put it into a folder and set {DATA} to that; then repeat the command"
        ) from error
