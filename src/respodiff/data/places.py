"""Decides where results may be written: whole files alone, by one process at a time, and over nothing that is not ours."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

try:
    import fcntl
except ImportError:  # Windows: writers are not kept apart
    fcntl = None  # type: ignore[assignment]


def sync(*paths: Path) -> None:
    """Return once the disk holds these files, or the names in these folders."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def temporary(path: Path) -> Path:
    """Where to write a file that will replace ``path``: a hidden name beside it that no other writer has."""
    return path.with_name(f".{path.name}.{os.getpid()}-{token_hex(3)}.tmp")


@contextmanager
def new_file(path: str | Path, what: str = "file") -> Iterator[Path]:
    """Where to write a file that is ``path`` once the block has ended: whole and on the disk. OSError with one line if it cannot be written."""
    path = Path(path)
    partial = temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    except Exception as error:
        from safetensors import SafetensorError

        if not isinstance(error, OSError | SafetensorError | RuntimeError):  # torch.save raises the last
            raise
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"{what} {str(path)!r} cannot be written ({reason}); choose a folder that is writable") from error
    finally:
        if partial.parent.is_dir():
            partial.unlink(missing_ok=True)


@contextmanager
def lock(path: Path, *, shared: bool = False) -> Iterator[None]:
    """While the block runs, no other process, and no other call, holds the lock file ``path``; several may if all of them share it.

    OSError at once if another one does; it says which, and since when.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = path.open("a+", encoding="utf-8")
        try:
            if fcntl:
                fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.seek(0)
            who = handle.read().strip() or "another process"
            handle.close()
            raise OSError(f"{str(path.parent)!r} is being written by {who}; wait for it, or stop it, then repeat the command") from error
        if path.exists() and path.stat().st_ino == os.fstat(handle.fileno()).st_ino:
            break
        handle.close()  # its last holder has removed it meanwhile
    try:
        handle.truncate(0)
        handle.write(f"process {os.getpid()} of {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        handle.flush()
        yield
    finally:
        path.unlink(missing_ok=True)
        handle.close()
