from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import binom
from sklearn.metrics import cohen_kappa_score

from respodiff.evaluation.metrics.judge_errors import agreement, confusion_matrix, corrected_proportions
from respodiff.evaluation.metrics.shares import share_interval, wilson


def _judges(rng: np.random.Generator, prompts: int = 40, repeats: int = 5, error: float = 0.2) -> tuple[list[str], list[str], list[str]]:
    names = np.array(["man", "woman", "unknown"])
    chance = rng.dirichlet([1, 1, 0.3], size=prompts)
    true = np.concatenate([rng.choice(3, size=repeats, p=row) for row in chance])
    views = [np.where(rng.random(len(true)) < error, rng.integers(3, size=len(true)), true) for _ in range(2)]
    return names[views[0]].tolist(), names[views[1]].tolist(), [f"p{i // repeats:02d}" for i in range(len(true))]


def test_agrees_with_sklearn() -> None:
    for seed in range(5):
        first, second, groups = _judges(np.random.default_rng(seed))
        found = agreement(first, second, groups, n_bootstrap=100)
        assert found[1] is not None and found[1].mean == pytest.approx(cohen_kappa_score(first, second))
        assert found[0].mean == pytest.approx(np.mean(np.array(first) == np.array(second)))
        assert found[0].n == found[1].n == 200


def test_agreement_by_hand() -> None:
    first, second = ["x"] * 45 + ["y"] * 25 + ["x"] * 15 + ["y"] * 15, ["x"] * 45 + ["y"] * 25 + ["y"] * 15 + ["x"] * 15
    found = agreement(first, second, [str(i) for i in range(100)])
    assert found[1] is not None
    assert found[1].mean == pytest.approx((0.7 - 0.52) / 0.48)  # 60 : 40 for both
    assert found[0] == share_interval([int(a == b) for a, b in zip(first, second, strict=True)], [1] * 100)
    assert found[1].low < found[1].mean < found[1].high


def test_one_label_only_has_no_kappa() -> None:
    found = agreement(["x"] * 10, ["x"] * 10, ["a"] * 5 + ["b"] * 5)
    assert found[1] is None and found[0] == wilson(10, 10)


def test_full_agreement_is_not_a_point() -> None:
    labels = ["x", "y"] * 10
    found = agreement(labels, labels, [str(i // 2) for i in range(20)])
    assert found[1] is not None and found[1].mean == found[1].high == 1 and 0.5 < found[1].low < 0.9
    alone = agreement(labels, labels, ["a"] * 20)
    assert alone[1] is not None and alone[1].low == pytest.approx((wilson(20, 20).low - 0.5) / 0.5)


def test_without_a_warning_where_draws_have_one_label() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = agreement(["x", "x", "y"], ["x", "x", "x"], ["a", "b", "c"])
    assert found[1] is not None and found[1].mean == 0 and -1 <= found[1].low <= 0 <= found[1].high <= 1


@pytest.mark.slow
def test_kappa_interval_covers() -> None:
    rng = np.random.default_rng(0)
    found = [agreement(*_judges(rng), n_bootstrap=300, seed=i)[1] for i in range(400)]
    first, second, _ = _judges(rng, prompts=40_000)
    truth = cohen_kappa_score(first, second)
    assert 0.92 <= np.mean([e is not None and e.low <= truth <= e.high for e in found]) <= 0.98


def test_row_order_has_no_influence() -> None:
    first, second, groups = _judges(np.random.default_rng(3))
    order = np.random.default_rng(4).permutation(len(first))
    turned = agreement(*([column[i] for i in order] for column in (first, second, groups)), n_bootstrap=100)
    assert turned == agreement(first, second, groups, n_bootstrap=100) != agreement(first, second, groups, n_bootstrap=100, seed=1)


def test_agreement_refuses() -> None:
    for first, second, groups in ((["x"], ["x", "y"], ["a"]), ([], [], []), (["x"], ["x"], [])):
        with pytest.raises(ValueError, match="one length and not empty"):
            agreement(first, second, groups)
    with pytest.raises(ValueError, match="n_bootstrap must be 1 to 100,000"):
        agreement(["x", "y"], ["x", "y"], ["a", "b"], n_bootstrap=0)


@pytest.mark.parametrize(("se", "sp", "hits"), [(0.9, 0.8, 40), (0.99, 0.97, 93), (0.9, 0.8, 5), (0.8, 0.9, 99), (0.7, 0.6, 50)])
def test_two_classes_are_rogan_gladen(se: float, sp: float, hits: int) -> None:
    labelled = np.round(1000 * np.array([[se, 1 - se], [1 - sp, sp]]))
    first, second = corrected_proportions([hits, 100 - hits], labelled, n_bootstrap=50)
    expected = np.clip((hits / 100 + sp - 1) / (se + sp - 1), 0, 1)
    assert first.mean == pytest.approx(expected, abs=1e-12)
    assert second.mean == pytest.approx(1 - expected, abs=1e-12)
    assert first.low <= first.mean <= first.high and first.n == 100


def test_exact_inverse_of_what_a_judge_does_also_with_unknown() -> None:
    true = np.array([0.2, 0.3, 0.5])
    for rows in ([[80, 10, 10], [10, 90, 0], [0, 20, 80]], [[70, 10, 10, 10], [5, 90, 0, 5], [0, 20, 50, 30]]):
        answers = np.round(10_000 * (true @ (np.array(rows) / 100)))
        found = corrected_proportions(answers, rows, n_bootstrap=50)
        assert [share.mean for share in found] == pytest.approx(true, abs=1e-9)


def test_outside_of_the_simplex_the_nearest_shares_are_taken() -> None:
    rows, answers = np.array([[80, 15, 5], [10, 85, 5], [10, 5, 85]]), np.array([97, 2, 1])
    free = np.linalg.solve(rows.T / 100, answers / 100)
    assert (free < 0).any()
    best = minimize(
        lambda p: ((p - free) ** 2).sum(), np.full(3, 1 / 3), bounds=[(0, 1)] * 3, constraints={"type": "eq", "fun": lambda p: p.sum() - 1}
    )
    found = [share.mean for share in corrected_proportions(answers, rows, n_bootstrap=50)]
    assert found == pytest.approx(best.x, abs=1e-4) and sum(found) == pytest.approx(1)


def test_a_judge_that_never_errs_changes_little() -> None:
    plain, corrected = [wilson(30, 100), wilson(70, 100)], corrected_proportions([30, 70], [[5000, 0], [0, 5000]])
    for a, b in zip(plain, corrected, strict=True):
        assert b.mean == pytest.approx(a.mean) and (b.low, b.high) == pytest.approx((a.low, a.high), abs=0.015)
    few = corrected_proportions([30, 70], [[20, 0], [0, 20]])[0]
    assert few.high - few.low > corrected[0].high - corrected[0].low  # not seen to err among 20 is not known never to err


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.5, 0.93])
def test_plain_coverage_is_exact_binomial(share: float) -> None:
    """The coverage itself, without simulation: the chance of those counts whose interval holds the share."""
    for n in (60, 90, 120, 150, 200):
        intervals = [wilson(k, n) for k in range(n + 1)]
        inside = np.array([e.low <= share <= e.high for e in intervals])
        assert 0.93 <= binom.pmf(np.arange(n + 1), n, share)[inside].sum() <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize(("share", "n", "error"), list(itertools.product((0.1, 0.5, 0.93), (60, 200), (0.01, 0.1))))
def test_corrected_coverage(share: float, n: int, error: float) -> None:
    """1000 judged sets of known share, each with its own 100 labelled images a class."""
    rng = np.random.default_rng(1)
    flip = np.array([[1 - error, error], [error, 1 - error]])
    inside = 0
    for seed in range(1000):
        answers = rng.multinomial(n, [share, 1 - share] @ flip)
        labelled = rng.multinomial(100, flip)
        found = corrected_proportions(answers, labelled, n_bootstrap=250, seed=seed)[0]
        inside += found.low <= share <= found.high
    assert 0.93 <= inside / 1000 <= 0.98


def _clustered(rng: np.random.Generator, groups: int, repeats: int, beta: tuple[float, float], error: float) -> np.ndarray:
    chance = rng.beta(*beta, size=groups)
    hits = rng.binomial(repeats, chance * (1 - error) + (1 - chance) * error)
    return np.stack([hits, repeats - hits], axis=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("groups", "beta", "least"),
    [(g, beta, 0.92) for g in (5, 36) for beta in ((2.0, 2.0), (1.0, 4.0))] + [(36, (0.5, 0.5), 0.92), (5, (0.5, 0.5), 0.9)],
)
def test_corrected_coverage_of_clustered_images(groups: int, beta: tuple[float, float], least: float) -> None:
    """Prompts with shares of their own, 12 images each: pooled as independent images, a nominal .95 is .6 to .85.

    Five prompts of nearly one kind each are the hardest: .922 in 3000 simulations, hence the lower bound of its own.
    """
    rng = np.random.default_rng(2)
    flip = np.array([[0.95, 0.05], [0.05, 0.95]])
    truth, inside = beta[0] / sum(beta), np.zeros(2)
    for seed in range(500):
        answers, labelled = _clustered(rng, groups, 12, beta, 0.05), rng.multinomial(100, flip)
        found = [corrected_proportions(table, labelled, n_bootstrap=300, seed=seed)[0] for table in (answers, answers.sum(0))]
        inside += [e.low <= truth <= e.high for e in found]
        assert found[0].mean == found[1].mean and found[0].low <= found[1].low and found[0].high >= found[1].high
    assert least <= inside[0] / 500 <= 0.985 and inside[1] / 500 < 0.9


def test_groups_of_corrected_shares() -> None:
    rows = [[90, 8, 2], [12, 80, 8]]
    answers = np.random.default_rng(0).multinomial(12, [0.5, 0.4, 0.1], size=9)
    found = corrected_proportions(answers, rows)
    assert found == corrected_proportions(answers[::-1], rows) == corrected_proportions([*answers, [0, 0, 0]], rows)
    assert corrected_proportions([[40, 50, 10]], rows) == corrected_proportions([40, 50, 10], rows)
    assert corrected_proportions([[40, 50, 10], [0, 0, 0]], rows) == corrected_proportions([40, 50, 10], rows)
    alike = corrected_proportions([[4, 5, 1]] * 10, rows)
    assert alike == corrected_proportions([40, 50, 10], rows)  # groups that do not differ make nothing narrower


def test_deterministic() -> None:
    call = ([30, 70], [[90, 10], [20, 80]])
    assert corrected_proportions(*call) == corrected_proportions(*call) != corrected_proportions(*call, seed=1)


@pytest.mark.parametrize(
    ("counts", "confusion", "message"),
    [
        ([1, 1], [[5, 5], [5, 5]], "near singular"),
        ([1, 1, 0], [[9, 2, 9], [8, 2, 10]], "near singular"),
        ([1, 1], [[5, 1, 0], [1, 5, 0]], "confusion must be"),
        ([1, 1], [[1, 1]], "confusion must be"),
        ([0, 0], [[5, 1], [1, 5]], "at least one image"),
        ([1, 1], [[5, 1], [0, 0]], "at least one image"),
        ([0.5, 0.5], [[5, 1], [1, 5]], "counts must be whole numbers"),
        ([1, 1], [[0.9, 0.1], [0.1, 0.9]], "confusion must be whole numbers"),
        ([[[1, 1]]], [[5, 1], [1, 5]], "counts must have 1 or 2 axes"),
        ([[1, 1, 1]], [[5, 1], [1, 5]], "as many columns of counts"),
        ([[0, 0], [0, 0]], [[5, 1], [1, 5]], "at least one image"),
    ],
)
def test_corrected_proportions_refuse(counts: list[float], confusion: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        corrected_proportions(counts, confusion)


def test_confusion_matrix() -> None:
    found = confusion_matrix(["a", "a", "b", "b"], ["a", "b", "b", "unknown"], ["a", "b"])
    assert found.tolist() == [[1, 1, 0], [0, 1, 1]]
    with pytest.raises(ValueError, match=r"\['c'\], which are none"):
        confusion_matrix(["c"], ["a"], ["a", "b"])
