from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import linalg
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from respodiff.evaluation.metrics import fidelity
from respodiff.evaluation.metrics.fidelity import (
    cmmd,
    drift,
    frechet_distance,
    frechet_from_moments,
    frechet_interval,
    kid,
    polynomial_mmd,
    split_half_distance,
)
from respodiff.evaluation.metrics.moments import deal


def _sets(n: int, m: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(size, size))
    return rng.normal(size=(n, size)) @ mix + 0.5, rng.normal(size=(m, size)) * rng.uniform(0.5, 2, size)


def test_frechet_of_diagonal_normals_by_hand() -> None:
    # (1 - 3)^2 + 0 + (2 - 1)^2 + (3 - 5)^2
    assert frechet_from_moments([1.0, 2.0], np.diag([4.0, 9.0]), [3.0, 2.0], np.diag([1.0, 25.0])) == pytest.approx(9.0)


def test_frechet_of_commuting_covariances() -> None:
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    a, b = np.array([0.0, 1, 2, 3, 4, 5]), np.array([1.0, 0, 2, 7, 0.5, 0])
    found = frechet_from_moments(np.zeros(6), turn @ np.diag(a**2) @ turn.T, np.ones(6), turn @ np.diag(b**2) @ turn.T)
    assert found == pytest.approx(6 + ((a - b) ** 2).sum(), abs=1e-6)


def test_frechet_agrees_with_two_other_computations() -> None:
    x, y = _sets(300, 200, 12)
    moments = [(s.mean(0), np.cov(s.T)) for s in (x, y)]
    (m, s), (n, t) = moments
    root = linalg.sqrtm(s @ t)
    expected = ((m - n) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * np.trace(np.real(root))
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    theirs = _compute_fid(*(torch.from_numpy(np.ascontiguousarray(a)) for a in (m, s, n, t)))
    assert frechet_distance(x, y) == pytest.approx(float(theirs), rel=1e-6)
    assert frechet_distance(y, x) == pytest.approx(frechet_distance(x, y))


@pytest.mark.parametrize("n", [2, 5, 40])
def test_frechet_of_fewer_images_than_features(n: int) -> None:
    x, y = _sets(n, n, 30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = frechet_distance(x, y)
    assert math.isfinite(found) and found > 0
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-4) and frechet_distance(x, x) >= 0


def test_frechet_refuses_what_is_no_moment() -> None:
    with pytest.raises(ValueError, match="got shapes"):
        frechet_from_moments([0.0, 1.0], [[1.0]], [0.0], [[1.0]])
    with pytest.raises(ValueError, match="finite"):
        frechet_from_moments([0.0], [[math.nan]], [0.0], [[1.0]])
    with pytest.raises(ValueError, match="y holds NaN or infinity"):
        frechet_distance([[1.0], [2.0]], [[1.0], [math.inf]])


def _prompts(rng: np.random.Generator, size: int, prompts: int = 60, repeats: int = 4) -> np.ndarray:
    common = np.repeat(rng.normal(size=(prompts, size)), repeats, 0)
    return np.sqrt(0.5) * (common + rng.normal(size=common.shape)) + 0.3


def test_frechet_interval_covers() -> None:
    """The distance expected at this size lies inside about 95 % of the intervals, images of one prompt being alike."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=(500, 6))
    groups = [f"p{i // 4:02d}" for i in range(240)]
    found = [frechet_interval(_prompts(rng, 6), y, groups, seed=i) for i in range(400)]
    truth = np.mean([e.mean for e in found])
    assert 0.92 <= np.mean([e.low <= truth <= e.high for e in found]) <= 0.98


def test_frechet_interval_is_around_the_distance_and_widens_with_alike_images() -> None:
    rng = np.random.default_rng(1)
    x, y = _prompts(rng, 5), rng.normal(size=(300, 5))
    groups = [f"p{i // 4}" for i in range(240)]
    found = frechet_interval(x, y, groups)
    assert found.mean == pytest.approx(frechet_distance(x, y)) and found.low < found.mean < found.high and found.n == 240
    assert found == frechet_interval(x, y, groups)
    alone = frechet_interval(x, y, [str(i) for i in range(240)])
    assert found.high - found.low > 1.2 * (alone.high - alone.low)
    order = rng.permutation(240)
    assert frechet_interval(x[order], y, [groups[i] for i in order]).high == pytest.approx(found.high)
    with pytest.raises(ValueError, match="groups must name"):
        frechet_interval(x, y, groups[1:])


def test_split_half_of_one_image_a_prompt_is_the_size_of_the_bias() -> None:
    rng = np.random.default_rng(2)
    x, groups = rng.normal(size=(400, 10)), [str(i) for i in range(400)]
    found = split_half_distance(x, groups, splits=4)
    fresh = np.mean([frechet_distance(rng.normal(size=(200, 10)), rng.normal(size=(200, 10))) for _ in range(30)])
    assert found.low <= found.mean <= found.high and found.n == 400
    assert found.mean == pytest.approx(fresh, rel=0.25)
    assert found == split_half_distance(x, groups, splits=4) != split_half_distance(x, groups, splits=4, seed=9)
    with pytest.raises(ValueError, match="splits must be 1 or more"):
        split_half_distance(x, groups, splits=0)


def test_split_half_is_how_far_two_runs_on_the_same_prompts_are_apart() -> None:
    """At half the number of images; prompts differ three times as much as images of one do, so halves of prompts are far apart."""
    halves, apart, by_prompt = [], [], []
    groups = [f"p{i // 20:02d}" for i in range(600)]
    for seed in range(100):
        rng = np.random.default_rng(seed)
        common = 3 * rng.normal(size=(30, 6))
        x = np.repeat(common, 20, 0) + rng.normal(size=(600, 6))
        first, second = np.repeat(common, 10, 0) + rng.normal(size=(2, 300, 6))
        halves.append(split_half_distance(x, groups, splits=2, seed=seed).mean)
        apart.append(frechet_distance(first, second))
        half = deal(groups, 600, 2, seed)
        by_prompt.append(frechet_distance(x[half == 0], x[half == 1]))
    error = np.std(np.subtract(halves, apart)) / 10
    assert abs(np.mean(halves) - np.mean(apart)) < 3 * error and error < 0.05 * np.mean(apart)
    assert np.mean(halves) < 0.05 * np.mean(by_prompt)


def test_split_half_shares_out_every_prompt_whatever_the_row_order(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [name for name, n in (("a", 5), ("b", 4), ("c", 1), ("d", 1), ("e", 7), ("f", 1)) for _ in range(n)]
    x = np.stack([np.array([ord(g) for g in groups], dtype=float), np.arange(19.0) ** 2], axis=1)
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    monkeypatch.setattr(fidelity, "frechet_distance", lambda a, b: seen.append((a, b)) or 0.0)
    order = np.random.default_rng(0).permutation(19)
    split_half_distance(x, groups)
    split_half_distance(x[order], [groups[i] for i in order])
    for (a, b), turned in zip(seen[:5], seen[5:], strict=True):
        assert (len(a), len(b)) == (10, 9) and a.tolist() == turned[0].tolist() and b.tolist() == turned[1].tolist()
        for name in "abe":
            assert abs((a[:, 0] == ord(name)).sum() - (b[:, 0] == ord(name)).sum()) <= 1
    assert len({tuple(sorted(a[:, 1])) for a, _ in seen}) == 5
    with pytest.raises(ValueError, match="groups must name"):
        split_half_distance(x, groups[1:])
    with pytest.raises(ValueError, match="4 rows or more"):
        split_half_distance(x[:3], groups[:3])


def _double_loop(x: np.ndarray, y: np.ndarray) -> float:
    def mean(a: np.ndarray, b: np.ndarray, same: bool) -> float:
        terms = [(float(p @ q) / len(p) + 1) ** 3 for i, p in enumerate(a) for j, q in enumerate(b) if not (same and i == j)]
        return sum(terms) / len(terms)

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def test_polynomial_mmd_agrees_with_a_double_loop_and_torchmetrics() -> None:
    x, y = _sets(20, 20, 6)
    assert polynomial_mmd(x, y) == pytest.approx(_double_loop(x, y))
    assert polynomial_mmd(x, y) == pytest.approx(float(poly_mmd(torch.from_numpy(x), torch.from_numpy(y))))
    assert polynomial_mmd(x, y[:11]) == pytest.approx(_double_loop(x, y[:11]))


def test_kid_is_the_mean_of_disjoint_subsets() -> None:
    x, y = _sets(300, 200, 6)
    found = kid(x, y, size=20, subsets=8, blocks=5, seed=4)
    rng = np.random.default_rng(4)
    order, other = rng.permutation(300), rng.permutation(200)
    parts = [polynomial_mmd(x[order[i : i + 20]], y[other[i : i + 20]]) for i in range(0, 160, 20)]
    assert found.mean == pytest.approx(np.mean(parts)) and found.n == 160 and found.low < found.mean < found.high
    assert found == kid(x, y, size=20, subsets=8, blocks=5, seed=4) != kid(x, y, size=20, subsets=8, blocks=5)
    for bad in ({"size": 1}, {"subsets": 0}):
        with pytest.raises(ValueError, match="size must be 2 or more and subsets 1 or more"):
            kid(x, y, **bad)
    with pytest.raises(ValueError, match="take larger subsets"):
        kid(x, y, size=2, blocks=2)


def test_kid_of_one_subset_is_the_whole() -> None:
    x, y = _sets(60, 60, 5)
    assert kid(x, y).mean == pytest.approx(polynomial_mmd(x, y))


@pytest.mark.parametrize("size", [60, 1000])
def test_kid_interval_covers(size: int) -> None:
    """Also with images of one prompt alike, if the prompts are given."""
    rng = np.random.default_rng(5)
    y = rng.normal(size=(240, 6))
    groups = [f"p{i // 4:02d}" for i in range(240)]
    found = [kid(_prompts(rng, 6), y, groups, size=size, seed=0) for _ in range(400)]
    truth = np.mean([e.mean for e in found])
    assert 0.92 <= np.mean([e.low <= truth <= e.high for e in found]) <= 0.98


def test_kid_is_unbiased() -> None:
    rng = np.random.default_rng(6)
    alike = [kid(rng.normal(size=(100, 5)), rng.normal(size=(100, 5))).mean for _ in range(300)]
    assert abs(np.mean(alike)) < 3 * np.std(alike) / math.sqrt(300)


def _brute_cmmd(x: np.ndarray, y: np.ndarray, biased: bool) -> float:
    x, y = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, y))

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * 10.0**2))

    within = 0.0
    for a in (x, y):
        k = kernel(a, a)
        within += k.mean() if biased else (k.sum() - np.trace(k)) / (len(a) * (len(a) - 1))
    return 1000 * (within - 2 * kernel(x, y).mean())


@pytest.mark.parametrize("biased", [True, False])
def test_cmmd_agrees_with_all_pairs(biased: bool) -> None:
    rng = np.random.default_rng(6)
    for shift, spread in ((0.5, 1.0), (0.1, 1.0), (0.0, 3.0)):
        x, y = rng.normal(size=(150, 8)) * [spread, *[1] * 7] + shift, rng.normal(size=(120, 8))
        assert cmmd(x, y, biased=biased).mean == pytest.approx(_brute_cmmd(x, y, biased), rel=1e-2, abs=1e-4)
    opposite = np.array([[1.0, 0.0]] * 3), np.array([[-1.0, 0.0]] * 3)
    assert abs(cmmd(*opposite, biased=biased).mean - _brute_cmmd(*opposite, biased)) < 7e-4


def test_cmmd_of_a_set_with_itself() -> None:
    x = np.random.default_rng(7).normal(size=(40, 8))
    assert cmmd(x, x, biased=True).mean == pytest.approx(0, abs=1e-9)
    assert cmmd(x, 3 * x, biased=True).mean == pytest.approx(0, abs=1e-9)  # lengths have no influence
    with pytest.raises(ValueError, match="all zeros"):
        cmmd(np.zeros((4, 8)), x)


def test_cmmd_interval_covers() -> None:
    rng = np.random.default_rng(8)
    y = rng.normal(size=(500, 6)) + 1
    groups = [f"p{i // 4:02d}" for i in range(240)]
    found = [cmmd(_prompts(rng, 6) + 0.5, y, groups, seed=i) for i in range(400)]
    truth = np.mean([e.mean for e in found])
    assert 0.92 <= np.mean([e.low <= truth <= e.high for e in found]) <= 0.98


def test_drift_by_hand() -> None:
    x, y = [[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], [[3.0, 0.0], [1.0, 0.0], [-1.0, -1.0]]
    found = drift(x, y, ["a", "b", "c"], n_bootstrap=200)
    assert found.mean == pytest.approx((0 + 1 + 2) / 3) and found.n == 3 and 0 <= found.low <= 1 <= found.high <= 2
    same = drift(x, x, ["a", "b", "c"])
    assert (same.low, same.high) == pytest.approx((0, 0))
    with pytest.raises(ValueError, match="pairs of one shape"):
        drift(x, y[:2], ["a", "b", "c"])
