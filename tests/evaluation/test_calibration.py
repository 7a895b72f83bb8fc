"""Confusion matrices of a judge, and what they are good for: a known mixture of labelled images comes back."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command import last_json, respodiff
from painted import GENDER, ColourJudge
from respodiff.evaluation.calibration import calibrate, read_confusion, write_confusion
from respodiff.evaluation.evaluate import shipped_confusion
from respodiff.evaluation.judges import ClipJudge

pytestmark = pytest.mark.slow

LABELLED = Path(__file__).parents[2] / "benchmarks" / "data" / "labelled"


def label(folder: Path, rows: list[tuple[str, int]]) -> Path:
    """Images with a true label each; red ones are men to the judge."""
    for i, (_, red) in enumerate(rows):
        Image.new("RGB", (4, 4), (255 * red, 0, 0)).save(folder / f"{i}.png")
    (folder / "labels.csv").write_text("file,gender\n" + "".join(f"{i}.png,{name}\n" for i, (name, _) in enumerate(rows)))
    return folder / "labels.csv"


def test_counts_by_hand(tmp_path: Path) -> None:
    table = label(tmp_path, [("woman", 0), ("woman", 1), ("woman ", 0), ("man", 1), ("", 1), ("robot", 0)])
    found = calibrate(table, ColourJudge(), [GENDER], note="painted")
    asked = {"classes": ["woman", "man"], "targets": {"woman": "a woman", "man": "a man"}, "class_template": "{concept}", "min_margin": 0.0}
    assert found == {ColourJudge().digest: {"gender": asked | {"matrix": [[2, 1, 0], [0, 1, 0]], "n": 4, "note": "painted"}}}
    (tmp_path / "2.png").unlink()  # an image that cannot be read is no answer
    (tmp_path / "0.png").write_bytes(b"no image")
    left = calibrate(table, ColourJudge(), [GENDER])[ColourJudge().digest]["gender"]
    assert (left["matrix"], left["n"]) == ([[0, 1, 0], [0, 1, 0]], 2)
    (tmp_path / "3.png").unlink()
    with pytest.raises(ValueError, match=r"no image that can be read is labelled 'man' in column 'gender'"):
        calibrate(table, ColourJudge(), [GENDER])


def test_file_round_trip_and_refusals(tmp_path: Path) -> None:
    found = calibrate(label(tmp_path, [("woman", 0), ("man", 1)]), ColourJudge(), [GENDER])
    assert read_confusion(write_confusion(tmp_path / "c.json", found)) == found
    entry = found[ColourJudge().digest]["gender"]
    for change in (
        {"classes": ["a"]},
        {"matrix": [5, 5]},
        {"matrix": [[1, 0], [0, 1]]},
        {"matrix": [[0.5, 0, 0], [0, 1, 0]]},
        {"min_margin": "x"},
    ):
        (tmp_path / "bad.json").write_text(json.dumps({"x": {"gender": {**entry, **change}}}))
        with pytest.raises(ValueError, match=r"cannot be used .*make one with respodiff calibrate"):
            read_confusion(tmp_path / "bad.json")
    for path in (tmp_path / "absent.json", tmp_path / "labels.csv"):
        with pytest.raises(ValueError, match=r"cannot be used .*make one with respodiff calibrate"):
            read_confusion(path)
    with pytest.raises(ValueError, match=r"out is .*labels\.csv"):
        write_confusion(tmp_path / "labels.csv", found)
    assert (tmp_path / "labels.csv").read_text().startswith("file,gender")
    for text, message in (
        ("file,tone\na.png,x\n", "has no column 'gender'; found: file, tone"),
        ("file,gender\n", "has no rows"),
        ("file,gender\n0.png,woman\n", "no image that can be read is labelled 'man'"),
        ("file,gender\nabsent.png,woman\n", "none of its 1 images can be read"),
    ):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            calibrate(tmp_path / "t.csv", ColourJudge(), [GENDER])
    with pytest.raises(ValueError, match="cannot be read"):
        calibrate(tmp_path / "absent.csv", ColourJudge(), [GENDER])


def test_the_shipped_matrices_belong_to_the_shipped_judge(tmp_path: Path) -> None:
    done = respodiff("calibrate", str(LABELLED / "labels.csv"), "--attribute", "gender", "--out", str(tmp_path / "c.json"), "--json")
    result = last_json(done)
    assert result["n"] == {"gender": 240} and result["accuracy"]["gender"] > 0.97
    shipped = shipped_confusion()
    digest = ClipJudge.load().digest
    assert read_confusion(tmp_path / "c.json")[digest]["gender"]["matrix"] == shipped[digest]["gender"]["matrix"]
    assert set(shipped[digest]) == {"gender", "tone"}


@pytest.mark.parametrize("men", [0.10, 0.93])
def test_a_known_mixture_comes_back(tmp_path: Path, men: float) -> None:
    with (LABELLED / "labels.csv").open(encoding="utf-8") as handle:
        rows = [(row["file"], row["gender"]) for row in csv.DictReader(handle)]
    rng, images = np.random.default_rng(int(100 * men)), tmp_path / "images"
    images.mkdir()
    lines = ["file,prompt"]
    for i in range(100):
        name = "man" if i < 100 * men else "woman"
        files = [file for file, gender in rows if gender == name]
        shutil.copy(LABELLED / files[rng.integers(len(files))], images / f"{i}.webp")
        lines.append(f"{i}.webp,a person")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    last_json(respodiff("import", str(images), "--csv", str(tmp_path / "table.csv"), "--out", str(tmp_path / "run"), "--json"))
    found = last_json(respodiff("evaluate", str(tmp_path / "run"), "--judge", "embedded", "--attribute", "gender", "--json"))
    assert found["n"] == 100 and found["unknown"] == 0
    for proportions in (found["proportions"]["gender"], found["corrected"]["gender"]):
        assert proportions["man"]["low"] <= men <= proportions["man"]["high"]
        assert proportions["man"]["mean"] == pytest.approx(men, abs=0.05)
        assert proportions["man"]["high"] - proportions["man"]["low"] < 0.25
