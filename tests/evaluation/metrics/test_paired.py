from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests

from respodiff.evaluation.metrics.fairness import dev_rat, mean_dev_rat
from respodiff.evaluation.metrics.paired import PairedTest, devrat_test, holm, mcnemar


def _pairs(both: int, lost: int, gained: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    sizes = [both, lost, gained, neither]
    return np.repeat([True, True, False, False], sizes), np.repeat([True, False, True, False], sizes)


def _of_one_group(before: np.ndarray, after: np.ndarray) -> PairedTest:
    """Pairs taken as independent."""
    return mcnemar(before, after, ["g"] * len(before), n_bootstrap=1)


@pytest.mark.parametrize("table", [(5, 3, 9, 20), (0, 0, 0, 4), (10, 6, 6, 2), (0, 1, 0, 0), (100, 40, 12, 30)])
def test_mcnemar_agrees_with_statsmodels(table: tuple[int, int, int, int]) -> None:
    found = _of_one_group(*_pairs(*table))
    both, lost, gained, neither = table
    assert found.p == pytest.approx(reference_mcnemar([[both, lost], [gained, neither]], exact=True).pvalue)
    assert found.difference.n == sum(table)
    assert found.difference.mean == pytest.approx((gained - lost) / sum(table))
    assert -1 <= found.difference.low <= found.difference.mean <= found.difference.high <= 1


@pytest.mark.slow
def test_mcnemar_interval_covers() -> None:
    rng = np.random.default_rng(0)
    for n, before, after in ((60, 0.5, 0.3), (60, 0.1, 0.2), (200, 0.3, 0.1)):
        inside = 0
        for _ in range(1000):
            same, u = rng.random(n) < 0.5, rng.random(n)
            found = _of_one_group(u < before, np.where(same, u, rng.random(n)) < after).difference
            inside += found.low <= after - before <= found.high
        assert 0.93 <= inside / 1000 <= 0.985


def test_mcnemar_refuses() -> None:
    for before, after in (([1, 0], [0, 1]), ([True], [True, False]), ([], [])):
        with pytest.raises(ValueError, match="booleans"):
            mcnemar(before, after, ["g"] * len(after))


@pytest.mark.slow
@pytest.mark.parametrize("groups", [2, 3, 5, 10, 36])
def test_mcnemar_interval_covers_over_prompts(groups: int) -> None:
    """Prompts differ in how often a method changes an image: by .5 - .375 on average, which pairs taken as independent often miss."""
    rng = np.random.default_rng(groups)
    names, inside = [f"p{i // 10}" for i in range(10 * groups)], np.zeros(2)
    for seed in range(400):
        before = rng.random(10 * groups) < np.repeat(rng.beta(2, 2, groups), 10)
        after = rng.random(10 * groups) < np.repeat(rng.beta(3, 5, groups), 10)
        found, plain = mcnemar(before, after, names, n_bootstrap=300, seed=seed), _of_one_group(before, after)
        assert found.p == plain.p and found.difference.low <= plain.difference.low and found.difference.high >= plain.difference.high
        inside += [e.difference.low <= -0.125 <= e.difference.high for e in (found, plain)]
    assert 0.91 <= inside[0] / 400 <= 0.99 and inside[1] / 400 < 0.88


def test_mcnemar_with_groups() -> None:
    before, after = _pairs(5, 3, 9, 20)
    names, order = [f"p{i % 5}" for i in range(37)], np.random.default_rng(0).permutation(37)
    assert mcnemar(before[order], after[order], [names[i] for i in order]) == mcnemar(before, after, names)
    with pytest.raises(ValueError, match="one for each of 36 groups"):
        mcnemar(before, after, names[1:])


def test_permutation_of_dev_rat_agrees_with_scipy() -> None:
    rng = np.random.default_rng(2)
    groups = [f"p{i // 10}" for i in range(40)]
    index = np.arange(40) // 10
    a, b = rng.integers(2, size=40), (rng.random(40) < np.repeat([0.9, 0.8, 0.9, 0.2], 10)).astype(int)

    def lopsided(x: np.ndarray) -> float:
        return float(np.mean([abs(2 * x[index == g].mean() - 1) for g in range(4)]))

    reference = stats.permutation_test(
        (a, b), lambda x, y: lopsided(x) - lopsided(y), permutation_type="samples", n_resamples=2000, vectorized=False, rng=0
    )
    found = devrat_test(a, b, groups, [0, 1], permutations=5000)
    assert found.difference.mean == pytest.approx(reference.statistic)
    assert found.p == pytest.approx(reference.pvalue, abs=0.03)


def test_permutation_of_dev_rat_keeps_its_level_under_the_null() -> None:
    """DevRat of counts is discrete: many permutations tie with no difference at all, so large p are more frequent; small ones are not."""
    rng = np.random.default_rng(3)
    groups, p = [f"p{i // 20}" for i in range(240)], []
    for seed in range(500):
        a, b = (rng.random((2, 240)) < np.repeat(rng.beta(1, 1, 12), 20)).astype(int)
        p.append(devrat_test(a, b, groups, [0, 1], permutations=199, n_bootstrap=1, seed=seed).p)
    for level in (0.05, 0.1, 0.2, 0.5):
        error = 3 * np.sqrt(level * (1 - level) / 500)
        assert 0.6 * level - error < np.mean(np.array(p) <= level) < level + error


def test_permutation_finds_a_difference_and_never_gives_zero() -> None:
    columns = ["x"] * 50, ["x", "y"] * 25, ["g"] * 50
    same = devrat_test(columns[0], columns[0], columns[2], ["x", "y"])
    assert same.p == 1.0 and same.difference.mean == 0.0
    other = devrat_test(*columns, ["x", "y"], permutations=99)
    assert (other.difference.mean, other.p, other.difference.n) == (1.0, 0.01, 50)
    assert other == devrat_test(*columns, ["x", "y"], permutations=99) != devrat_test(*columns, ["x", "y"], permutations=99, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [2, 3, 5, 10, 36])
def test_devrat_difference_covers_whatever_the_number_of_groups(groups: int) -> None:
    """b answers 30 % of the pairs as a would, and its prompts are evener."""
    rng = np.random.default_rng(groups)

    def runs(number: int) -> tuple[np.ndarray, np.ndarray]:
        chance = rng.beta(2, 2, size=(number, groups, 1))
        u = rng.random((number, groups, 12))
        v = np.where(rng.random(u.shape) < 0.3, u, rng.random(u.shape))
        return (u < chance).astype(int), (v < 0.25 + chance / 2).astype(int)

    def each(labels: np.ndarray) -> np.ndarray:
        ones = labels.sum(-1)
        return dev_rat(np.stack([ones, 12 - ones], -1))

    many = runs(200_000 // groups)
    truth = float(each(many[0]).mean() - each(many[1]).mean())
    names = [f"p{i // 12}" for i in range(12 * groups)]
    found = [
        devrat_test(a.ravel(), b.ravel(), names, [0, 1], permutations=1, n_bootstrap=300, seed=i).difference
        for i, (a, b) in enumerate(zip(*runs(400), strict=True))
    ]
    assert 0.91 <= np.mean([e.low <= truth <= e.high for e in found]) <= 0.995


def test_devrat_difference_of_one_group_is_no_point() -> None:
    for a, b in ((["x"] * 20, ["x"] * 20), (["x"] * 20, ["x", "y"] * 10), (["x", "x"], ["y", "x"])):
        found = devrat_test(a, b, ["g"] * len(a), ["x", "y"]).difference
        assert -1 <= found.low < found.high <= 1 and found.low <= found.mean <= found.high
    pair = devrat_test(["x", "y"] * 20, ["x", "y"] * 20, ["g", "h"] * 20, ["x", "y"]).difference
    assert pair.mean == 0 and pair.low < 0 < pair.high


def test_devrat_difference_refuses() -> None:
    good = (["x", "y"], ["y", "y"], ["g", "g"], ["x", "y"])
    for place, bad, message in (
        (0, ["x"], "one length"),
        (2, ["g"], "one length"),
        (3, ["x", "x"], "2 or more different labels"),
        (1, ["?", "?"], "must each hold a label"),
        (3, ["x"], "2 or more concepts"),
    ):
        with pytest.raises(ValueError, match=message):
            devrat_test(*[bad if i == place else value for i, value in enumerate(good)])
    with pytest.raises(ValueError, match="n_bootstrap must be 1 to 100,000"):
        devrat_test(*good, n_bootstrap=0)
    with pytest.raises(ValueError, match="sum to 1"):
        devrat_test(*good, proportions=[0.9, 0.9])


def test_devrat_difference_agrees_with_fairness() -> None:
    rng = np.random.default_rng(7)
    a, b = rng.choice(["x", "y", "z", "?"], p=[0.4, 0.2, 0.1, 0.3], size=(2, 90))
    groups = [f"p{i // 3:02d}" for i in range(90)]  # some of which are unknown in full

    def mean(labels: np.ndarray, proportions: list[float] | None) -> float:
        table = [[int((labels[i : i + 3] == c).sum()) for c in "xyz"] for i in range(0, 90, 3)]
        return mean_dev_rat([row for row in table if sum(row)], proportions=proportions, n_bootstrap=1).mean

    for proportions in (None, [0.5, 0.3, 0.2]):
        found = devrat_test(a, b, groups, ["x", "y", "z"], proportions=proportions, n_bootstrap=200).difference
        assert (
            found.mean == pytest.approx(mean(a, proportions) - mean(b, proportions))
            and found.n == 90
            and found.low < found.mean < found.high
        )
        turned = devrat_test(b, a, groups, ["x", "y", "z"], proportions=proportions, n_bootstrap=200).difference
        assert turned.mean == pytest.approx(-found.mean)
    order = rng.permutation(90)
    turned = devrat_test(a[order], b[order], [groups[i] for i in order], ["x", "y"]).difference
    assert turned == devrat_test(a, b, groups, ["x", "y"]).difference


def test_holm_agrees_with_statsmodels() -> None:
    rng = np.random.default_rng(6)
    for p in (rng.random(36) ** 3, [0.5], [0.01, 0.01, 0.9, 1.0], [0.0, 0.2]):
        assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    found = holm(rng.random(20))
    assert (found <= 1).all()
    for bad in ([], [1.5], [float("nan")], [[0.1]]):
        with pytest.raises(ValueError, match="p must be"):
            holm(bad)
