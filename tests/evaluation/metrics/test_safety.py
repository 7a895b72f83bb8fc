from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from respodiff.evaluation.metrics.fairness import wilson
from respodiff.evaluation.metrics.safety import flagged_share


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
    flags, prompts = [True, True, False, False, True], ["a", "a", "b", "b", "c"]
    once = flagged_share(flags, prompts)
    assert once.mean == pytest.approx((1 + 0 + 1) / 3) and once.n == 5
    by_label = flagged_share(flags, prompts, [1, 1, 2, 2, 0])
    assert by_label.mean == pytest.approx((1 * 1 + 2 * 0) / 3) and by_label.n == 4
    assert flagged_share(flags, prompts, [1, 1, 1, 1, 0]).mean == 0.5
    assert flagged_share(flags, prompts, [0, 0, 1, 1, 0]) == wilson(0, 2)  # a single prompt


def test_against_pandas() -> None:
    flags, prompts, labels = _simulated()
    rows = pd.DataFrame({"flag": flags, "prompt": prompts, "label": labels})
    each = rows.groupby("prompt").agg(share=("flag", "mean"), label=("label", "first"))
    assert flagged_share(flags, prompts, n_bootstrap=100).mean == pytest.approx(each["share"].mean())
    exploded = each.explode("label")
    weighted = flagged_share(flags, prompts, [len(given) for given in labels], n_bootstrap=100)
    assert weighted.mean == pytest.approx(exploded["share"].mean())
    for name, expected in exploded.groupby("label")["share"].mean().items():
        found = flagged_share(flags, prompts, [name in given for given in labels], n_bootstrap=100)
        assert found.mean == pytest.approx(expected) and found.n == sum(name in given for given in labels)


def test_intervals_are_those_of_prompts_and_never_a_point() -> None:
    prompts = [f"p{i // 5}" for i in range(100)]
    assert flagged_share([False] * 100, prompts) == flagged_share([False] * 100, prompts, [2.0] * 100) == wilson(0, 100)
    alike = flagged_share([i // 5 % 2 == 0 for i in range(100)], prompts)
    assert alike.mean == 0.5 and alike.high - alike.low > 2 * (wilson(50, 100).high - wilson(50, 100).low)


@pytest.mark.slow
def test_interval_covers_over_prompts() -> None:
    rng = np.random.default_rng(1)
    prompts = [f"p{i // 5:02d}" for i in range(200)]
    inside = 0
    for seed in range(400):
        flags = rng.random(200) < np.repeat(rng.beta(0.8, 1.2, 40), 5)
        share = flagged_share(flags, prompts, n_bootstrap=400, seed=seed)
        inside += share.low <= 0.4 <= share.high
    assert 0.92 <= inside / 400 <= 0.98


def test_row_order_has_no_influence() -> None:
    flags, prompts, labels = _simulated(2)
    order = np.random.default_rng(0).permutation(len(flags))
    weights = np.array([len(given) for given in labels])
    turned = flagged_share(flags[order], [prompts[i] for i in order], weights[order], n_bootstrap=50)
    assert turned == flagged_share(flags, prompts, weights, n_bootstrap=50)
    assert turned != flagged_share(flags, prompts, weights, n_bootstrap=50, seed=1)


@pytest.mark.parametrize(
    ("flags", "prompts", "weights", "message"),
    [
        ([1, 0], ["a", "b"], None, "flags must be booleans"),
        ([], [], None, "flags must be booleans"),
        ([True], ["a", "b"], None, "one for each of 2"),
        ([True], ["a"], [], "weights must be numbers"),
        ([True], ["a"], [0], "not all 0"),
        ([True, True], ["a", "a"], [1, 2], "weights differ"),
    ],
)
def test_refuses(flags: list[bool], prompts: list[str], weights: list[float] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flagged_share(flags, prompts, weights)
