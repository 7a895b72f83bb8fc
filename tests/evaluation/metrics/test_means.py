from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from respodiff.evaluation.metrics.bootstrap import mean_interval


def test_interval_is_the_width_of_the_groups_not_of_the_images() -> None:
    values = np.repeat([1.0, 2.0, 3.0, 4.0], 100)
    groups = [name for name in "abcd" for _ in range(100)]
    found = mean_interval(values, groups)
    assert found.mean == 2.5 and found.n == 400
    error = np.std([1, 2, 3, 4], ddof=1) / 2  # of a mean of four groups
    assert found.high - found.mean == pytest.approx(stats.t.ppf(0.975, 3) * error, rel=0.15)
    single = mean_interval(values, ["a"] * 400)
    assert single.high - single.low < (found.high - found.low) / 3


def test_row_order_has_no_influence() -> None:
    rng = np.random.default_rng(1)
    values, order = rng.normal(size=60), rng.permutation(60)
    for groups in ([f"p{i // 6}" for i in range(60)], ["p"] * 60):
        turned = mean_interval(values[order], [groups[i] for i in order], n_bootstrap=100)
        found = mean_interval(values, groups, n_bootstrap=100)
        assert (turned.low, turned.mean, turned.high) == pytest.approx((found.low, found.mean, found.high), abs=1e-12)


def test_refuses_what_is_no_column_of_numbers() -> None:
    for values in ([], [1.0, float("nan")], [[1.0], [2.0]]):
        with pytest.raises(ValueError, match="values must be finite numbers"):
            mean_interval(values, ["a"] * len(values))


def test_many_groups_in_bounded_memory() -> None:
    """30,000 images of 3,000 prompts: all draws at once would take 48 MB for each array of indices and of numbers."""
    rng = np.random.default_rng(0)
    groups = [f"p{i % 3000}" for i in range(30_000)]
    values = rng.normal(size=30_000) + np.tile(rng.normal(size=3000), 10)
    tracemalloc.start()
    found = mean_interval(values, groups)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    error = np.array([values[i::3000].mean() for i in range(3000)]).std() / 3000**0.5
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert peak < 60e6
