"""Which concept each image gets: exact counts, random draws, any target proportions, products of attributes.

Every function is a pure function of its arguments; the seed is explicit and nothing touches a global random state.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from fractions import Fraction
from hashlib import blake2b
from typing import Literal, get_args

from respodiff.data.target_proportions import check_proportions

Policy = Literal["none", "exact", "random"]


def exact_counts(proportions: Sequence[float], n: int, seed: int = 0) -> list[int]:
    """Whole counts that sum to n, each within 1 of n * share (largest remainder; equal remainders in an order drawn from the seed,
    so that over many prompts no concept gets the odd image more often)."""
    quotas = [n * s for s in proportions]
    counts = [math.floor(q + 1e-9) for q in quotas]
    order = list(range(len(proportions)))
    random.Random(seed).shuffle(order)
    order.sort(key=lambda i: round(counts[i] - quotas[i], 9))
    for i in order[: n - sum(counts)]:
        counts[i] += 1
    return counts


def _spread(counts: Sequence[int], rng: random.Random) -> list[int]:
    """Indices with the given counts, as evenly interleaved as they go: every stretch has nearly the same mix (equal places drawn)."""
    first = rng.sample(range(len(counts)), len(counts))
    spots = [((j + 0.5) / c, first[i], i) for i, c in enumerate(counts) for j in range(c)]
    return [i for *_, i in sorted(spots)]


def rounded_table(table: Sequence[Sequence[Fraction]], rng: random.Random) -> list[list[int]]:
    """Whole numbers for a table whose total is whole: every cell, row sum and column sum becomes one of the two whole numbers around it
    (itself where it is whole), and over many seeds the mean of a cell is the cell (unbiased controlled rounding, Cox 1987)."""
    # With their negative sums appended all lines sum to zero, so that a line with one broken number has a second one.
    full = [[*row, -sum(row, Fraction())] for row in table]
    full.append([-sum(column, Fraction()) for column in zip(*full, strict=True)])
    while cycle := _broken_cycle(full):
        signs = [1 if k % 2 == 0 else -1 for k in range(len(cycle))]
        up, down = (min(_gap(full[i][j], way * s) for (i, j), s in zip(cycle, signs, strict=True)) for way in (1, -1))
        # As far as one cell of the cycle becomes whole, in a direction drawn so that the mean of each cell stays.
        move = -down if rng.random() * (up + down) < up else up
        for (i, j), s in zip(cycle, signs, strict=True):
            full[i][j] += s * move
    return [[int(x) for x in row[:-1]] for row in full[:-1]]


def _gap(x: Fraction, way: int) -> Fraction:
    """How far x is from the next whole number above (way 1) or below (way -1)."""
    return math.ceil(x) - x if way > 0 else x - math.floor(x)


def _broken_cycle(full: Sequence[Sequence[Fraction]]) -> list[tuple[int, int]]:
    """Cells that are not whole, each in the row or column of the one before, in turn and round to the first; empty if all are whole."""
    broken = [(i, j) for i, row in enumerate(full) for j, x in enumerate(row) if x.denominator > 1]
    if not broken:
        return []
    lines = [(0, broken[0][0])]  # as (0, row) or (1, column)
    cells: list[tuple[int, int]] = []
    while lines[-1] not in lines[:-1]:
        axis, index = lines[-1]
        cells.append(next(c for c in broken if c[axis] == index and c not in cells[-1:]))
        lines.append((1 - axis, cells[-1][1 - axis]))
    return cells[lines.index(lines[-1]) :]


def _exact_rows(wanted: Mapping[str, list[float]], n: int, seed: int, rng: random.Random) -> list[tuple[int, ...]]:
    """For each of n images the index of its concept of every attribute, in no particular order."""
    (_, first), *others = wanted.items()
    if not others:
        rows: list[tuple[int, ...]] = [(i,) for i in _spread(exact_counts(first, n, seed), rng)]
        rng.random()  # not used: with it the draws are those of earlier versions, and their run folders can be resumed
        return rows
    quotas: dict[tuple[int, ...], Fraction] = {(i,): n * s for i, s in enumerate(_fractions(first))}
    for _, proportions in others:
        counts = rounded_table([[quota * s for s in _fractions(proportions)] for quota in quotas.values()], rng)
        quotas = {(*cell, j): Fraction(c) for cell, row in zip(quotas, counts, strict=True) for j, c in enumerate(row)}
    return [cell for cell, count in quotas.items() for _ in range(int(count))]


def _fractions(proportions: Sequence[float]) -> list[Fraction]:
    """Shares as exact numbers that sum to 1: 0.1 is a tenth and the float next to a third is a third."""
    exact = [Fraction(s).limit_denominator(10**9) for s in proportions]
    return [s / sum(exact) for s in exact]


def assign(
    attributes: Mapping[str, Sequence[str]],
    n: int,
    policy: Policy = "exact",
    *,
    proportions: Mapping[str, Mapping[str, float]] | None = None,
    seed: int = 0,
) -> list[dict[str, str]]:
    """A concept of every attribute for each of n images of one prompt.

    Args:
        attributes: attribute -> names of its concepts, e.g. ``{"gender": ["woman", "man"], "tone": [...]}``.
        n: number of images, at least 1.
        policy: ``exact``: stratified counts in shuffled order: each concept, and of two attributes each cell, within 1 of its quota, for
            any shares, and no cell favoured over many seeds; of three attributes and more the concepts keep within 1, and the cells of
            the first two; ``random``: independent draws per image; ``none``: empty dictionaries.
        proportions: attribute -> target proportions, uniform where not given.
        seed: of the order and of the draws.

    Raises:
        ValueError: for n < 1, an unknown policy, or shares that are negative or do not sum to 1.
    """
    if n < 1:
        raise ValueError(f"number of images is {n}; allowed: at least 1")
    if policy not in get_args(Policy):
        raise ValueError(f"policy is {policy!r}; allowed: {', '.join(get_args(Policy))}")
    if unknown := set(proportions or {}) - set(attributes):
        raise ValueError(
            f"proportions are given for {sorted(unknown)[0]!r}, but no concept of it is steered; known: {', '.join(attributes)}"
        )
    wanted = {a: check_proportions(names, (proportions or {}).get(a)) for a, names in attributes.items()}
    if policy == "none" or not attributes:
        return [{} for _ in range(n)]
    rng = random.Random(seed)
    if policy == "random":
        rows = list(zip(*(rng.choices(range(len(names)), wanted[a], k=n) for a, names in attributes.items()), strict=True))
    else:
        rows = _exact_rows(wanted, n, seed, rng)
        rng.shuffle(rows)
    return [{a: names[i] for (a, names), i in zip(attributes.items(), row, strict=True)} for row in rows]


def prompt_seed(seed: int, prompt_id: str) -> int:
    """Seed of the draws of one prompt, so that its assignment does not depend on which other prompts are in the run."""
    return int.from_bytes(blake2b(f"policy/{seed}/{prompt_id}".encode(), digest_size=7).digest(), "big")
