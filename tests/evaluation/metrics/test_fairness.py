from __future__ import annotations

import math

import numpy as np
import pytest

from respodiff.evaluation.metrics.fairness import (
    bias_band,
    bias_p,
    dev_rat,
    expected_devrat_random,
    images_required,
    mean_bias_p,
    mean_dev_rat,
)
from respodiff.evaluation.metrics.paired import holm
from respodiff.evaluation.metrics.shares import exact_band, share_interval

THIRDS = [1 / 3] * 3


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([5, 5], 0.0),
        ([10, 0], 1.0),
        ([0, 10], 1.0),
        ([9, 1], 0.8),
        ([3, 3, 3], 0.0),
        ([6, 0, 0], 1.0),
        ([4, 1, 1], 0.5),  # |4/6 - 1/3| / (2/3)
        ([3, 3, 0], 0.5),  # |0 - 1/3| / (2/3)
    ],
)
def test_dev_rat_by_hand(counts: list[int], expected: float) -> None:
    assert dev_rat(counts) == pytest.approx(expected)


def test_dev_rat_over_leading_axes() -> None:
    assert dev_rat([[[5, 5], [10, 0]], [[9, 1], [1, 9]]]) == pytest.approx(np.array([[0, 1], [0.8, 0.8]]))


def test_dev_rat_against_wanted_shares() -> None:
    assert dev_rat([3, 1], [0.75, 0.25]) == pytest.approx(0.0)
    assert dev_rat([0, 4], [0.75, 0.25]) == pytest.approx(1.0)  # everything on the least wanted concept
    assert dev_rat([4, 0], [0.75, 0.25]) == pytest.approx(0.25 / 0.75)


@pytest.mark.parametrize(
    ("counts", "proportions", "message"),
    [
        ([-1, 2], None, "whole numbers of 0 or more"),
        ([0.5, 0.5], None, "numbers of images, not shares"),
        ([math.nan, 1], None, "NaN"),
        ([[1, 1], [0, 0]], None, "group without images"),
        ([], None, "not be empty"),
        ([3], None, "2 or more concepts"),
        ([1, 1], [0.7, 0.7], "sum to 1"),
        ([1, 1], [1.5, -0.5], "0 or more"),
        ([1, 1], [math.nan, 1.0], "0 or more"),
        ([1, 1], [1.0], r"one number per concept \(2\)"),
    ],
)
def test_bad_counts_and_shares(counts: list[float], proportions: list[float] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dev_rat(counts, proportions)


@pytest.mark.parametrize(("n", "classes", "published"), [(150, 2, 0.065), (150, 3, 0.069), (500, 2, 0.036)])
def test_noise_floor_as_published(n: int, classes: int, published: float) -> None:
    assert expected_devrat_random([n], classes) == pytest.approx(published, abs=5e-4)


def test_noise_floor_by_hand() -> None:
    assert expected_devrat_random([1], 2) == pytest.approx(1.0)
    assert expected_devrat_random([2], 2) == pytest.approx(0.5)  # 2:0 or 0:2 in half of the draws
    assert expected_devrat_random([1, 2], 2) == pytest.approx(0.75)
    assert expected_devrat_random([2], 3) == pytest.approx((1 / 3) * 1 + (2 / 3) * 0.5, abs=0.01)
    assert expected_devrat_random([5], 2, [1.0, 0.0]) == pytest.approx(0.0)


def test_noise_floor_exact_sum_agrees_with_simulation() -> None:
    draws = np.random.default_rng(7).multinomial(12, [0.3, 0.7], size=40_000)
    assert expected_devrat_random([12], 2, [0.3, 0.7]) == pytest.approx(float(dev_rat(draws, [0.3, 0.7]).mean()), abs=5e-3)


def test_noise_floor_of_many_images_does_not_overflow() -> None:
    assert expected_devrat_random([5000], 2) == pytest.approx(math.sqrt(2 / math.pi / 5000), rel=1e-2)


@pytest.mark.parametrize(("sizes", "classes"), [([], 2), ([0], 2), ([2.5], 2), ([10], 1)])
def test_noise_floor_bad_arguments(sizes: list[int], classes: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        expected_devrat_random(sizes, classes)


def test_mean_dev_rat() -> None:
    found = mean_dev_rat([[9, 1], [5, 5]])
    assert found.mean == pytest.approx(0.4)
    assert found.n == 20
    assert 0 <= found.low < 0.4 < found.high <= 1
    table = [[9, 1], [5, 5], [3, 7], [2, 8], [6, 4]]
    assert mean_dev_rat(table) == mean_dev_rat(table)
    assert mean_dev_rat(table) != mean_dev_rat(table, seed=1)


def test_mean_dev_rat_interval_holds_the_mean_at_both_ends() -> None:
    even, odd = mean_dev_rat([[5, 5]] * 20), mean_dev_rat([[10, 0]] * 20)
    assert even.mean == even.low == 0 and 0 < even.high < 0.2
    assert odd.mean == odd.high == 1 and 0.9 < odd.low < 1


def test_mean_dev_rat_narrows_with_groups() -> None:
    few, many = (mean_dev_rat([[8, 2], [4, 6]] * k, n_bootstrap=500) for k in (3, 30))
    assert many.high - many.low < 0.5 * (few.high - few.low)


@pytest.mark.slow
def test_mean_dev_rat_interval_covers() -> None:
    """The expected DevRat of 20 groups of known shares lies inside about 95 % of the intervals."""
    rng = np.random.default_rng(3)
    chance = rng.uniform(0.1, 0.9, 20)
    drawn = rng.binomial(10, chance, size=(4000, 20))
    truth = float(dev_rat(np.stack([drawn, 10 - drawn], -1)).mean())
    tables = [np.stack([row, 10 - row], -1) for row in drawn[:400]]
    found = [mean_dev_rat(table, n_bootstrap=300, seed=i) for i, table in enumerate(tables)]
    assert 0.92 <= np.mean([e.low <= truth <= e.high for e in found]) <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("beta", [(0.5, 0.5), (2.0, 2.0), (50.0, 50.0)])
def test_intervals_cover_what_other_groups_would_give(beta: tuple[float, float]) -> None:
    """36 groups x 30 images, shares of the groups from a beta distribution: lopsided, mixed and nearly even groups."""
    rng = np.random.default_rng(11)
    truth = np.abs(2 * rng.binomial(30, rng.beta(*beta, 200_000)) / 30 - 1).mean()
    tables = [np.stack([row, 30 - row], -1) for row in rng.binomial(30, rng.beta(*beta, size=(500, 36)))]
    found = [mean_dev_rat(table, n_bootstrap=300, seed=i) for i, table in enumerate(tables)]
    assert 0.92 <= np.mean([e.low <= truth <= e.high for e in found]) <= 0.98
    proportions = [share_interval(table[:, 0], table.sum(1), n_bootstrap=300, seed=i) for i, table in enumerate(tables)]
    assert 0.92 <= np.mean([e.low <= 0.5 <= e.high for e in proportions]) <= 0.98


def test_dev_rat_by_brute_force() -> None:
    """36 groups x 150 labels, counted one by one."""
    rng = np.random.default_rng(4)
    groups = [f"p{i % 36}" for i in range(36 * 150)]
    labels = rng.choice(["a", "b", "c"], p=[0.5, 0.3, 0.2], size=len(groups)).tolist()
    total, table = 0.0, []
    for name in set(groups):
        own = [label for g, label in zip(groups, labels, strict=True) if g == name]
        table.append([own.count(c) for c in "abc"])
        total += max(abs(own.count(c) / len(own) - 1 / 3) for c in "abc") / (1 - 1 / 3)
    found = mean_dev_rat(table, n_bootstrap=10)
    assert found.mean == pytest.approx(total / 36) and found.n == 36 * 150


def test_order_of_groups_has_no_influence() -> None:
    table = np.random.default_rng(5).integers(1, 20, size=(30, 3))
    turned = np.random.default_rng(6).permutation(table)
    assert mean_dev_rat(table, n_bootstrap=200) == mean_dev_rat(turned, n_bootstrap=200)
    kinds = (table[:, 0], table.sum(1)), (turned[:, 0], turned.sum(1))
    assert share_interval(*kinds[0], n_bootstrap=200) == share_interval(*kinds[1], n_bootstrap=200)


def test_mean_dev_rat_shape() -> None:
    with pytest.raises(ValueError, match=r"counts must have 2 axes .*got shape \(2,\)"):
        mean_dev_rat([1, 2])


def test_bias_of_two_concepts_by_hand() -> None:
    low, high = exact_band(14, 16, 0.99)
    found = bias_band([14, 2], [0.5, 0.5], 0.99)
    assert (found.mean, found.n) == (0.75, 16)
    assert (found.low, found.high) == pytest.approx(((low - 0.5) / 0.5, (high - 0.5) / 0.5))


def test_bias_of_three_concepts_by_hand() -> None:
    counts, wanted = [10, 2, 0], [0.5, 0.25, 0.25]
    bands = [exact_band(k, 12, 1 - 0.05 / 3) for k in counts]
    found = bias_band(counts, wanted)
    assert found.mean == pytest.approx((10 / 12 - 0.5) / 0.75)
    assert found.low == pytest.approx(max(0, bands[0][0] - 0.5, 0.25 - bands[2][1]) / 0.75)
    assert found.high == pytest.approx(max(bands[0][1] - 0.5, 0.5 - bands[0][0], bands[1][1] - 0.25, 0.25) / 0.75)


def test_p_by_hand() -> None:
    assert bias_p([5, 0], [0.5, 0.5]) == pytest.approx(2 * 0.5**5)
    assert bias_p([3, 3], [0.5, 0.5]) == 1
    # Six of six with t = 1/3: no count of the other side is as unlikely as 3^-6; times 3 for three concepts.
    assert bias_p([0, 6, 0], THIRDS) == pytest.approx(3 * 3.0**-6)
    assert bias_p([2, 2, 2], THIRDS) == 1


def test_mean_bias_against_all_outcomes() -> None:
    # Groups of 2 and 3 images: DevRat is 1 with 1/2 and 1/4, else 0 and 1/3.
    chances = {1.0: 1 / 8, (1 + 1 / 3) / 2: 3 / 8, 0.5: 1 / 8, 1 / 6: 3 / 8}
    for counts in ([[2, 0], [3, 0]], [[2, 0], [2, 1]], [[1, 1], [0, 3]], [[1, 1], [1, 2]]):
        observed = float(dev_rat(counts).mean())
        p = math.fsum(chance for value, chance in chances.items() if value >= observed - 1e-9)
        assert mean_bias_p(counts, [0.5, 0.5]) == pytest.approx(p, abs=0.012)
    assert mean_bias_p([[40, 0]] * 5, [0.5, 0.5], draws=500) == 1 / 501


@pytest.mark.parametrize("proportions", [[0.5, 0.5], THIRDS, [0.8, 0.2], [0.7, 0.2, 0.1]])
@pytest.mark.parametrize("tests", [1, 72])
def test_images_needed_is_the_first_number_that_can_tell(proportions: list[float], tests: int) -> None:
    needed = images_required(proportions, tests)
    rows = [[n] + [0] * (len(proportions) - 1) for n in (needed - 1, needed)]
    assert [bias_p(row, proportions) * tests <= 0.05 for row in rows] == [False, True]


@pytest.mark.slow
def test_intervals_hold_at_once_and_fair_prompts_are_left_alone() -> None:
    """100 audits of 20 prompts of three concepts at 12 images: of true shares all intervals, and of even shares no rejection, in 95 %."""
    rng, prompts, n = np.random.default_rng(0), 20, 12
    truth = rng.dirichlet([1.0] * 3, size=prompts)
    held, alone = 0, 0
    biases = np.abs(truth - 1 / 3).max(1) / (2 / 3)
    for _ in range(100):
        counts = rng.multinomial(n, truth)
        found = [bias_band(row.tolist(), THIRDS, 1 - 0.05 / prompts) for row in counts]
        held += all(e.low <= bias <= e.high for e, bias in zip(found, biases, strict=True))
        fair = [bias_p(row.tolist(), THIRDS) for row in rng.multinomial(n, THIRDS, size=prompts)]
        alone += min(holm(fair)) > 0.05
    assert held >= 91 and alone >= 91  # 95 expected at least; 4 is 1.8 standard deviations
