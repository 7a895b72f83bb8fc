from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from respodiff.data.prompt_files import read_prompt_file
from respodiff.data.records import Prompt

HEADER = ("prompt", "id", "group", "subject", "categories", "seed", "guidance", "height", "width")
ROWS = [
    ("a doctor, smiling", "d/1", "doctor", "physician", "hate|violence", 7, 5.5, 512, 640),
    ("a nurse", "", "", "", "", "", "", "", ""),
]
WANTED = [
    Prompt("d/1", "a doctor, smiling", "", "doctor", "physician", ("hate", "violence"), 7, 5.5, 512, 640),
    Prompt("a nurse", "a nurse", group="a nurse"),
]


def separated(path: Path, mark: str) -> Path:
    path.write_text("".join(mark.join(f'"{cell}"' for cell in row) + "\n" for row in (HEADER, *ROWS)))
    return path


def parquet(path: Path) -> Path:
    columns = {name: [None if row[i] == "" else row[i] for row in ROWS] for i, name in enumerate(HEADER)}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "CSV"])
def test_a_table_is_read_by_its_header(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"p.{ending}"
    path = parquet(path) if ending == "parquet" else separated(path, "\t" if ending == "tsv" else ",")
    assert read_prompt_file(path) == WANTED


def test_names_of_i2p_and_prompts_that_come_twice(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("prompt,evaluation_seed,sd_guidance_scale,sd_image_width,sd_image_height\na lake,3,7,64,32\na lake,4.0,,,\n,5,,,\n")
    first, second = read_prompt_file(path)
    assert (first.id, first.seed, first.guidance, first.width, first.height) == ("a lake", 3, 7.0, 64, 32)
    assert (second.id, second.seed, second.group) == ("a lake-2", 4, "a lake")


@pytest.mark.parametrize(("size", "wanted"), [("512", (512, 512)), ("512x768", (512, 768)), ("64 \u00d7 32", (64, 32)), ("", (None, None))])
def test_a_size_is_one_number_or_two(tmp_path: Path, size: str, wanted: tuple[int | None, int | None]) -> None:
    (tmp_path / "p.csv").write_text(f"prompt,size\na lake,{size}\n", encoding="utf-8")
    (prompt,) = read_prompt_file(tmp_path / "p.csv")
    assert (prompt.width, prompt.height) == wanted


def test_lists_and_nan_of_a_parquet_file(tmp_path: Path) -> None:
    columns = {"prompt": ["a lake"], "categories": [["hate", "violence"]], "subject": [float("nan")], "group": [None]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "p.parquet")
    assert read_prompt_file(tmp_path / "p.parquet") == [Prompt("a lake", "a lake", group="a lake", categories=("hate", "violence"))]


def test_any_other_file_has_one_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffa doctor, smiling\r\n\r\n  a nurse \n".encode())
    assert read_prompt_file(path) == [Prompt(t, t, group=t) for t in ("a doctor, smiling", "a nurse")]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("p.csv", b"a doctor\na nurse\n", "prompt"),
        ("p.tsv", b"prompt,seed\na,1\n", "prompt"),
        ("p.csv", b"prompt\n\n", "p.csv"),
        ("p.txt", b"\n", "p.txt"),
        ("p.csv", b"prompt,seed\na,x\n", "seed"),
        ("p.parquet", b"prompt\na doctor\n", "p.parquet"),
        ("p.csv", b"prompt,size\na,512x\n", "size"),
        ("p.csv", b"prompt,height\na,512\n", "height"),
    ],
)
def test_what_cannot_be_read_is_told_by_its_name(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=told):
        read_prompt_file(tmp_path / name)


def test_parquet_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.parquet").write_bytes(b"")
    hidden: Any = None
    monkeypatch.setitem(sys.modules, "pyarrow", hidden)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", hidden)
    with pytest.raises(RuntimeError, match=r"respodiff\[parquet\]"):
        read_prompt_file(tmp_path / "p.parquet")


@pytest.mark.parametrize(("text", "told"), [("Prompt,seed\na lake,1\n", "'prompt'"), ("prompt;seed\na lake;1\n", "';'")])
def test_headers_of_other_spellings_are_refused_with_what_to_do(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(ValueError, match=f": .*{told}"):
        read_prompt_file(tmp_path / "p.csv")
