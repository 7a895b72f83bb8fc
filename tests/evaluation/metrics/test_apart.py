"""KID and CMMD of two runs on the same prompts."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy import stats

from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.evaluation.metrics.fidelity import cmmd, kid, polynomial_mmd


def _names(counts: Sequence[int]) -> list[str]:
    return [f"p{i:03d}" for i, n in enumerate(counts) for _ in range(n)]


def _runs(
    rng: np.random.Generator, counts: Sequence[int], others: Sequence[int] | None = None, shift: float = 0.0, size: int = 6
) -> tuple[np.ndarray, np.ndarray]:
    common = rng.normal(size=(len(counts), size)) + 1
    x, y = (np.repeat(common, n, 0) for n in (counts, others or counts))
    return x + rng.normal(size=x.shape) + shift, y + rng.normal(size=y.shape)


def _brute(x: np.ndarray, y: np.ndarray, groups: list[str], others: list[str], kind: str) -> float:
    """All pairs one by one; those of one prompt skipped."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        if kind == "kid":
            return (float(a @ b) / len(a) + 1) ** 3
        c = float(a @ b) / float(np.linalg.norm(a) * np.linalg.norm(b))
        return 1000 * (math.exp((c - 1) / 100) if kind == "exact" else math.exp(-0.01) * (1 + c / 100 + c * c / 2e4))

    def mean(a: np.ndarray, b: np.ndarray, first: list[str], second: list[str]) -> float:
        terms = [kernel(p, q) for p, i in zip(a, first, strict=True) for q, j in zip(b, second, strict=True) if i != j]
        return sum(terms) / len(terms)

    return mean(x, x, groups, groups) + mean(y, y, others, others) - 2 * mean(x, y, groups, others)


@pytest.mark.parametrize("counts", [([3, 1, 4, 2, 5], [2, 2, 4, 1, 3]), ([4, 4, 4, 4], [4, 4, 4, 4]), ([5, 5, 5], [1, 9, 2])])
def test_agrees_with_double_loops(counts: tuple[list[int], list[int]]) -> None:
    x, y = _runs(np.random.default_rng(0), *counts, shift=0.3)
    groups, others = (_names(n) for n in counts)
    found, other = kid(x, y, groups, other_groups=others), cmmd(x, y, groups, other_groups=others)
    assert found.mean == pytest.approx(_brute(x, y, groups, others, "kid")) and found.n == len(x)
    assert other.mean == pytest.approx(_brute(x, y, groups, others, "series"))
    assert other.mean == pytest.approx(_brute(x, y, groups, others, "exact"), rel=1e-2, abs=1e-4)


def test_jackknife_leaves_a_prompt_out_of_both_runs() -> None:
    counts = [3, 1, 4, 2, 5], [2, 2, 4, 1, 3]
    x, y = _runs(np.random.default_rng(0), *counts, shift=0.3)
    groups, others = (_names(n) for n in counts)
    for measure, kind in ((kid, "kid"), (cmmd, "series")):
        rests = []
        for name in sorted(set(groups)):  # as many blocks as prompts
            kept, left = (np.array([g != name for g in names]) for names in (groups, others))
            rests.append(_brute(x[kept], y[left], np.array(groups)[kept].tolist(), np.array(others)[left].tolist(), kind))
        found = measure(x, y, groups, other_groups=others, level=0.9)
        half = stats.t.ppf(0.95, 4) * np.sqrt(4 * np.var(rests))
        assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half))


def test_prompts_with_more_images_than_features() -> None:
    x, y = _runs(np.random.default_rng(1), [9, 8, 7], [7, 6, 9], size=3)
    groups, others = _names([9, 8, 7]), _names([7, 6, 9])
    assert cmmd(x, y, groups, other_groups=others).mean == pytest.approx(_brute(x, y, groups, others, "series"))


def test_prompts_of_one_run_only() -> None:
    x, y = _runs(np.random.default_rng(2), [1] * 30)
    groups, others = [f"a{i}" for i in range(30)], [f"b{i}" for i in range(30)]
    assert kid(x, y, groups, other_groups=others).mean == pytest.approx(polynomial_mmd(x, y))  # nothing to leave out
    assert cmmd(x, y, groups, other_groups=others).mean == pytest.approx(cmmd(x, y).mean)


def test_a_run_with_itself_is_at_zero_and_below_it_without_the_prompts() -> None:
    x = _runs(np.random.default_rng(3), [4] * 40)[0]
    groups = _names([4] * 40)
    for measure in (kid, cmmd):
        same = measure(x, x, groups, other_groups=groups)
        assert (same.low, same.mean, same.high) == pytest.approx((0, 0, 0), abs=1e-9)
        assert measure(x, x, groups).mean < -0.001


def _simulated(count: int, counts: Sequence[int], others: Sequence[int], size: int) -> list[tuple[Estimate, Estimate]]:
    groups, names = _names(counts), _names(others)
    found = []
    for seed in range(count):
        x, y = _runs(np.random.default_rng(seed), counts, others)
        found.append((kid(x, y, groups, other_groups=names, size=size, seed=seed), cmmd(x, y, groups, other_groups=names, seed=seed)))
    return found


@pytest.mark.parametrize(
    ("counts", "others", "size"),
    [([4] * 40, [4] * 40, 1000), ([4] * 40, [4] * 40, 40), ([20] * 5, [20] * 5, 1000), ([8] * 40, [4] * 40, 80), ([1] * 90, [1] * 90, 30)],
)
def test_runs_of_one_distribution_are_at_zero(counts: list[int], others: list[int], size: int) -> None:
    """On average, and nearly always inside the interval (the jackknife is wide where nothing differs)."""
    for estimates in zip(*_simulated(100, counts, others, size), strict=True):
        means = [e.mean for e in estimates]
        assert abs(np.mean(means)) < 3 * np.std(means) / 10
        assert np.mean([e.low <= 0 <= e.high for e in estimates]) >= 0.93


@pytest.mark.parametrize("measure", [kid, cmmd])
def test_interval_covers_a_shift(measure: Callable[..., Estimate]) -> None:
    groups = _names([4] * 60)
    drawn = [_runs(np.random.default_rng(i), [4] * 60, shift=0.5) for i in range(400)]
    found = [measure(*runs, groups, other_groups=groups, seed=i) for i, runs in enumerate(drawn)]
    truth = np.mean([e.mean for e in found])
    assert 0.91 <= np.mean([e.low <= truth <= e.high for e in found]) <= 0.98


@pytest.mark.parametrize("measure", [kid, cmmd])
def test_a_shifted_run_is_found(measure: Callable[..., Estimate]) -> None:
    groups = _names([4] * 40)
    drawn = [_runs(np.random.default_rng(i), [4] * 40, shift=0.7) for i in range(50)]
    assert np.mean([measure(*runs, groups, other_groups=groups, seed=i).low > 0 for i, runs in enumerate(drawn)]) > 0.95


def test_subsets_share_no_image_and_take_the_same_prompts() -> None:
    x, y = _runs(np.random.default_rng(8), [3] * 60)
    groups = _names([3] * 60)
    whole, parts = (kid(x, y, groups, other_groups=groups, size=size) for size in (1000, 45))
    assert whole.n == parts.n == 180 and kid(x, y, groups, other_groups=groups, size=45, subsets=2).n == 90
    assert parts.mean == pytest.approx(whole.mean, abs=whole.high - whole.low)
    same = kid(x, x, groups, other_groups=groups, size=60)  # three subsets with one image of each prompt, not the same ones
    assert same.low < 0 < same.high


def test_row_order_has_no_influence() -> None:
    rng = np.random.default_rng(9)
    x, y = _runs(rng, [3] * 20)
    groups, order, other = _names([3] * 20), rng.permutation(60), rng.permutation(60)
    for found, turned in (
        (
            kid(x, y, groups, other_groups=groups, size=20),
            kid(x[order], y[other], [groups[i] for i in order], other_groups=[groups[i] for i in other], size=20),
        ),
        (
            cmmd(x, y, groups, other_groups=groups),
            cmmd(x[order], y[other], [groups[i] for i in order], other_groups=[groups[i] for i in other]),
        ),
    ):
        assert (turned.low, turned.mean, turned.high) == pytest.approx((found.low, found.mean, found.high))


def test_refuses() -> None:
    x, y = _runs(np.random.default_rng(0), [2] * 4)
    groups = _names([2] * 4)
    for measure in (kid, cmmd):
        for given, others in ((None, groups), (groups[1:], groups), (groups, groups[1:])):
            with pytest.raises(ValueError, match="groups and other_groups must name"):
                measure(x, y, given, other_groups=others)
        with pytest.raises(ValueError, match="3 prompts or more"):
            measure(x[:4], y[:4], groups[:4], other_groups=groups[:4])
    with pytest.raises(ValueError, match="biased must be False"):
        cmmd(x, y, groups, other_groups=groups, biased=True)


def test_many_images_in_bounded_time_and_memory() -> None:
    x, y = _runs(np.random.default_rng(1), [10] * 600, size=256)
    groups = _names([10] * 600)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    for measure in (kid, cmmd):
        found = measure(x, y, groups, other_groups=groups)
        assert found.low <= 0 <= found.high and found.n == 6000
    assert time.process_time() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
