from __future__ import annotations

import numpy as np
import pytest
from fairlearn.metrics import MetricFrame, count, selection_rate

from respodiff.evaluation.metrics.fairness import share_interval, wilson
from respodiff.evaluation.metrics.intersection import Subgroup, intersection, worst_distance, worst_subgroup

CLASSES = {"gender": ("woman", "man"), "tone": ("dark", "middle", "light")}


def _labels(n: int = 300, seed: int = 0) -> dict[str, list[str]]:
    rng = np.random.default_rng(seed)
    return {name: [str(v) for v in rng.choice([*given, "unknown"], size=n)] for name, given in CLASSES.items()}


def test_by_hand() -> None:
    labels = {"gender": ["woman"] * 6 + ["man"] * 3 + ["unknown"], "tone": ["dark"] * 5 + ["light"] * 4 + ["unknown"]}
    table = intersection(labels, CLASSES, targets={"gender": [0.5, 0.5], "tone": [0.5, 0.25, 0.25]}, minimum=2)
    assert (table.known, table.unknown) == (9, 1)
    assert [cell.labels for cell in table.subgroups][:4] == [("woman", "dark"), ("woman", "middle"), ("woman", "light"), ("man", "dark")]
    assert [cell.count for cell in table.subgroups] == [5, 0, 1, 0, 0, 3]
    assert [cell.target for cell in table.subgroups] == [0.25, 0.125, 0.125] * 2
    assert [cell.suppressed for cell in table.subgroups] == [False, True, True, True, True, False]
    assert table.subgroups[0] == Subgroup(("woman", "dark"), 5, 0.25, wilson(5, 9), 5 / 9 - 0.25, False)
    assert table.subgroups[1].share is None and table.subgroups[1].deviation is None
    assert worst_subgroup(table) == table.subgroups[0]


def test_against_fairlearn() -> None:
    labels = _labels()
    table = intersection(labels, CLASSES, minimum=0)
    known = [a != "unknown" and b != "unknown" for a, b in zip(*labels.values(), strict=True)]
    columns = {name: np.array(column)[known] for name, column in labels.items()}
    zeros = np.zeros(sum(known))
    frame = MetricFrame(metrics={"count": count, "rate": selection_rate}, y_true=zeros, y_pred=zeros, sensitive_features=columns)
    assert {cell.labels: cell.count for cell in table.subgroups} == frame.by_group["count"].to_dict()
    for cell in table.subgroups:
        inside = (columns["gender"] == cell.labels[0]) & (columns["tone"] == cell.labels[1])
        rate = MetricFrame(metrics=selection_rate, y_true=zeros, y_pred=inside, sensitive_features=columns)
        assert cell.share is not None and cell.share.mean == pytest.approx(rate.overall)
        assert rate.by_group[cell.labels] == 1
    assert table.known == sum(known) and table.unknown == 300 - sum(known)
    assert sum(cell.share.mean for cell in table.subgroups if cell.share) == pytest.approx(1)


def test_groups_give_the_cluster_interval() -> None:
    labels = {"gender": ["woman"] * 20 + ["man"] * 20}
    groups = [f"p{i // 10}" for i in range(40)]
    table = intersection(labels, {"gender": ("woman", "man")}, groups=groups, seed=3)
    assert table.subgroups[0].share == share_interval([10, 10, 0, 0], [10] * 4, seed=3)
    lacking = intersection({"gender": [*labels["gender"], "?"]}, {"gender": ("woman", "man")}, groups=[*groups, "other"], seed=3)
    assert lacking.subgroups[0].share == table.subgroups[0].share


def test_joint_targets_and_worst_cell() -> None:
    joint = np.array([[0.5, 0, 0], [0, 0, 0.5]])
    labels = {"gender": ["woman"] * 10 + ["man"] * 10, "tone": ["dark"] * 20}
    table = intersection(labels, CLASSES, targets=joint)
    assert worst_subgroup(table).labels in (("man", "dark"), ("man", "light"))
    small = worst_subgroup(intersection({"a": ["x"] * 4}, {"a": ["x", "y"]}, minimum=9))
    assert small is not None and small.labels == ("x",) and small.suppressed, (
        "suppressed ones count: one that never occurs may be the worst"
    )


def test_nothing_known() -> None:
    table = intersection({"a": ["?", "?"]}, {"a": ["x", "y"]}, minimum=0)
    assert (table.known, table.unknown) == (0, 2) and table.subgroups[0].share is None and not table.subgroups[0].suppressed
    assert worst_subgroup(table) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {"a": ["x"]}}, "same attributes"),
        ({"classes": {"gender": ("man", "man"), "tone": ("dark",)}}, "classes of \\['gender'\\]"),
        ({"groups": ["p"]}, "one length"),
        ({"minimum": -1}, "minimum must be 0 or more"),
        ({"targets": {"age": [1.0]}}, "none of the attributes"),
        ({"targets": {"gender": [0.9, 0.9]}}, "targets of gender must be"),
        ({"targets": [0.5, 0.5]}, "targets must be \\(2, 3\\)"),
    ],
)
def test_refuses(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        intersection(**{"labels": _labels(4), "classes": CLASSES} | change)


def test_the_worst_distance_by_hand() -> None:
    labels = {"gender": ["woman"] * 12 + ["man"] * 8, "tone": ["dark"] * 10 + ["light"] * 10}
    found = worst_distance(labels, CLASSES, targets={"tone": [0.5, 0, 0.5]})
    # counts: woman dark 10, woman light 2, man light 8; wanted .25, 0, .25 for each gender
    each = {count: wilson(count, 20, 1 - 0.05 / 6) for count in (0, 2, 8, 10)}
    wanted = [(10, 0.25), (0, 0.0), (2, 0.25), (0, 0.25), (0, 0.0), (8, 0.25)]
    assert found is not None and found.n == 20 and found.mean == pytest.approx(0.25)
    assert found.low == pytest.approx(max(max(0, each[k].low - t, t - each[k].high) for k, t in wanted))
    assert found.high == pytest.approx(max(max(each[k].high - t, t - each[k].low) for k, t in wanted))
    assert worst_distance({"a": ["?"]}, {"a": ["x", "y"]}) is None


def test_the_interval_of_the_worst_distance_holds_the_truth() -> None:
    rng, chance = np.random.default_rng(5), np.array([0.3, 0.2, 0.1, 0.1, 0.15, 0.15])
    truth, inside = np.abs(chance - 1 / 6).max(), 0
    names = [str(i) for i in range(6)]
    for _ in range(200):
        found = worst_distance({"a": [str(v) for v in rng.choice(names, 120, p=chance)]}, {"a": names})
        assert found is not None
        inside += found.low <= truth <= found.high
    assert inside >= 190
