"""Distances of two runs on the same prompts: pairs of images of one prompt are left out, and prompts vary in both runs at once.

Two images of one prompt are alike. Inside a run a prompt meets itself only in other images; across two runs that share their
prompts it meets itself in full. Without a mask, a distance of two such runs lies below 0 where nothing differs. With it, for equal
numbers of images, what is left is the mean over pairs of different prompts (p, q) of ``<d_p, d_q>``, ``d_p`` being the mean
feature map of p in the first run less that in the second: 0 in expectation if the runs are alike, ``|E d_p|^2`` if they are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.evaluation.metrics.moments import RATE, SCALE, Floats, Sums, cosine_sum, cube_kernel, deal, ranks, settled, spread

Codes = NDArray[np.int64]
SIGNS = np.array([1.0, 1.0, -2.0])  # within x, within y, across


@dataclass(frozen=True)
class Run:
    """Features (N, D) of a run, the place of each image's prompt (N,) among those of both runs, and its block (N,)."""

    features: Floats
    prompt: Codes
    block: Codes

    def take(self, rows: Codes | NDArray[np.bool_]) -> Run:
        return Run(self.features[rows], self.prompt[rows], self.block[rows])


def both(x: Floats, y: Floats, groups: Sequence[str] | None, other_groups: Sequence[str], blocks: int, seed: int) -> tuple[Run, Run]:
    """Two runs whose prompts are dealt together: into blocks for the jackknife, and in one random order.

    Raises:
        ValueError: groups missing, of other lengths than x and y, or less than 2 prompts.
    """
    if groups is None or len(groups) != len(x) or len(other_groups) != len(y):
        given = "no groups" if groups is None else f"{len(groups)} groups"
        raise ValueError(
            f"groups and other_groups must name the prompt of each of {len(x)} images of x and {len(y)} of y, "
            f"got {given} and {len(other_groups)} other_groups: give both or leave out other_groups"
        )
    names = [*groups, *other_groups]
    block, rank = deal(names, len(names), blocks, seed), ranks(names, (seed, 1))
    runs = []
    for features, own, part in ((x, groups, slice(len(x))), (y, other_groups, slice(len(x), None))):
        runs.append(Run(features, rank[part], block[part]).take(settled(features, own)))
    return runs[0], runs[1]


def apart_kid(x: Run, y: Run, *, size: int, subsets: int, seed: int, level: float) -> Estimate:
    """KID without pairs of one prompt; every subset has its share of each prompt, as far as it goes the same prompts of x and y."""
    parts = max(1, max(len(x.prompt), len(y.prompt)) // size)
    rng = np.random.default_rng((seed, 2))
    deals = _dealt(x.prompt, y.prompt, parts, rng)
    blocks = 1 + int(max(x.block.max(), y.block.max()))
    terms = np.zeros((2, 1 + blocks, 3))
    used = 0
    for i in range(min(subsets, parts)):
        a, b = (run.take(part == i) for run, part in zip((x, y), deals, strict=True))
        terms += np.stack([_kernel_terms(*two, blocks) for two in ((a, a), (b, b), (a, b))], axis=-1)
        used += len(a.prompt)
    rests = _distance(terms)
    return spread(float(rests[0]), rests[1:], used, level)


def apart_gaussian(x: Run, y: Run, level: float) -> Estimate:
    """CMMD of unit vectors without pairs of one prompt, from sums over all images less those over each prompt's."""
    blocks = 1 + int(max(x.block.max(), y.block.max()))
    whole = [Sums.of(run.features) for run in (x, y)]
    rests = [whole]
    for i in range(blocks):
        rests.append([all_.without(Sums.of(run.features[run.block == i])) for all_, run in zip(whole, (x, y), strict=True)])
    every = np.array([[(cosine_sum(a, b), a.n * b.n) for a, b in ((s, s), (t, t), (s, t))] for s, t in rests]).transpose(2, 0, 1)
    same = np.stack([_same(a, b, blocks) for a, b in ((x, x), (y, y), (x, y))], axis=-1)
    found = SCALE * np.exp(-RATE) * _distance(every - same)
    return spread(float(found[0]), found[1:], len(x.prompt), level)


def _dealt(first: Codes, second: Codes, parts: int, rng: np.random.Generator) -> list[Codes]:
    """The subset of each image of x and of y: a prompt's images, in random order, go one by one from its own start on."""
    prompts = 1 + int(max(first.max(), second.max()))
    counts = [np.bincount(prompt, minlength=prompts) for prompt in (first, second)]
    start = np.maximum(*counts).cumsum() - np.maximum(*counts)
    dealt = []
    for prompt, count in zip((first, second), counts, strict=True):
        order = np.lexsort((rng.random(len(prompt)), prompt))
        part = np.empty_like(prompt)
        part[order] = (start[prompt[order]] + np.arange(len(prompt)) - (count.cumsum() - count)[prompt[order]]) % parts
        dealt.append(part)
    return dealt


def _kernel_terms(a: Run, b: Run, blocks: int) -> Floats:
    """Sum of the kernel over pairs of different prompts, and their number, in all and with each block left out: (2, 1 + blocks)."""
    apart = (a.prompt[:, None] != b.prompt).astype(np.float64)
    here, there = (np.eye(blocks)[run.block] for run in (a, b))

    def rests(table: Floats) -> Floats:
        columns = table @ there
        left = table.sum(1) @ here + columns.sum(0) - (here * columns).sum(0)
        return float(table.sum()) - np.concatenate([[0.0], left])

    return np.stack([rests(apart * cube_kernel(a.features, b.features)), rests(apart)])


def _same(a: Run, b: Run, blocks: int) -> Floats:
    """Sum of `moments.cosine_sum` over pairs of one prompt, and their number, in all and with each block left out: (2, 1 + blocks)."""
    own = np.zeros((2, blocks))
    orders = [run.prompt.argsort(kind="stable") for run in (a, b)]
    shared = np.intersect1d(a.prompt, b.prompt)
    edges = [np.searchsorted(run.prompt[order], [shared, shared + 1]).T for run, order in zip((a, b), orders, strict=True)]
    for (i, j), (k, m) in zip(*edges, strict=True):
        rows, others = orders[0][i:j], orders[1][k:m]
        own[:, a.block[rows[0]]] += _few(a.features[rows], b.features[others]), len(rows) * len(others)
    return np.concatenate([own.sum(1, keepdims=True), own.sum(1, keepdims=True) - own], axis=1)


def _few(a: Floats, b: Floats) -> float:
    """`moments.cosine_sum` of rows, by the cheaper way."""
    if len(a) * len(b) > a.shape[1] ** 2:
        return cosine_sum(Sums.of(a), Sums.of(b))
    cosines = a @ b.T
    return float(RATE * cosines.sum() + RATE**2 / 2 * np.vdot(cosines, cosines))


def _distance(terms: Floats) -> Floats:
    """From sums and numbers of pairs, (2, R, 3), to distances (R,)."""
    sums, pairs = terms
    if pairs.min() < 1:
        raise ValueError(
            "groups must leave pairs of different prompts in x, in y and across when a block is left out, got none: "
            "give 3 prompts or more, in larger subsets"
        )
    distance: Floats = (sums / pairs) @ SIGNS
    return distance
