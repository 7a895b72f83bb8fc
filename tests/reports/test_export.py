"""Exported runs, loaded back with `datasets`: the same rows and pixels."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi
from PIL import Image

from command import last_json, respodiff
from painted import GENDER, WORDS, ColourJudge, Painted, paint
from respodiff.data.run_folder import RunFolder
from respodiff.evaluation.evaluate import evaluate
from respodiff.evaluation.scored_run import load_scored_run
from respodiff.reports import export as exports
from respodiff.reports.export import export

ROWS: list[Painted] = [("cook", "woman", (0, 0, 0)), ("cook", "man", (1, 0, 0)), ("guard", None, (1, 1, 0)), ("guard", "woman", (0, 1, 1))]
SEED = (1 << 63) - 1


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = paint(tmp_path / "run", ROWS, seed=SEED, scheduler="007", categories=("a", 'b "é"'))
    evaluate(folder, ColourJudge(), [GENDER], vocabulary=WORDS)
    return folder


def loaded(kind: str, place: Path, cache: Path) -> Any:
    datasets = pytest.importorskip("datasets")
    if kind == "imagefolder":
        return datasets.load_dataset("imagefolder", data_dir=str(place), split="train", cache_dir=str(cache))
    return datasets.load_dataset("parquet", data_files=str(place / "*.parquet"), split="train", cache_dir=str(cache))


def same(data: Any, folder: RunFolder) -> None:
    """Rows and pixels of a data set are those of the run."""
    rows = load_scored_run(folder).rows()
    assert len(data) == len(rows) == len(ROWS)
    for found, row in zip(data, rows, strict=True):
        image, file = found.pop("image"), row.pop("file")
        with Image.open(folder.path / file) as stored:
            assert image.tobytes() == stored.convert(image.mode).tobytes() and image.size == stored.size
        assert found == row


@pytest.mark.parametrize("kind", ["imagefolder", "parquet"])
def test_what_is_loaded_back_is_the_run(kind: str, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr(exports, "PART", 3)
    found = last_json(respodiff("export", str(run.path), "--to", kind, "--out", str(tmp_path / "out"), "--json"))
    assert found == {"out": str(tmp_path / "out"), "to": kind, "images": 4}
    if kind == "parquet":
        (run.path / "images").rename(run.path / "moved")  # the bytes are in the file
    data = loaded(kind, tmp_path / "out", tmp_path / "cache")
    if kind == "parquet":
        (run.path / "moved").rename(run.path / "images")
    same(data, run)


def test_an_image_folder_needs_no_package(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("datasets", "pandas", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
    assert export(run, "imagefolder", tmp_path / "out") == 4
    rows = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    expected = load_scored_run(run).rows()
    assert [{k: v for k, v in row.items() if k != "file_name"} for row in rows] == [
        {k: v for k, v in row.items() if k != "file"} for row in expected
    ]
    assert [row["file_name"] for row in rows] == [row["file"] for row in expected]
    for kind in ("parquet", "hub"):
        with pytest.raises(RuntimeError, match=r"pip install 'respodiff\[data\]'"):
            export(run, kind, "owner/name" if kind == "hub" else tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_hub_gets_a_private_data_set(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    pushed: list[Any] = []

    def push(data: Any, name: str, **more: Any) -> None:
        same(data, run)
        pushed.append((name, more))

    there = SimpleNamespace(private=True)
    monkeypatch.setattr(datasets.Dataset, "push_to_hub", push)
    monkeypatch.setattr(HfApi, "create_repo", lambda _, name, **more: pushed.append((name, more)))
    monkeypatch.setattr(HfApi, "dataset_info", lambda *_: there)
    last_json(respodiff("export", str(run.path), "--to", "hub", "--out", "owner/name", "--json"))
    made = ("owner/name", {"repo_type": "dataset", "private": True, "exist_ok": True})
    assert pushed == [made, ("owner/name", {"private": True})]
    there.private = False
    with pytest.raises(ValueError, match="'owner/name', which is a public data set already"):
        export(run, "hub", "owner/name")
    assert pushed[2:] == [made]


def test_images_of_one_name_are_not_mixed_up(tmp_path: Path) -> None:
    folder = paint(tmp_path / "run", ROWS)
    lines = [json.loads(line) for line in folder.manifest.read_text().splitlines()]
    (folder.path / "other").mkdir()
    (folder.path / lines[1]["file"]).rename(folder.path / "other" / Path(lines[0]["file"]).name)
    lines[1]["file"] = f"other/{Path(lines[0]['file']).name}"
    folder.manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match="two images called"):
        export(RunFolder(folder.path), "imagefolder", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_without_scores(tmp_path: Path) -> None:
    folder = paint(tmp_path / "run", ROWS)
    export(folder, "imagefolder", tmp_path / "out")
    row = json.loads((tmp_path / "out" / "metadata.jsonl").read_text().splitlines()[2])
    assert row["asked_gender"] is None and row["prompt"] == "a guard" and not [key for key in row if "/" in key]


def test_what_is_refused(run: RunFolder, tmp_path: Path) -> None:
    (theirs := tmp_path / "theirs").mkdir()
    (theirs / ".hidden").touch()
    for to, out, said in (
        ("zip", tmp_path / "a", "to is 'zip'; allowed: imagefolder, parquet, hub"),
        ("hub", tmp_path / "a", "owner/name"),
        ("imagefolder", theirs, "out is .*theirs"),
        ("imagefolder", run.manifest, "out is .*manifest"),
    ):
        with pytest.raises(ValueError, match=said):
            export(run, to, out)
    with pytest.raises(ValueError, match="not a run folder"):
        export(theirs, "imagefolder", tmp_path / "a")
    (run.path / run.records()[1].file).write_bytes(b"x")
    with pytest.raises(ValueError, match="lost or changed 1 of 4 images"):
        export(run, "imagefolder", tmp_path / "a")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "theirs"]


def test_an_export_that_fails_leaves_nothing(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(exports.shutil, "copyfile", full)
        with pytest.raises(OSError, match="disk full"):
            export(run, "imagefolder", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    (tmp_path / "out").mkdir()
    assert export(run, "imagefolder", tmp_path / "out") == 4, "an empty folder is taken"
