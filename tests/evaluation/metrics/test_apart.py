"""KID of two runs on the same prompts."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import stats
from torchmetrics.image.kid import poly_mmd

from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.evaluation.metrics.fidelity import kid


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
    found = kid(x, y, groups, others, level=0.9)
    half = stats.t.ppf(0.95, 4) * np.sqrt(4 * np.var(rests))
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


def _simulated(count: int, counts: Sequence[int], others: Sequence[int], size: int) -> list[Estimate]:
    groups, names = _names(counts), _names(others)
    return [kid(*_runs(np.random.default_rng(seed), counts, others), groups, names, size=size, seed=seed) for seed in range(count)]


@pytest.mark.parametrize(
    ("counts", "others", "size"),
    [([4] * 40, [4] * 40, 1000), ([4] * 40, [4] * 40, 40), ([20] * 5, [20] * 5, 1000), ([8] * 40, [4] * 40, 80), ([1] * 90, [1] * 90, 30)],
)
def test_runs_of_one_distribution_are_at_zero(counts: list[int], others: list[int], size: int) -> None:
    """On average, and nearly always inside the interval (the jackknife is wide where nothing differs)."""
    estimates = _simulated(100, counts, others, size)
    means = [e.mean for e in estimates]
    assert abs(np.mean(means)) < 3 * np.std(means) / 10
    assert np.mean([e.low <= 0 <= e.high for e in estimates]) >= 0.93


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


def test_subsets_share_no_picture_and_take_the_same_prompts() -> None:
    x, y = _runs(np.random.default_rng(8), [3] * 60)
    groups = _names([3] * 60)
    whole, parts = (kid(x, y, groups, groups, size=size) for size in (1000, 45))
    assert whole.n == parts.n == 180 and kid(x, y, groups, groups, size=45, subsets=2).n == 90
    assert parts.mean == pytest.approx(whole.mean, abs=whole.high - whole.low)
    same = kid(x, x, groups, groups, size=60)  # three subsets with one picture of each prompt, not the same ones
    assert same.low < 0 < same.high


def test_kid_does_not_depend_on_row_order() -> None:
    rng = np.random.default_rng(9)
    x, y = _runs(rng, [3] * 20)
    groups, order, other = _names([3] * 20), rng.permutation(60), rng.permutation(60)
    found = kid(x, y, groups, groups, size=20)
    turned = kid(x[order], y[other], [groups[i] for i in order], [groups[i] for i in other], size=20)
    assert (turned.low, turned.mean, turned.high) == pytest.approx((found.low, found.mean, found.high))


def test_kid_refuses() -> None:
    x, y = _runs(np.random.default_rng(0), [2] * 4)
    groups = _names([2] * 4)
    for given, others in ((groups[1:], groups), (groups, groups[1:])):
        with pytest.raises(ValueError, match="groups and other_groups must name"):
            kid(x, y, given, others)
    with pytest.raises(ValueError, match="3 prompts or more"):
        kid(x[:4], y[:4], groups[:4], groups[:4])
    for bad in ({"size": 1}, {"subsets": 0}):
        with pytest.raises(ValueError, match="size must be 2 or more and subsets 1 or more"):
            kid(x, y, groups, groups, **bad)


def test_many_pictures_in_bounded_time_and_memory() -> None:
    x, y = _runs(np.random.default_rng(1), [10] * 600, size=256)
    groups = _names([10] * 600)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    found = kid(x, y, groups, groups)
    assert found.low <= 0 <= found.high and found.n == 6000
    assert time.process_time() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
