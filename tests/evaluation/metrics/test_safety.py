from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from respodiff.evaluation.metrics.fairness import wilson
from respodiff.evaluation.metrics.safety import false_positives, inappropriate, sweep


def _simulated(seed: int = 0) -> tuple[np.ndarray, list[str], list[tuple[str, ...]]]:
    rng = np.random.default_rng(seed)
    names = ["hate", "violence", "sexual", "shocking"]
    rows: list[tuple[bool, str, tuple[str, ...]]] = []
    for i in range(80):
        labels = tuple(str(name) for name in rng.choice(names, size=rng.integers(1, 4), replace=False))
        rows += [(bool(hit), f"p{i}", labels) for hit in rng.random(rng.integers(1, 7)) < rng.random()]
    order = rng.permutation(len(rows))
    return np.array([rows[i][0] for i in order]), [rows[i][1] for i in order], [rows[i][2] for i in order]


def test_by_hand_with_prompts_of_several_labels() -> None:
    flags = [True, True, False, False, True]
    found = inappropriate(flags, ["a", "a", "b", "b", "c"], [("x",), ("x",), ("x", "y"), ("y", "x"), ()])
    assert found.unweighted.mean == pytest.approx((1 + 0 + 1) / 3) and found.unweighted.n == 5
    assert found.label_weighted is not None
    assert found.label_weighted.mean == pytest.approx((1 * 1 + 2 * 0) / 3) and found.label_weighted.n == 4
    assert {name: share.mean for name, share in found.by_category.items()} == {"x": 0.5, "y": 0.0}
    assert found.by_category["y"] == wilson(0, 2)  # a single prompt
    assert inappropriate([True], ["a"], [()]).label_weighted is None


def test_against_pandas() -> None:
    flags, prompts, labels = _simulated()
    found = inappropriate(flags, prompts, labels, n_bootstrap=100)
    rows = pd.DataFrame({"flag": flags, "prompt": prompts, "label": labels})
    each = rows.groupby("prompt").agg(share=("flag", "mean"), label=("label", "first"))
    assert found.unweighted.mean == pytest.approx(each["share"].mean())
    exploded = each.explode("label")
    assert found.label_weighted is not None and found.label_weighted.mean == pytest.approx(exploded["share"].mean())
    expected = exploded.groupby("label")["share"].mean()
    assert list(found.by_category) == list(expected.index)
    assert [share.mean for share in found.by_category.values()] == pytest.approx(expected.tolist())
    assert found.by_category["hate"].n == int(rows["label"].map(lambda given: "hate" in given).sum())


def test_intervals_are_those_of_prompts_and_never_a_point() -> None:
    prompts = [f"p{i // 5}" for i in range(100)]
    labels = [("x",)] * 100
    none = inappropriate([False] * 100, prompts, labels)
    assert none.unweighted == none.label_weighted == none.by_category["x"] == wilson(0, 100)
    alike = inappropriate([i // 5 % 2 == 0 for i in range(100)], prompts, labels).unweighted
    assert alike.mean == 0.5 and alike.high - alike.low > 2 * (wilson(50, 100).high - wilson(50, 100).low)


def test_interval_covers_over_prompts() -> None:
    rng = np.random.default_rng(1)
    prompts = [f"p{i // 5:02d}" for i in range(200)]
    inside = 0
    for seed in range(400):
        flags = rng.random(200) < np.repeat(rng.beta(0.8, 1.2, 40), 5)
        share = false_positives(flags, prompts, n_bootstrap=400, seed=seed)
        inside += share.low <= 0.4 <= share.high
    assert 0.92 <= inside / 400 <= 0.98


def test_row_order_has_no_influence() -> None:
    flags, prompts, labels = _simulated(2)
    order = np.random.default_rng(0).permutation(len(flags))
    turned = inappropriate(flags[order], [prompts[i] for i in order], [labels[i] for i in order], n_bootstrap=50)
    assert turned == inappropriate(flags, prompts, labels, n_bootstrap=50)
    assert turned != inappropriate(flags, prompts, labels, n_bootstrap=50, seed=1)


def test_sweep() -> None:
    scores, prompts = [0.1, 0.5, 0.9, 0.2], ["a", "a", "b", "b"]
    found = sweep(scores, [0.0, 0.2, 0.5, 0.95], prompts)
    assert [share.mean for share in found] == [1.0, 0.75, 0.5, 0.0]
    assert found[3] == wilson(0, 4)
    assert found[2] == false_positives([False, True, True, False], prompts)
    uneven = sweep([0.9, 0.9, 0.9, 0.1], [0.5], ["a", "a", "a", "b"])[0]
    assert uneven.mean == 0.5


@pytest.mark.parametrize(
    ("flags", "prompts", "labels", "message"),
    [
        ([1, 0], ["a", "b"], [(), ()], "flags must be booleans"),
        ([], [], [], "flags must be booleans"),
        ([True], ["a", "b"], [()], "one for each of 2"),
        ([True], ["a"], [], "got 0 entries"),
        ([True], ["a"], ["hate"], "got the text 'hate'"),
        ([True, True], ["a", "a"], [("x",), ("y",)], "prompt 'a' differ"),
    ],
)
def test_refuses(flags: list[bool], prompts: list[str], labels: list[tuple[str, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inappropriate(flags, prompts, labels)


def test_sweep_refuses() -> None:
    with pytest.raises(ValueError, match="scores must be"):
        sweep([0.1], [0.5], ["a", "b"])
    with pytest.raises(ValueError, match="must be finite"):
        sweep([float("nan")], [0.5], ["a"])
