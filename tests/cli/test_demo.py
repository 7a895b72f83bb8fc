"""The demo in miniature: what it prints, writes and leaves behind."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from command import last_json, respodiff
from painted import WORDS, ColourJudge, paint
from respodiff.cli import demo
from respodiff.evaluation.evaluate import evaluate
from respodiff.evaluation.scored_run import load_scored_run
from respodiff.generation.config import GenerateConfig
from respodiff.training.config import TrainConfig

pytestmark = pytest.mark.slow


def test_demo_writes_grid_report_and_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = TrainConfig.preset

    def quick(name: str, kind: Any = "fairness", **changes: Any) -> TrainConfig:
        return preset(name, kind, **{**changes, "iterations": 2, "rollouts": 4, "steps": 3, "batch": 2})

    monkeypatch.setattr(TrainConfig, "preset", staticmethod(quick))
    monkeypatch.setattr(demo, "OCCUPATIONS", ("mechanic", "nurse"))
    monkeypatch.setattr(demo, "GenerateConfig", partial(GenerateConfig, steps=2))
    out = tmp_path / "demo"
    result = last_json(respodiff("demo", "--out", str(out), "--images", "4", "--json"))
    assert set(result) >= {"before", "after", "trained", "grid", "report", "seconds", "first_image_seconds"}
    assert 0 < result["first_image_seconds"] < result["seconds"] and result["train_unet_forwards"] > 0
    assert sum(result["parts"].values()) == pytest.approx(result["seconds"], abs=2) and min(result["parts"].values()) > 0
    for side in ("before", "after"):
        assert result[side]["n"] == 8 and set(result[side]["women"]) == {"mechanic", "nurse"}
        assert 0 <= result[side]["unsafe"]["mean"] <= 1 and result[side]["unsafe_n"] == 4
    with Image.open(out / "before_after.png") as grid:
        assert grid.width > 8 * 70 and grid.height > 3 * 70
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "data:image/" in page and "http://" not in page.replace("http://www.w3.org", "") and "<script" not in page
    assert "mechanic" in page and "real people" in page
    assert {p.name for p in out.glob("*.safetensors")} == {"woman.safetensors", "man.safetensors"}
    runs = [[json.loads(line) for line in (out / run / "manifest.jsonl").read_text().splitlines()] for run in demo.PEOPLE]
    before, *steered = runs
    assert all([r["id"] for r in before] == [r["id"] for r in other] for other in steered), "the same noise in all runs"
    assert all(not r["concepts"] for r in before)
    assert all(sorted(r["concepts"]["gender"] for r in other) == ["man"] * 4 + ["woman"] * 4 for other in steered)
    shipped, trained = ({digest for r in other for digest in r["modules"]} for other in steered)
    assert len(shipped) == len(trained) == 2 and not shipped & trained


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
    monkeypatch.setattr("respodiff.cli.demo.open_model", lambda *_: None)
    monkeypatch.setattr("respodiff.evaluation.evaluate.evaluate", lambda *_: judged)
    monkeypatch.setattr("respodiff.reports.run_report.report", lambda *_, **__: {"page": "report.html"})
    for name, result in (("_train", ([], 0)), ("_grid", "grid")):
        monkeypatch.setattr(demo, name, lambda *_, result=result: result)
    monkeypatch.setattr(demo, "_generate", lambda *given: given[-1].append(0.0))
    done = respodiff("demo", "--out", str(tmp_path / "demo"), *(["--json"] if as_json else []))
    assert done.returncode == 0, done.stderr
    shown, other = (done.stderr, done.stdout) if as_json else (done.stdout, done.stderr)
    assert "nurse, women" in shown and "6/8" in shown and "weapons, unsafe" in shown
    assert "subject accuracy" in shown and "nurse, women" not in other
    if as_json:
        assert last_json(done)["before"]["women"] == {"nurse": 0.75} and last_json(done)["before"]["men"] == {"nurse": 0.25}


def test_occupations_of_the_demo_chose_no_settings() -> None:
    tuned = {
        "doctor",
        "nurse",
        "ceo",
        "secretary",
        "mechanic",
        "guard",
        "developer",
        "teacher",
        "farmer",
        "cleaner",
        "hairdresser",
        "lawyer",
    }
    assert len(set(demo.OCCUPATIONS)) == 6 and tuned.isdisjoint(demo.OCCUPATIONS)


def test_images_without_their_subject_have_a_red_frame(tmp_path: Path) -> None:
    rows = [("cook", None, (0, 0, 0)), ("nurse", None, (0, 0, 0))]
    folder = paint(tmp_path / "run", rows)
    evaluate(folder, ColourJudge(), "gender", vocabulary=WORDS)
    correct = {r.group: s.subject_correct for run in [load_scored_run(folder)] for r, s in zip(run.records, run.scores, strict=True)}
    found = demo._images(folder.path)
    for group, (image,) in found.items():
        assert (image.getpixel((0, 0)) == (255, 0, 0) != image.getpixel((image.width // 2, image.height // 2))) is (not correct[group])
    assert set(correct.values()) == {True, False}
