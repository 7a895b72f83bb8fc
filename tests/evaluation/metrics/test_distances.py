"""Frechet distance, KID and paired feature distance, against other implementations and by simulation."""

from __future__ import annotations

import math
import resource
import time
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import linalg, stats
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from respodiff.evaluation.metrics import distances
from respodiff.evaluation.metrics.distances import (
    _frechet,
    _root,
    deal,
    drift,
    frechet_distance,
    frechet_interval,
    kid,
    split_half_distance,
)


def _sets(n: int, m: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(size, size))
    return rng.normal(size=(n, size)) @ mix + 0.5, rng.normal(size=(m, size)) * rng.uniform(0.5, 2, size)


def frechet_from_moments(mean_x: object, cov_x: object, mean_y: object, cov_y: object) -> float:
    moments = [np.asarray(a, dtype=float) for a in (mean_x, cov_x, mean_y, cov_y)]
    return _frechet(*moments, _root(moments[3]))


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


def _prompts(rng: np.random.Generator, size: int, prompts: int = 60, repeats: int = 4) -> np.ndarray:
    common = np.repeat(rng.normal(size=(prompts, size)), repeats, 0)
    return np.sqrt(0.5) * (common + rng.normal(size=common.shape)) + 0.3


@pytest.mark.slow
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
        half = deal(groups, 2, seed)
        by_prompt.append(frechet_distance(x[half == 0], x[half == 1]))
    error = np.std(np.subtract(halves, apart)) / 10
    assert abs(np.mean(halves) - np.mean(apart)) < 3 * error and error < 0.05 * np.mean(apart)
    assert np.mean(halves) < 0.05 * np.mean(by_prompt)


def test_split_half_shares_out_every_prompt_whatever_the_row_order(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [name for name, n in (("a", 5), ("b", 4), ("c", 1), ("d", 1), ("e", 7), ("f", 1)) for _ in range(n)]
    x = np.stack([np.array([ord(g) for g in groups], dtype=float), np.arange(19.0) ** 2], axis=1)
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    monkeypatch.setattr(distances, "frechet_distance", lambda a, b: seen.append((a, b)) or 0.0)
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
    found = drift(x, y, ["a", "b", "c"], n_bootstrap=200)
    assert found.mean == pytest.approx((0 + 1 + 2) / 3) and found.n == 3 and 0 <= found.low <= 1 <= found.high <= 2
    same = drift(x, x, ["a", "b", "c"])
    assert (same.low, same.high) == pytest.approx((0, 0))
    with pytest.raises(ValueError, match="pairs of one shape"):
        drift(x, y[:2], ["a", "b", "c"])


def test_deal_keeps_prompts_together_whatever_the_row_order() -> None:
    groups = [f"p{i % 12}" for i in range(60)]
    block = deal(groups, 4, 3)
    assert np.bincount(block).tolist() == [15] * 4
    assert all(len(set(block[[i for i, g in enumerate(groups) if g == name]])) == 1 for name in set(groups))
    assert deal(groups[::-1], 4, 3).tolist() == block[::-1].tolist()
    assert deal(groups, 100, 3).max() == 11
    with pytest.raises(ValueError, match="2 prompts or more"):
        deal(["a"] * 60, 4, 0)


def _names(counts: Sequence[int]) -> list[str]:
    return [f"p{i:03d}" for i, n in enumerate(counts) for _ in range(n)]


def _runs(
    rng: np.random.Generator, counts: Sequence[int], others: Sequence[int] | None = None, shift: float = 0.0, size: int = 6
) -> tuple[np.ndarray, np.ndarray]:
    common = rng.normal(size=(len(counts), size)) + 1
    x, y = (np.repeat(common, n, 0) for n in (counts, others or counts))
    return x + rng.normal(size=x.shape) + shift, y + rng.normal(size=y.shape)


def _brute(x: np.ndarray, y: np.ndarray, groups: list[str], others: list[str]) -> float:
    """All pairs one by one; those of one prompt skipped."""

    def mean(a: np.ndarray, b: np.ndarray, first: list[str], second: list[str]) -> float:
        pairs = [(p, q) for p, i in zip(a, first, strict=True) for q, j in zip(b, second, strict=True) if i != j]
        return sum((float(p @ q) / len(p) + 1) ** 3 for p, q in pairs) / len(pairs)

    return mean(x, x, groups, groups) + mean(y, y, others, others) - 2 * mean(x, y, groups, others)


@pytest.mark.parametrize("counts", [([3, 1, 4, 2, 5], [2, 2, 4, 1, 3]), ([4, 4, 4, 4], [4, 4, 4, 4]), ([5, 5, 5], [1, 9, 2])])
def test_kid_agrees_with_double_loops(counts: tuple[list[int], list[int]]) -> None:
    x, y = _runs(np.random.default_rng(0), *counts, shift=0.3)
    groups, others = (_names(n) for n in counts)
    found = kid(x, y, groups, others)
    assert found.mean == pytest.approx(_brute(x, y, groups, others)) and found.n == len(x)


def test_jackknife_leaves_a_prompt_out_of_both_runs() -> None:
    counts = [3, 1, 4, 2, 5], [2, 2, 4, 1, 3]
    x, y = _runs(np.random.default_rng(0), *counts, shift=0.3)
    groups, others = (_names(n) for n in counts)
    rests = []
    for name in sorted(set(groups)):  # as many blocks as prompts
        kept, left = (np.array([g != name for g in names]) for names in (groups, others))
        rests.append(_brute(x[kept], y[left], np.array(groups)[kept].tolist(), np.array(others)[left].tolist()))
    found = kid(x, y, groups, others)
    half = stats.t.ppf(0.975, 4) * np.sqrt(4 * np.var(rests))
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half))


def test_kid_without_shared_prompts_is_that_of_torchmetrics() -> None:
    x, y = _runs(np.random.default_rng(2), [1] * 30)
    groups, others = [f"a{i}" for i in range(30)], [f"b{i}" for i in range(30)]
    assert kid(x, y, groups, others).mean == pytest.approx(float(poly_mmd(torch.from_numpy(x), torch.from_numpy(y))))


def test_a_run_with_itself_is_at_zero_and_below_it_without_the_prompts() -> None:
    x = _runs(np.random.default_rng(3), [4] * 40)[0]
    groups = _names([4] * 40)
    same = kid(x, x, groups, groups)
    assert (same.low, same.mean, same.high) == pytest.approx((0, 0, 0), abs=1e-9)
    assert kid(x, x, [f"a{i}" for i in range(160)], [f"b{i}" for i in range(160)]).mean < -0.001


@pytest.mark.parametrize(("counts", "others"), [([4] * 40, [4] * 40), ([20] * 5, [20] * 5), ([8] * 40, [4] * 40), ([1] * 90, [1] * 90)])
def test_runs_of_one_distribution_are_at_zero(counts: list[int], others: list[int]) -> None:
    """On average, and nearly always inside the interval (the jackknife is wide where nothing differs)."""
    groups, names = _names(counts), _names(others)
    estimates = [kid(*_runs(np.random.default_rng(seed), counts, others), groups, names, seed=seed) for seed in range(100)]
    means = [e.mean for e in estimates]
    assert abs(np.mean(means)) < 3 * np.std(means) / 10
    assert np.mean([e.low <= 0 <= e.high for e in estimates]) >= 0.93


@pytest.mark.slow
def test_kid_interval_covers_a_shift() -> None:
    groups = _names([4] * 60)
    drawn = [_runs(np.random.default_rng(i), [4] * 60, shift=0.5) for i in range(400)]
    found = [kid(*runs, groups, groups, seed=i) for i, runs in enumerate(drawn)]
    truth = np.mean([e.mean for e in found])
    assert 0.91 <= np.mean([e.low <= truth <= e.high for e in found]) <= 0.98


def test_a_shifted_run_is_found() -> None:
    groups = _names([4] * 40)
    drawn = [_runs(np.random.default_rng(i), [4] * 40, shift=0.7) for i in range(50)]
    assert np.mean([kid(*runs, groups, groups, seed=i).low > 0 for i, runs in enumerate(drawn)]) > 0.95


def test_a_kernel_in_parts_is_that_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = _runs(np.random.default_rng(8), [3] * 60)
    groups = _names([3] * 60)
    whole = kid(x, y, groups, groups)
    monkeypatch.setattr(distances, "KERNEL_ROWS", 47)
    parts = kid(x, y, groups, groups)
    assert (parts.low, parts.mean, parts.high) == pytest.approx((whole.low, whole.mean, whole.high)) and parts.n == whole.n == 180


def test_kid_does_not_depend_on_row_order() -> None:
    rng = np.random.default_rng(9)
    x, y = _runs(rng, [3] * 20)
    groups, order, other = _names([3] * 20), rng.permutation(60), rng.permutation(60)
    found = kid(x, y, groups, groups)
    turned = kid(x[order], y[other], [groups[i] for i in order], [groups[i] for i in other])
    assert (turned.low, turned.mean, turned.high) == pytest.approx((found.low, found.mean, found.high))


def test_kid_refuses() -> None:
    x, y = _runs(np.random.default_rng(0), [2] * 4)
    groups = _names([2] * 4)
    for name, given, others in (("groups", groups[1:], groups), ("other_groups", groups, groups[1:])):
        with pytest.raises(ValueError, match=f"^{name} must name"):
            kid(x, y, given, others)
    with pytest.raises(ValueError, match="3 prompts or more"):
        kid(x[:4], y[:4], groups[:4], groups[:4])


@pytest.mark.slow
def test_many_images_in_bounded_time_and_memory() -> None:
    x, y = _runs(np.random.default_rng(1), [10] * 600, size=256)
    groups = _names([10] * 600)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    found = kid(x, y, groups, groups)
    assert found.low <= 0 <= found.high and found.n == 6000
    assert time.process_time() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


def test_frechet_jackknife_is_the_t_interval_of_leaving_prompts_out() -> None:
    x, y = _sets(40, 30, 3)
    groups = [f"p{i % 8}" for i in range(40)]
    found = frechet_interval(x, y, groups)
    rests = [frechet_distance(x[[g != f"p{i}" for g in groups]], y) for i in range(8)]
    half = stats.t.ppf(0.975, 7) * np.sqrt(7 * np.var(rests))
    assert (found.low, found.high) == pytest.approx((max(0, found.mean - half), found.mean + half))
    with pytest.raises(ValueError, match="keep 2 images or more"):
        frechet_interval(x[:2], y, ["a", "b"])


def test_refuses_what_is_no_set_of_features() -> None:
    for x, message in (
        ([1.0, 2.0], "one D"),
        ([[1.0], [2.0]], "one D"),
        ([[1.0, 2.0]], "2 rows or more"),
        ([[np.nan, 1.0]] * 2, "x holds NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            frechet_distance(x, [[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(ValueError, match="all zeros, got 1 such"):
        drift([[0.0, 0.0], [3.0, 4.0]], np.ones((2, 2)), ["a", "b"])
