from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import linalg
from torchmetrics.image.fid import _compute_fid

from respodiff.evaluation.metrics import fidelity
from respodiff.evaluation.metrics.fidelity import (
    drift,
    frechet_distance,
    frechet_from_moments,
    frechet_interval,
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
def test_frechet_of_fewer_pictures_than_features(n: int) -> None:
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
    """The distance expected at this size lies inside about 95 % of the intervals, pictures of one prompt being alike."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=(500, 6))
    groups = [f"p{i // 4:02d}" for i in range(240)]
    found = [frechet_interval(_prompts(rng, 6), y, groups, seed=i) for i in range(400)]
    truth = np.mean([e.mean for e in found])
    assert 0.92 <= np.mean([e.low <= truth <= e.high for e in found]) <= 0.98


def test_frechet_interval_is_around_the_distance_and_widens_with_alike_pictures() -> None:
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


def test_split_half_of_one_picture_a_prompt_is_the_size_of_the_bias() -> None:
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
    """At half the number of pictures; prompts differ three times as much as pictures of one do, so halves of prompts are far apart."""
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


def test_drift_by_hand() -> None:
    x, y = [[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], [[3.0, 0.0], [1.0, 0.0], [-1.0, -1.0]]
    found = drift(x, y, ["a", "b", "c"], n_boot=200)
    assert found.mean == pytest.approx((0 + 1 + 2) / 3) and found.n == 3 and 0 <= found.low <= 1 <= found.high <= 2
    same = drift(x, x, ["a", "b", "c"])
    assert (same.low, same.high) == pytest.approx((0, 0))
    with pytest.raises(ValueError, match="pairs of one shape"):
        drift(x, y[:2], ["a", "b", "c"])
