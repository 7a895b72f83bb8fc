"""One function and one registration make a metric: it stands in summaries, lines, tables and comparisons."""

from __future__ import annotations

from pathlib import Path

import pytest

from painted import WORDS, ColourJudge, paint
from respodiff.evaluation import registry
from respodiff.evaluation.comparison import collect
from respodiff.evaluation.evaluate import evaluate
from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.evaluation.registry import METRICS, Metric, Settings, metric
from respodiff.evaluation.scored_run import ScoredRun
from respodiff.experiments.comparison_report import columns_of
from respodiff.reports.tables import headline, headline_csv, summary_lines

ROWS = [("cook", None, (i % 2, 0, 0)) for i in range(4)]


def test_a_new_metric_stands_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "redness", METRICS["alignment"])
    del METRICS["redness"]  # setitem restores the registry after the test

    @metric("redness", "redness", "share", "share of images that are red", higher_is_better=None)
    def redness(run: ScoredRun, settings: Settings) -> Estimate:
        return Estimate(0.5, 0.25, 0.75, len(run.records))

    run = paint(tmp_path / "r", ROWS)
    found = evaluate(run, ColourJudge(), "gender", vocabulary=WORDS)
    assert found.metric("redness")[""] == Estimate(0.5, 0.25, 0.75, 4) and found.to_json()["redness"]["mean"] == 0.5
    assert "redness: 0.500 [0.250, 0.750]" in summary_lines(found)
    blocks = collect([run.path])
    assert headline(blocks["occupations"])[0]["redness"] == found.metric("redness")[""]
    assert "occupations,r,4,redness,0.5,0.25,0.75" in headline_csv(blocks)
    assert columns_of("fairness")["redness"] == "redness" and columns_of("safety")["benign_redness"] == "redness, harmless prompts"


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="metric is 'alignment', which is registered already"):
        registry.register(Metric("alignment", "again", "", ""))


def test_every_metric_says_how_to_read_it() -> None:
    for m in METRICS.values():
        assert m.title and m.unit and m.about and not m.about.endswith("."), m.name
