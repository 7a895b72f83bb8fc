from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.proportion import proportion_confint

from respodiff.evaluation.metrics.shares import exact_band, flagged_share, share_interval, wilson


def test_wilson_by_hand() -> None:
    found = wilson(5, 10)
    assert (found.mean, found.n) == (0.5, 10)
    assert (found.low, found.high) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    none = wilson(0, 10)
    assert none.low == 0 and none.high == pytest.approx(0.2775, abs=1e-4)
    with pytest.raises(ValueError, match="successes=3, n=2"):
        wilson(3, 2)


def test_share_interval_allows_for_alike_groups() -> None:
    mixed = share_interval([5] * 10, [10] * 10)
    alike = share_interval([10] * 5 + [0] * 5, [10] * 10)
    assert mixed.mean == alike.mean == 0.5
    assert (mixed.low, mixed.high) == pytest.approx((wilson(50, 100).low, wilson(50, 100).high))
    assert alike.high - alike.low > 2 * (mixed.high - mixed.low)


def test_share_interval_of_nothing_found_is_not_a_point() -> None:
    assert share_interval([0, 0], [20, 20]).high == pytest.approx(wilson(0, 40).high)
    assert share_interval([3], [4]) == wilson(3, 4)


@pytest.mark.parametrize(("hits", "sizes"), [([2], [1]), ([0], [0]), ([1, 1], [2]), ([], [])])
def test_share_interval_bad_arguments(hits: list[int], sizes: list[int]) -> None:
    with pytest.raises(ValueError, match=r"must be|empty"):
        share_interval(hits, sizes)


@pytest.mark.parametrize(("count", "n"), [(0, 1), (0, 16), (3, 16), (16, 16), (7, 12)])
@pytest.mark.parametrize("level", [0.95, 0.9995])
def test_the_exact_band_against_statsmodels(count: int, n: int, level: float) -> None:
    assert exact_band(count, n, level) == pytest.approx(proportion_confint(count, n, alpha=1 - level, method="beta"))


def _alike(prompts: list[str]) -> dict[str, float]:
    return dict.fromkeys(prompts, 1.0)


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
    once = flagged_share(flags, prompts, _alike(prompts))
    assert once.mean == pytest.approx((1 + 0 + 1) / 3) and once.n == 5
    by_label = flagged_share(flags, prompts, {"a": 1, "b": 2, "c": 0})
    assert by_label.mean == pytest.approx((1 * 1 + 2 * 0) / 3) and by_label.n == 4
    assert flagged_share(flags, prompts, {"a": 1, "b": 1, "c": 0}).mean == 0.5
    assert flagged_share(flags, prompts, {"a": 0, "b": 1, "c": 0}) == wilson(0, 2)  # a single prompt


def test_against_pandas() -> None:
    flags, prompts, labels = _simulated()
    rows = pd.DataFrame({"flag": flags, "prompt": prompts, "label": labels})
    each = rows.groupby("prompt").agg(share=("flag", "mean"), label=("label", "first"))
    assert flagged_share(flags, prompts, _alike(prompts), n_bootstrap=100).mean == pytest.approx(each["share"].mean())
    of = dict(zip(prompts, labels, strict=True))
    exploded = each.explode("label")
    weighted = flagged_share(flags, prompts, {p: len(given) for p, given in of.items()}, n_bootstrap=100)
    assert weighted.mean == pytest.approx(exploded["share"].mean())
    for name, expected in exploded.groupby("label")["share"].mean().items():
        found = flagged_share(flags, prompts, {p: name in given for p, given in of.items()}, n_bootstrap=100)
        assert found.mean == pytest.approx(expected) and found.n == sum(name in given for given in labels)


def test_intervals_are_those_of_prompts_and_never_a_point() -> None:
    prompts = [f"p{i // 5}" for i in range(100)]
    assert (
        flagged_share([False] * 100, prompts, _alike(prompts))
        == flagged_share([False] * 100, prompts, dict.fromkeys(prompts, 2.0))
        == wilson(0, 100)
    )
    alike = flagged_share([i // 5 % 2 == 0 for i in range(100)], prompts, _alike(prompts))
    assert alike.mean == 0.5 and alike.high - alike.low > 2 * (wilson(50, 100).high - wilson(50, 100).low)


@pytest.mark.slow
def test_interval_covers_over_prompts() -> None:
    rng = np.random.default_rng(1)
    prompts = [f"p{i // 5:02d}" for i in range(200)]
    inside = 0
    for seed in range(400):
        flags = rng.random(200) < np.repeat(rng.beta(0.8, 1.2, 40), 5)
        share = flagged_share(flags, prompts, _alike(prompts), n_bootstrap=400, seed=seed)
        inside += share.low <= 0.4 <= share.high
    assert 0.92 <= inside / 400 <= 0.98


def test_row_order_has_no_influence() -> None:
    flags, prompts, labels = _simulated(2)
    order = np.random.default_rng(0).permutation(len(flags))
    weights = {p: len(given) for p, given in zip(prompts, labels, strict=True)}
    turned = flagged_share(flags[order], [prompts[i] for i in order], weights, n_bootstrap=50)
    assert turned == flagged_share(flags, prompts, weights, n_bootstrap=50)
    assert turned != flagged_share(flags, prompts, weights, n_bootstrap=50, seed=1)


def test_flagged_share_refuses_weights_of_nothing() -> None:
    with pytest.raises(ValueError, match="weights must be above 0"):
        flagged_share([True], ["a"], {"a": 0})
