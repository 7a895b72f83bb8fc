"""The demo in miniature: what it prints, writes and leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from command import last_json, respodiff
from painted import WORDS, ColourJudge, paint
from respodiff.cli import demo
from respodiff.evaluation.evaluate import evaluate
from respodiff.training.config import TrainConfig

pytestmark = pytest.mark.slow


def test_demo_writes_grid_report_and_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = TrainConfig.preset

    def quick(name: str, kind: Any = "fairness", **changes: Any) -> TrainConfig:
        return preset(name, kind, **{**changes, "iterations": 2, "rollouts": 4, "steps": 3, "batch": 2})

    monkeypatch.setattr(TrainConfig, "preset", staticmethod(quick))
    monkeypatch.setattr(demo, "OCCUPATIONS", ("mechanic", "nurse"))
    out = tmp_path / "demo"
    result = last_json(respodiff("demo", "--out", str(out), "--images", "4", "--json"))
    assert set(result) >= {"before", "after", "grid", "report", "seconds"}
    for side in ("before", "after"):
        assert result[side]["n"] == 8 and set(result[side]["women"]) == {"mechanic", "nurse"}
        assert 0 <= result[side]["unsafe"]["mean"] <= 1 and result[side]["unsafe_n"] == 4
    with Image.open(out / "before_after.png") as grid:
        assert grid.width > 8 * 70 and grid.height > 3 * 70
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page and "http://" not in page.replace("http://www.w3.org", "") and "<script" not in page
    assert "One small tensor per concept" in page and "share of women" in page and "mechanic: " in page
    assert "mechanic" in page and "real people" in page
    assert {p.name for p in out.glob("*.safetensors")} == {"woman.safetensors", "man.safetensors", "violence.safetensors"}
    before, after = ([json.loads(line) for line in (out / run / "manifest.jsonl").read_text().splitlines()] for run in ("before", "after"))
    assert [r["id"] for r in before] == [r["id"] for r in after], "the same noise on both sides"
    assert all(not r["concepts"] for r in before) and sorted(r["concepts"]["gender"] for r in after) == ["man"] * 4 + ["woman"] * 4


def test_demo_needs_enough_images_for_its_grid(tmp_path: Path) -> None:
    done = respodiff("demo", "--images", "2", "--out", str(tmp_path / "demo"))
    assert done.returncode == 2 and "--images" in done.stderr


def test_refused_demo_leaves_nothing_behind(tmp_path: Path) -> None:
    done = respodiff("demo", "--device", "nowhere", "--out", str(tmp_path / "demo"))
    assert done.returncode == 2 and "--device" in done.stderr and list(tmp_path.iterdir()) == []


def test_check_of_the_folder_leaves_nothing_in_it(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "report.html").write_text("old")
    demo._clear(tmp_path / "demo")
    assert list((tmp_path / "demo").iterdir()) == []


@pytest.mark.parametrize("as_json", [True, False])
def test_shares_of_both_are_shown_where_they_are_looked_for(as_json: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("nurse", None, (int(i > 5), 0, 0)) for i in range(8)]
    judged = evaluate(paint(tmp_path / "run", rows), ColourJudge(), "gender", vocabulary=WORDS)
    found = dict.fromkeys(demo.RUNS, judged)
    monkeypatch.setattr("respodiff.cli.console.open_model", lambda *_: None)
    for name, result in (("_train", None), ("_draw", None), ("_measure", found), ("_grid", "grid"), ("_report", "report")):
        monkeypatch.setattr(demo, name, lambda *_, result=result: result)
    done = respodiff("demo", "--out", str(tmp_path / "demo"), *(["--json"] if as_json else []))
    assert done.returncode == 0, done.stderr
    shown, other = (done.stderr, done.stdout) if as_json else (done.stdout, done.stderr)
    assert "nurse, women" in shown and "nurse, men" in shown and "0.75" in shown and "0.25" in shown and "subject accuracy" in shown
    assert "nurse, men" not in other
    if as_json:
        assert last_json(done)["before"]["women"] == {"nurse": 0.75} and last_json(done)["before"]["men"] == {"nurse": 0.25}
