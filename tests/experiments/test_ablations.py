"""Studies: every row a valid setting of its own, and the plot of what is lost."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from command import respodiff
from respodiff.experiments.ablations import ABLATIONS
from respodiff.experiments.comparison_report import trade_off
from respodiff.experiments.plan import Plan, base_of
from respodiff.methods.base import get_method


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("name", ABLATIONS)
def test_every_row_is_another_setting(name: str, small: bool) -> None:
    settings = ABLATIONS[name].settings(small)
    plan = Plan(methods=tuple(settings), settings=settings)
    configs = [
        (asdict(get_method(base_of(row)).settings("fairness", **plan.training_settings(row))), plan.drawing(row)) for row in settings
    ]
    assert all(configs.count(config) == 1 for config in configs) and len(configs) >= 6


def test_the_ablation_has_the_rows_of_the_paper() -> None:
    rows = ABLATIONS["ablation"].rows
    assert [row["sam_weight"] for row in rows.values() if row.get("modules") != "shared"] == [0, 0.5, 1, 2, 4]
    assert [label for label, row in rows.items() if row.get("modules") == "shared"] == ["shared module, lambda 0.5"]


def test_alignment_lost_is_in_percent_of_the_plain_model() -> None:
    def row(label: str, alignment: float, devrat: float, scale: float = 1.0) -> dict[str, Any]:
        e = {"low": 0.0, "high": 1.0, "n": 4}
        return {
            "method": label,
            "label": label,
            "scale": scale,
            "alignment": {"mean": alignment, **e},
            "devrat": {"mean": devrat, **e},
        }

    rows = [row("plain", 40.0, 0.8), row("r:a", 38.0, 0.2), row("r:a", 39.0, 0.5, 0.5)]
    curves = trade_off(rows, "fairness", "alignment")
    (_, points) = curves.series[1]
    assert [(round(p.x, 9), p.y) for p in points] == [(0.0, 0.8), (2.5, 0.5), (5.0, 0.2)]
    assert curves.x_label == "alignment lost, % of the baseline's"
    assert [name for name, _ in curves.series] == ["plain", "r:a"]
    assert [name for name, _ in trade_off([*rows, row("r:b", 1, 1)], "fairness", "alignment").series] == ["plain", "a", "b"]
    assert [name for name, _ in trade_off([*rows, row("s", 1, 1)], "fairness", "alignment").series] == ["plain", "r:a", "s"]


def test_an_unknown_study_is_refused(tmp_path: Path) -> None:
    wrong = respodiff("compare", "--ablation", "ablations", "--out", str(tmp_path))
    assert wrong.returncode == 2 and "--ablation is 'ablations'; allowed: ablation, axes, drawing" in wrong.stderr
    for more in (("--methods", "plain"), ("--suite", "unsafe")):
        wrong = respodiff("compare", "--ablation", "ablation", *more, "--out", str(tmp_path))
        assert wrong.returncode == 2 and "--ablation is 'ablation', which brings its own methods, of fairness" in wrong.stderr
