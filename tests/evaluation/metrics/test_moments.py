from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from respodiff.evaluation.metrics.fidelity import polynomial_mmd
from respodiff.evaluation.metrics.moments import Sums, deal, jackknife, pair, polynomial_rests, spread, unit


def test_sums_give_numpys_moments_also_after_leaving_rows_out() -> None:
    x = np.random.default_rng(0).normal(size=(50, 4)) + 3
    rest = Sums.of(x).without(Sums.of(x[:20]))
    assert rest.n == 30
    np.testing.assert_allclose(rest.mean, x[20:].mean(0))
    np.testing.assert_allclose(rest.covariance, np.cov(x[20:].T))


def test_deal_keeps_prompts_together_whatever_the_row_order() -> None:
    groups = [f"p{i % 12}" for i in range(60)]
    block = deal(groups, 60, 4, 3)
    assert np.bincount(block).tolist() == [15] * 4
    assert all(len(set(block[[i for i, g in enumerate(groups) if g == name]])) == 1 for name in set(groups))
    assert deal(groups[::-1], 60, 4, 3).tolist() == block[::-1].tolist()
    assert deal(groups, 60, 100, 3).max() == 11
    for bad in (["a"] * 60, groups[:-1]):
        with pytest.raises(ValueError, match="2 or more prompts"):
            deal(bad, 60, 4, 0)


def test_jackknife_of_a_mean_is_the_t_interval_of_block_means() -> None:
    x = np.random.default_rng(1).normal(size=(40, 1))
    block = np.arange(40) % 8
    found = jackknife(x, block, lambda sums: float(sums.mean[0]), 0.9)
    means = [x[block == i].mean() for i in range(8)]
    expected = stats.t.interval(0.9, 7, np.mean(means), stats.sem(means))
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.mean == pytest.approx(x.mean()) and found.n == 40
    with pytest.raises(ValueError, match="keep 2 images or more"):
        jackknife(x[:2], np.array([0, 1]), lambda sums: 0.0, 0.9)


def test_refuses_what_is_no_set_of_features() -> None:
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        spread(0.0, np.zeros(5), 5, 95)
    for x, message in (
        ([1.0, 2.0], "one D"),
        ([[1.0], [2.0]], "one D"),
        ([[1.0, 2.0]], "2 rows or more"),
        ([[np.nan, 1.0]] * 2, "x holds NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            pair(x, [[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(ValueError, match="all zeros, got 1 such"):
        unit(np.array([[0.0, 0.0], [3.0, 4.0]]))


def test_polynomial_rests_are_those_of_the_images_left() -> None:
    rng = np.random.default_rng(2)
    x, y, block = rng.normal(size=(30, 4)), rng.normal(size=(25, 4)), rng.integers(3, size=30)
    found = polynomial_rests(x, y, block, 4)
    assert found[0] == pytest.approx(polynomial_mmd(x, y)) == pytest.approx(found[4])  # no image is in the last block
    assert found[1:4] == pytest.approx([polynomial_mmd(x[block != i], y) for i in range(3)])
