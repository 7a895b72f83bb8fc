from __future__ import annotations

import random
from pathlib import Path

import pytest

from respodiff.data.prompt_sets import load_suite, suite
from respodiff.data.prompt_sets.coco import read

pytestmark = pytest.mark.filterwarnings("ignore:.*is not the published")


def lines(n: int) -> list[str]:
    return [f'{i:012d},coco-30k,"A boat, number {i}.\n",{i * 7}' for i in range(n)]


def write(path: Path, rows: list[str]) -> Path:
    path.write_text("\n".join(["image_id,source,prompt,evaluation_seed", *rows]) + "\n")
    return path


def test_fields(tmp_path: Path) -> None:
    first, second = read(write(tmp_path / "coco.csv", lines(2)))
    assert (second.id, second.text, second.seed) == ("coco30k/000000000001", "A boat, number 1.", 7)
    assert {p.group for p in (first, second)} == {"captions"} and first.categories == () and first.guidance is None


def test_only_the_caption_is_needed(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("prompt\nA boat.\nA boat.\nA lake.\n")
    found = read(tmp_path / "c.csv")
    assert len({p.id for p in found}) == 3 and found[0].seed is None
    (tmp_path / "bad.csv").write_text("caption\nA boat.\n")
    with pytest.raises(ValueError, match=r"bad.csv has no column 'prompt'; found: caption"):
        suite("coco30k", path=tmp_path / "bad.csv")


def test_plain_text(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_bytes("\ufeffA boat, blue.\r\n\r\nA lake.\r\n".encode())
    found = load_suite("coco30k", path=tmp_path / "c.txt")
    assert [p.text for p in found.prompts] == ["A boat, blue.", "A lake."] and found.images == 1
    (tmp_path / "r.txt").write_text("A lake.\nA boat, blue.\n")
    assert {p.id for p in suite("coco30k", path=tmp_path / "r.txt")} == {p.id for p in found.prompts}


def test_preset_is_1000_whatever_the_order(tmp_path: Path) -> None:
    rows = lines(1300)
    found = suite("coco1k", path=write(tmp_path / "a.csv", rows))
    assert len({p.id for p in found}) == 1000 and {p.suite for p in found} == {"coco1k"}
    random.Random(0).shuffle(rows)
    assert suite("coco1k", path=write(tmp_path / "b.csv", rows)) == found
    assert {p.id for p in found} < {p.id for p in suite("coco30k", path=tmp_path / "a.csv")}


def test_preset_of_a_small_file_says_so(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="coco1k wants 1000 prompts, the file has only 3"):
        assert len(suite("coco1k", path=write(tmp_path / "a.csv", lines(3)))) == 3
    with pytest.warns(UserWarning, match="a.csv is not the published COCO-30k: 3 prompts instead of 30,000; used as it is"):
        suite("coco30k", path=tmp_path / "a.csv")


def test_both_published_lists_give_the_same_ids(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image_id,prompt\n42,A boat.\n7,A lake.\n")
    (tmp_path / "b.csv").write_text("coco_id,prompt\nCOCO_val2014_000000000042.jpg,A boat.\n7.0,A lake.\n")
    assert [p.id for p in read(tmp_path / "a.csv")] == [p.id for p in read(tmp_path / "b.csv")] == [f"coco30k/{n:012d}" for n in (42, 7)]
