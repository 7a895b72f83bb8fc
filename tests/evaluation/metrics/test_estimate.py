"""Cluster bootstraps: the draws, their correction for few groups, and what the intervals made of them really cover."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from respodiff.evaluation.metrics import estimate
from respodiff.evaluation.metrics.distances import drift
from respodiff.evaluation.metrics.estimate import Estimate, ends, mean_interval, ratio_draws, stretch, summed_draws
from respodiff.evaluation.metrics.judge_errors import agreement
from respodiff.evaluation.metrics.shares import flagged_share, share_interval, wilson

FEW = (2, 3, 5, 10, 36)
RUNS = 600


def _covers(found: list[Estimate], truth: float) -> float:
    return float(np.mean([e.low <= truth <= e.high for e in found]))


def test_ratio_draws_in_parts_are_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tops, bottoms = [1.0, 2.0, 4.0], [2.0, 2.0, 5.0]
    whole = ratio_draws(tops, bottoms, n_bootstrap=100, seed=1)
    sums = summed_draws(np.eye(3), n_bootstrap=100, seed=1)
    monkeypatch.setattr(estimate, "DRAW_CELLS", 21)
    assert ratio_draws(tops, bottoms, n_bootstrap=100, seed=1).tolist() == whole.tolist()
    assert summed_draws(np.eye(3), n_bootstrap=100, seed=1).tolist() == sums.tolist() and (sums.sum(1) == 3).all()
    chosen = np.random.default_rng(1).integers(3, size=(100, 3))
    assert whole == pytest.approx(np.array(tops)[chosen].sum(1) / np.array(bottoms)[chosen].sum(1))
    with pytest.raises(ValueError, match="n_bootstrap must be 1 to 100,000"):
        ratio_draws([1], [1], n_bootstrap=0)


@pytest.mark.parametrize("groups", [5, 10, 36])
def test_stretched_draws_give_the_t_interval_of_group_means(groups: int) -> None:
    means = stats.norm.ppf((np.arange(groups) + 0.5) / groups)
    low, high = ends(ratio_draws(means, np.ones(groups), n_bootstrap=20_000), float(means.mean()), groups, 0.95)
    expected = stats.t.ppf(0.975, groups - 1) * stats.sem(means)
    assert (-low, high) == pytest.approx((expected, expected), rel=0.06)


def test_stretch_by_hand() -> None:
    assert stretch([0.0, 2.0], 1.0, 1, 0.95).tolist() == [0, 2]
    factor = stats.t.ppf(0.95, 4) / stats.norm.ppf(0.95) * np.sqrt(5 / 4)
    assert stretch([[0.0, 3.0], [2.0, 5.0]], [1.0, 4.0], 5, 0.9) == pytest.approx(np.add.outer([-factor, factor], [1.0, 4.0]))
    assert ends([3.0, 3.0], 2.0, 1, 0.95) == (2.0, 3.0)


@pytest.mark.slow
@pytest.mark.parametrize("groups", FEW)
def test_shares_cover_whatever_the_number_of_groups(groups: int) -> None:
    rng = np.random.default_rng(groups)
    hits = rng.binomial(12, rng.beta(2, 2, size=(RUNS, groups)))
    found = [share_interval(row, [12] * groups, n_bootstrap=300, seed=i) for i, row in enumerate(hits)]
    assert 0.91 <= _covers(found, 0.5) <= 0.99
    assert all(e.low <= (least := wilson(row.sum(), 12 * groups)).low and e.high >= least.high for e, row in zip(found, hits, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("groups", FEW)
def test_means_cover_whatever_the_number_of_groups(groups: int) -> None:
    rng = np.random.default_rng(100 + groups)
    values = (rng.normal(size=(RUNS, groups, 1)) + rng.normal(size=(RUNS, groups, 4))).reshape(RUNS, -1)
    names = [f"p{i // 4}" for i in range(4 * groups)]
    assert 0.91 <= _covers([mean_interval(row, names, n_bootstrap=300, seed=i) for i, row in enumerate(values)], 0.0) <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("groups", FEW)
def test_drift_covers_whatever_the_number_of_groups(groups: int) -> None:
    rng = np.random.default_rng(200 + groups)
    distance = 0.2 + 0.8 * rng.beta(2, 2, size=(400, groups, 1)) + rng.uniform(-0.2, 0.2, size=(400, groups, 4))  # 0.6 on average
    names = [f"p{i // 4}" for i in range(4 * groups)]
    plain = np.tile([1.0, 0.0], (4 * groups, 1))
    turned = np.stack([1 - distance, np.sqrt(1 - (1 - distance) ** 2)], -1).reshape(400, -1, 2)
    found = [drift(x, plain, names, n_bootstrap=300, seed=i) for i, x in enumerate(turned)]
    assert 0.91 <= _covers(found, 0.6) <= 0.99 and all(e.low >= 0 and e.high <= 2 for e in found)


@pytest.mark.slow
@pytest.mark.parametrize("groups", FEW)
def test_flagged_shares_cover_whatever_the_number_of_prompts(groups: int) -> None:
    rng = np.random.default_rng(300 + groups)
    flags = (rng.random((400, groups, 6)) < rng.beta(2, 3, size=(400, groups, 1))).reshape(400, -1)
    names = [f"p{i // 6}" for i in range(6 * groups)]
    assert (
        0.91
        <= _covers([flagged_share(row, names, dict.fromkeys(names, 1), n_bootstrap=300, seed=i) for i, row in enumerate(flags)], 0.4)
        <= 0.99
    )


@pytest.mark.slow
@pytest.mark.parametrize("groups", FEW)
def test_agreement_covers_whatever_the_number_of_groups(groups: int) -> None:
    """Two judges who answer alike in a share of images that differs by prompt: raw agreement .8, kappa .6."""
    rng = np.random.default_rng(400 + groups)
    margin = rng.beta(3, 2, size=(400, groups, 1))
    first, other = rng.random((2, 400, groups, 10)) < 0.5
    second = np.where(rng.random((400, groups, 10)) < margin, first, other)
    names, text = [f"p{i // 10}" for i in range(10 * groups)], np.array(["x", "y"])
    found = [
        agreement(text[a.astype(int)].tolist(), text[b.astype(int)].tolist(), names, n_bootstrap=300, seed=i)
        for i, (a, b) in enumerate(zip(first.reshape(400, -1), second.reshape(400, -1), strict=True))
    ]
    assert 0.91 <= _covers([raw for raw, _ in found], 0.8) <= 0.99
    assert 0.91 <= _covers([kappa for _, kappa in found if kappa], 0.6) <= 0.99


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
