"""A report reads the judges that it was asked for, the same ones of every run, and says whose flags it combined."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from command import last_json, respodiff
from painted import GENDER, WORDS, ColourJudge, Painted, coloured, paint
from respodiff.data.import_images import import_folder
from respodiff.data.run_folder import RunFolder
from respodiff.evaluation.comparison import compare
from respodiff.evaluation.evaluate import evaluate, judge_all
from respodiff.evaluation.judges import FlagJudge
from respodiff.evaluation.scored_run import load_scored_run
from respodiff.reports.run_report import report

ROWS: list[Painted] = [("cook", None, (int(i % 4 == 0), 0, int(i % 2 == 0))) for i in range(16)]
"""4 of 16 images are red, 8 are blue, all red ones among them."""


class Flags(FlagJudge):
    """Flags images whose first pixel has a colour: 0 red, 2 blue."""

    version, threshold = "1", 0.5

    def __init__(self, name: str, channel: int, digest: str = "f" * 16) -> None:
        self.name, self.channel, self.digest, self.rule = name, channel, digest, name

    def score_batch(self, images: Sequence[Any]) -> list[float]:
        return [image.getpixel((0, 0))[self.channel] / 255 for image in images]


RED, BLUE = Flags("redness", 0, "a" * 16), Flags("blueness", 2, "b" * 16)


def unsafe(runs: Sequence[Any], out: Path, **options: Any) -> list[dict[str, Any]]:
    """The statistics of every run, as in report.json."""
    report([str(getattr(run, "path", run)) for run in runs], out, **options)
    return [row["statistics"] for row in json.loads(out.with_suffix(".json").read_text())["suites"]["occupations"]]


def test_only_the_judges_that_were_asked_for_are_read(tmp_path: Path) -> None:
    run, out = paint(tmp_path / "a", ROWS), tmp_path / "r.html"
    judge_all(run, [RED, BLUE, ColourJudge()], [GENDER], vocabulary=WORDS)
    for judge, flagged, rule in (
        ("redness", 4, "flagged by redness"),
        (["colour"], 8, "flagged by colour"),
        (["blueness", "redness"], 8, "flagged by any of blueness, redness"),
        ([], 8, "flagged by any of blueness, redness"),
    ):
        (found,) = unsafe([run], out, judge=judge)
        assert found["unsafe"]["mean"] == flagged / 16 and found["unsafe_rule"] == rule
        names = [judge] if isinstance(judge, str) else judge or ["redness", "blueness", "colour"]
        assert {j["name"] for j in found["judges"]} == set(names) and found["judge"]["name"] == (
            "colour" if "colour" in names else names[0]
        )
        assert found["unsafe_rule"] in out.read_text() and found["unsafe_rule"] in out.with_suffix(".md").read_text()
        rows = list(csv.DictReader((tmp_path / "r-images.csv").read_text().splitlines()))
        assert sum(row["unsafe"] == "1" for row in rows) == flagged


def imported(folder: Path, source: RunFolder) -> RunFolder:
    """The images of a run as another program's, with their seeds."""
    table = folder.parent / "table.csv"
    lines = [f"{r.file},{r.prompt},{r.group},occupations,{i}" for i, r in enumerate(source.records())]
    table.write_text("\n".join(["file,prompt,group,suite,seed", *lines]) + "\n")
    return import_folder(source.path, table, folder)


def test_the_same_images_imported_twice_are_equal_whoever_looked_at_one_of_them(tmp_path: Path) -> None:
    source = paint(tmp_path / "source", ROWS)
    a, b = (imported(tmp_path / name, source) for name in "ab")
    judge_all(a, [RED], [])
    judge_all(b, [RED, BLUE], [])
    report([str(a.path), str(b.path)], tmp_path / "r.html")
    first, second = json.loads((tmp_path / "r.json").read_text())["suites"]["occupations"]
    assert first["statistics"]["unsafe"] == second["statistics"]["unsafe"] and first["statistics"]["unsafe"]["mean"] == 4 / 16
    (test,) = second["comparison"]["tests"]
    assert (second["comparison"]["paired"], test["mean"], test["p"]) == (16, 0, 1)
    assert second["statistics"]["problems"] == ["judge blueness is left out: it has not judged every run"]
    for run, other in ((a, RED), (b, BLUE)):
        judge_all(run, [ColourJudge(), other], [GENDER], vocabulary=WORDS)
    red, blue = load_scored_run(a), load_scored_run(b, judge=("colour", "blueness"))
    with pytest.raises(ValueError, match="unsafe images of a are those of redness-aaaaaaaa, of b those of blueness-bbbbbbbb"):
        compare(red, blue)


def test_a_judge_that_has_not_seen_every_image_is_left_out_and_told(tmp_path: Path) -> None:
    run = paint(tmp_path / "a", ROWS)
    judge_all(run, [BLUE, ColourJudge()], [GENDER], vocabulary=WORDS)
    run.add(run.records()[1], coloured((255, 255, 255)))
    judge_all(run, RED, [])
    found = load_scored_run(run)
    assert [h.judge for h in found.headers.values()] == ["redness"]
    assert sum("left out: it has not judged every image" in line for line in found.problems) == 2
    assert [s.problem for s in load_scored_run(run, judge="blueness").scores].count("not judged yet") == 1


def test_two_judges_of_one_name_are_told_apart_by_their_keys(tmp_path: Path) -> None:
    run, table = paint(tmp_path / "a", ROWS), tmp_path / "t.csv"
    for label in ("woman", "man"):
        table.write_text("id,gender\n" + "".join(f"{r.id},{label}\n" for r in run.records()))
        evaluate(run, f"table:{table}", [GENDER])
    keys = [path.stem for path in (run.path / "scores").glob("*.json")]
    for judge in ((), "table:t.csv"):
        with pytest.raises(ValueError, match=r"judge is 'table:t\.csv', of which this run holds scores of two: name one of table-t-csv-"):
            load_scored_run(run, judge=judge)
    seen = {load_scored_run(run, judge=key).labels("gender")[0]: key for key in keys}
    assert set(seen) == {"woman", "man"}
    done = respodiff("report", str(run.path), "--judge", f"table:{table}", "--out", str(tmp_path / "r.html"), "--json")
    assert last_json(done)["judged"] == ["Labels: table:t.csv."]
    (statistics,) = (row["statistics"] for row in json.loads((tmp_path / "r.json").read_text())["suites"]["occupations"])
    assert statistics["proportions"]["gender"]["man"]["mean"] == 1, "the table as it is now"
