from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from respodiff.evaluation.metrics.agreement import agreement
from respodiff.evaluation.metrics.fairness import share_interval, wilson


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


def test_by_hand() -> None:
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


def test_refuses() -> None:
    for first, second, groups in ((["x"], ["x", "y"], ["a"]), ([], [], []), (["x"], ["x"], [])):
        with pytest.raises(ValueError, match="one length and not empty"):
            agreement(first, second, groups)
    with pytest.raises(ValueError, match="n_bootstrap must be 1 or more"):
        agreement(["x", "y"], ["x", "y"], ["a", "b"], n_bootstrap=0)
