from __future__ import annotations

import numpy as np
import pytest
from fairlearn.metrics import MetricFrame, count, selection_rate

from respodiff.evaluation.metrics.intersection import Subgroup, intersection, worst_distance
from respodiff.evaluation.metrics.shares import share_interval, wilson

CLASSES = {"gender": ("woman", "man"), "tone": ("dark", "middle", "light")}


def _labels(n: int = 300, seed: int = 0) -> dict[str, list[str]]:
    rng = np.random.default_rng(seed)
    return {name: [str(v) for v in rng.choice([*given, "unknown"], size=n)] for name, given in CLASSES.items()}


EVEN = np.full((2, 3), 1 / 6)


def _alike(labels: dict[str, list[str]]) -> list[str]:
    """One group of all images, which are then taken as independent."""
    return ["g"] * len(next(iter(labels.values())))


def test_by_hand() -> None:
    labels = {"gender": ["woman"] * 6 + ["man"] * 3 + ["unknown"], "tone": ["dark"] * 5 + ["light"] * 4 + ["unknown"]}
    found = intersection(labels, CLASSES, [[0.25, 0.125, 0.125]] * 2, _alike(labels), minimum=2)
    assert [cell.labels for cell in found][:4] == [("woman", "dark"), ("woman", "middle"), ("woman", "light"), ("man", "dark")]
    assert [cell.count for cell in found] == [5, 0, 1, 0, 0, 3]
    assert [cell.target for cell in found] == [0.25, 0.125, 0.125] * 2
    assert [cell.suppressed for cell in found] == [False, True, True, True, True, False]
    assert found[0] == Subgroup(("woman", "dark"), 5, 0.25, wilson(5, 9), False)
    assert found[1].share is None


def test_against_fairlearn() -> None:
    labels = _labels()
    found = intersection(labels, CLASSES, EVEN, _alike(labels))
    known = [a != "unknown" and b != "unknown" for a, b in zip(*labels.values(), strict=True)]
    columns = {name: np.array(column)[known] for name, column in labels.items()}
    zeros = np.zeros(sum(known))
    frame = MetricFrame(metrics={"count": count, "rate": selection_rate}, y_true=zeros, y_pred=zeros, sensitive_features=columns)
    assert {cell.labels: cell.count for cell in found} == frame.by_group["count"].to_dict()
    for cell in found:
        inside = (columns["gender"] == cell.labels[0]) & (columns["tone"] == cell.labels[1])
        rate = MetricFrame(metrics=selection_rate, y_true=zeros, y_pred=inside, sensitive_features=columns)
        assert cell.share is not None and cell.share.mean == pytest.approx(rate.overall)
        assert rate.by_group[cell.labels] == 1
    assert sum(cell.share.mean for cell in found if cell.share) == pytest.approx(1) and sum(cell.count for cell in found) == sum(known)


def test_groups_give_the_cluster_interval() -> None:
    labels, classes = {"gender": ["woman"] * 20 + ["man"] * 20}, {"gender": ("woman", "man")}
    groups = [f"p{i // 10}" for i in range(40)]
    found = intersection(labels, classes, [0.5, 0.5], groups, seed=3)
    assert found[0].share == share_interval([10, 10, 0, 0], [10] * 4, seed=3)
    lacking = intersection({"gender": [*labels["gender"], "?"]}, classes, [0.5, 0.5], [*groups, "other"], seed=3)
    assert lacking[0].share == found[0].share


def test_nothing_known() -> None:
    found = intersection({"a": ["?", "?"]}, {"a": ["x", "y"]}, [0.5, 0.5], ["g", "g"])
    assert found[0].share is None and not found[0].suppressed


def test_refuses() -> None:
    labels = _labels(4)
    for targets in ([0.5, 0.5], [[0.5, 0.5, 0.5]] * 2, [[-1, 1, 1], [0, 0, 0]], [[np.nan] * 3] * 2):
        with pytest.raises(ValueError, match=r"targets must be \(2, 3\) shares"):
            intersection(labels, CLASSES, targets, ["g"] * 4)


def test_the_worst_distance_by_hand() -> None:
    labels = {"gender": ["woman"] * 12 + ["man"] * 8, "tone": ["dark"] * 10 + ["light"] * 10}
    found = worst_distance(labels, CLASSES, [[0.25, 0, 0.25]] * 2, _alike(labels))
    # counts: woman dark 10, woman light 2, man light 8; wanted .25, 0, .25 for each gender
    each = {count: wilson(count, 20, 1 - 0.05 / 6) for count in (0, 2, 8, 10)}
    wanted = [(10, 0.25), (0, 0.0), (2, 0.25), (0, 0.25), (0, 0.0), (8, 0.25)]
    assert found is not None and found.n == 20 and found.mean == pytest.approx(0.25)
    assert found.low == pytest.approx(max(max(0, each[k].low - t, t - each[k].high) for k, t in wanted))
    assert found.high == pytest.approx(max(max(each[k].high - t, t - each[k].low) for k, t in wanted))
    assert worst_distance({"a": ["?"]}, {"a": ["x", "y"]}, [0.5, 0.5], ["g"]) is None


def test_the_interval_of_the_worst_distance_holds_the_truth() -> None:
    rng, chance = np.random.default_rng(5), np.array([0.3, 0.2, 0.1, 0.1, 0.15, 0.15])
    truth, inside = np.abs(chance - 1 / 6).max(), 0
    names = [str(i) for i in range(6)]
    for _ in range(200):
        found = worst_distance({"a": [str(v) for v in rng.choice(names, 120, p=chance)]}, {"a": names}, [1 / 6] * 6, ["g"] * 120)
        assert found is not None
        inside += found.low <= truth <= found.high
    assert inside >= 190
