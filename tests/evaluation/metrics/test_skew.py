"""Bias of single groups: exact intervals, tests, and what they promise when many are looked at."""

from __future__ import annotations

import math

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from respodiff.evaluation.metrics.fairness import dev_rat
from respodiff.evaluation.metrics.paired import holm
from respodiff.evaluation.metrics.skew import bias_band, bias_p, exact_band, images_required, mean_bias_p

THIRDS = [1 / 3] * 3


@pytest.mark.parametrize(("count", "n"), [(0, 1), (0, 16), (3, 16), (16, 16), (7, 12)])
@pytest.mark.parametrize("level", [0.95, 0.9995])
def test_the_exact_band_against_statsmodels(count: int, n: int, level: float) -> None:
    assert exact_band(count, n, level) == pytest.approx(proportion_confint(count, n, alpha=1 - level, method="beta"))


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


@pytest.mark.parametrize(("count", "n", "level"), [(3, 2, 0.95), (-1, 2, 0.95), (0, 0, 0.95), (1, 2, 1.0)])
def test_refuses(count: int, n: int, level: float) -> None:
    with pytest.raises(ValueError, match=r"count must lie in|level must lie"):
        exact_band(count, n, level)
