from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from respodiff.data.records import ImageRecord, image_id
from respodiff.data.run_folder import RunFolder
from respodiff.data.shards import WHOLE, Shard, parts_of


def add(folder: Path, prompt: str, shard: Shard = WHOLE) -> ImageRecord:
    run = RunFolder(folder, shard).create({"seed": 3})
    return run.add(ImageRecord(image_id(prompt, 0), "", prompt, prompt), Image.new("RGB", (4, 4)))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("manifest*")}


@pytest.mark.parametrize(("index", "count"), [(2, 2), (-1, 2), (0, 0)])
def test_an_index_outside_of_the_shards_is_refused(index: int, count: int) -> None:
    with pytest.raises(ValueError, match="index"):
        Shard(index, count)


def test_every_item_is_in_one_shard() -> None:
    taken = [item for i in range(3) for item in Shard(i, 3).take(range(10))]
    assert sorted(taken) == list(range(10)) and list(WHOLE.take(range(10))) == list(range(10))


def test_readers_take_the_parts_as_one_run(tmp_path: Path) -> None:
    rows = [add(tmp_path, "a doctor", Shard(0, 2)), add(tmp_path, "a nurse", Shard(1, 2))]
    assert names(tmp_path) == {"manifest.0-of-2.jsonl", "manifest.1-of-2.jsonl"}
    assert RunFolder(tmp_path).read() == (rows, []) and RunFolder(tmp_path).done() == {r.id for r in rows}


def test_shards_that_have_not_started_are_named(tmp_path: Path) -> None:
    add(tmp_path, "a doctor", Shard(1, 3))
    (problem,) = RunFolder(tmp_path).read()[1]
    assert "2 of 3 shards" in problem and "(0, 2)" in problem
    for i in (0, 2):
        RunFolder(tmp_path, Shard(i, 3)).create({"seed": 3})  # nothing to do is no gap
    assert RunFolder(tmp_path).read()[1] == []


def test_another_number_of_shards_is_refused(tmp_path: Path) -> None:
    add(tmp_path, "a doctor", Shard(0, 2))
    with pytest.raises(ValueError, match="2 shards, now asked for 3"):
        RunFolder(tmp_path, Shard(0, 3)).create({"seed": 3})
    assert names(tmp_path) == {"manifest.0-of-2.jsonl"}
    (tmp_path / "manifest.0-of-3.jsonl").touch()  # copied from elsewhere
    with pytest.raises(ValueError, match="2 shards and of 3"):
        RunFolder(tmp_path).records()


def test_one_process_goes_on_with_what_shards_have_made(tmp_path: Path) -> None:
    rows = [add(tmp_path, "a doctor", Shard(0, 2)), add(tmp_path, "a nurse", Shard(1, 2))]
    with (tmp_path / "manifest.1-of-2.jsonl").open("a") as handle:
        handle.write('{"id": "cut')  # killed
    rows.append(add(tmp_path, "a chef"))
    assert names(tmp_path) == {"manifest.jsonl"} and RunFolder(tmp_path).read() == (rows, [])
    rows.append(add(tmp_path, "a judge", Shard(0, 4)))
    assert RunFolder(tmp_path).records() == rows


def test_other_files_are_no_parts(tmp_path: Path) -> None:
    for name in (
        "manifest.2-of-2.jsonl",
        "manifest.0-of-2.jsonl.partial",
        "manifest.0-of-2.json",
        "manifest.x-of-2.jsonl",
        "manifest.jsonl",
    ):
        (tmp_path / name).touch()
    assert parts_of(tmp_path / "manifest.jsonl") == {}
