from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from respodiff.data.places import lock, new_file


def test_a_new_file_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "made" / "file.txt"
    with pytest.raises(ZeroDivisionError), new_file(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert list(path.parent.iterdir()) == []
    with new_file(path) as partial:
        partial.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole" and list(path.parent.iterdir()) == [path]


def test_two_writers_of_one_file_have_names_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with new_file(path) as first:
        first.write_text("first")
        with new_file(path) as second:
            second.write_text("second")
    assert first != second and str(os.getpid()) in first.name
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "in-the-way").touch()
    with pytest.raises(OSError, match=r"report .* cannot be written") as told, new_file(tmp_path / "in-the-way" / "x", "report"):
        pass
    assert "\n" not in str(told.value)


HOLD = """
import sys
from pathlib import Path
from respodiff.data.places import lock
with lock(Path(sys.argv[1]), shared=len(sys.argv) > 2):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(path: Path, *more: str) -> subprocess.Popen[str]:
    """A process that holds the lock of ``path`` until its input ends."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path), *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_the_second_process_is_told_who_writes_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "made" / "file.txt"
    with holder(path) as process:
        with pytest.raises(OSError, match=rf"file\.txt.*process {process.pid} of .* since 2\d\d\d-") as told, lock(path):
            pass
        assert "\n" not in str(told.value)
        process.kill()
    with lock(path):
        assert len(list(path.parent.iterdir())) == 1
    assert list(path.parent.iterdir()) == []


def test_a_lock_may_be_shared_but_not_with_one_that_is_not(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with holder(path, "shared") as process:
        with lock(path, shared=True), pytest.raises(OSError), lock(path):
            pass
        with pytest.raises(OSError), lock(path):
            pass
        process.communicate()
    with lock(path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_not_got_on_a_file_that_its_holder_has_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "file.txt", Path.open
    opened = []

    def slow(self: Path, *given: object, **more: object) -> object:
        handle = real(self, *given, **more)  # type: ignore[call-overload]
        opened.append(handle)
        if len(opened) == 1:
            self.unlink()  # as the holder does when it is done
        return handle

    monkeypatch.setattr(Path, "open", slow)
    with lock(path), pytest.raises(OSError), lock(path):
        pass
    assert len(opened) == 3


def test_shards_that_end_and_begin_at_the_same_time_are_not_refused(tmp_path: Path) -> None:
    def take(_: int) -> None:
        for _ in range(300):
            with lock(tmp_path / "manifest.jsonl", shared=True):
                pass

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(take, range(4)))
    with lock(tmp_path / "manifest.jsonl"):
        pass
    assert list(tmp_path.iterdir()) == []
