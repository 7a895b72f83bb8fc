from __future__ import annotations

import os
from pathlib import Path

import pytest

from respodiff.data.places import new_file


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
