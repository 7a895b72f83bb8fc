"""Decides where results may be written: whole files alone, by one process at a time, and over nothing that is not ours."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import TextIO

try:
    import fcntl
except ImportError:  # Windows: writers are not kept apart
    fcntl = None  # type: ignore[assignment]


def check_out(path: str | Path, ours: Callable[[Path], object], *, force: bool | None = False) -> None:
    """ValueError where writing to ``path`` would replace what respodiff did not make: an unknown file, a link, a folder that holds others.

    Args:
        ours: tells whether a file or folder is of the kind that is written; if it raises ValueError or OSError, it is not. Nothing else is
            ours, but a folder that holds no file, or hidden ones alone.
        force: an ordinary file or a link is replaced in any case, never the target of a link; None where the caller has no such choice.
    """
    path = Path(path)
    if not os.path.lexists(path) or (force and (path.is_symlink() or path.is_file() or path.is_dir())):
        return
    reason = "is there and was not made by respodiff" if path.is_file() else "is no regular file"
    try:
        if path.is_dir():
            other = next((p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")), None)
            if other is None:
                return
            reason = f"is a folder with files that respodiff did not make, such as {str(other.relative_to(path))!r}"
            if ours(path):
                return
        elif path.is_symlink():
            reason = "is a link"
        elif path.is_file() and ours(path):
            return
    except (ValueError, OSError):
        pass
    more = ", or replace it with --force (in Python force=True)" if force is not None and reason != "is no regular file" else ""
    raise ValueError(f"out is {str(path)!r}, which {reason}; choose another name{more}")


def sync(*paths: Path) -> None:
    """Return once the disk holds these files, or the names in these folders."""
    for path in paths if os.name == "posix" else ():  # Windows flushes no folder, and no file that is open for reading
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
    """While the block runs, nobody else writes ``path`` under this lock; several may if all of them share it. Its folder is made if absent.

    BlockingIOError at once if somebody does, which says who and since when; another OSError if it cannot be written at all.
    """
    if not fcntl:
        yield
        return
    file, made = path.with_name(f".{path.name}.lock"), [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while not _is_held(handle := file.open("a+", encoding="utf-8"), file, shared):
            handle.close()
    except OSError as error:
        kind = BlockingIOError if isinstance(error, BlockingIOError) else OSError
        raise kind(f"{str(path)!r} cannot be written ({error.strerror or error}); choose another place, or try again later") from error
    with handle:
        handle.truncate(0)
        handle.write(f"process {os.getpid()} of {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        handle.flush()
        try:
            yield
        finally:
            if not shared:  # others may hold it, too, or be about to: the next one alone removes the file
                file.unlink(missing_ok=True)
            with suppress(OSError):  # until one holds something
                for folder in made:
                    folder.rmdir()


def _is_held(handle: TextIO, file: Path, shared: bool) -> bool:
    """Whether the lock is ours now; not if its last holder has removed the file meanwhile. BlockingIOError that says who holds it."""
    if not _flock(handle, exclusive=not shared):
        handle.seek(0)
        with handle:
            raise BlockingIOError(f"{handle.read().strip() or 'another process'} writes it")
    try:
        return file.stat().st_ino == os.fstat(handle.fileno()).st_ino
    except FileNotFoundError:
        return False


def _flock(handle: TextIO, *, exclusive: bool) -> bool:
    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True
