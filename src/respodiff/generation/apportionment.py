"""Apportions images to concepts: whole counts, each within one image of its quota, for prompts, groups of prompts and the run at once.

Balanced rounding, the flight phase of the cube method (Deville and Tille 2004). For fractions x, and sets s of them whose sums count too:

v  with v_i = 0 where x_i is whole, and sum of v over s = 0 for every s whose sum of x is whole
a  the greatest a at which no x_i + a v_i and no sum passes a whole number; b the same for -v
x <- x + a v  with probability b / (a + b), else x - b v            until all x are whole

Each entry and each sum becomes one of the two whole numbers around it; over seeds its mean is what it was. Such a v always exists for one
attribute, and for two where all groups are alike. Elsewhere the last sets may give way, and the rounding is tried again.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Hashable, Iterable, Mapping, Sequence

Cell = tuple[tuple[str, str], ...]
"""(attribute, concept) of every steered attribute of an image."""
Quotas = tuple[tuple[Cell, float], ...]
"""Cell -> images that each prompt of a group should have of it, with a whole sum."""
Counts = dict[Cell, int]

EPSILON = 1e-9
TRIES = 10


def apportion(quotas: Mapping[Hashable, Quotas], groups: Mapping[Hashable, Sequence[str]], rng: random.Random) -> dict[str, Counts]:
    """Prompt -> cell -> number of its images.

    Args:
        quotas: group -> quotas of each of its prompts.
        groups: group -> its prompts. The result depends on the order of both.
    """
    alike: dict[tuple[Quotas, int], list[Hashable]] = {}
    for group, prompts in groups.items():
        alike.setdefault((quotas[group], len(prompts)), []).append(group)
    wanted = {(kind, cell): len(same) * size * q for kind, ((cells, size), same) in enumerate(alike.items()) for cell, q in cells}
    totals = dict(zip(wanted, balanced_rounding(list(wanted.values()), sums(list(wanted)), rng), strict=True))
    out: dict[str, Counts] = {}
    for kind, ((cells, size), same) in enumerate(alike.items()):
        of_groups = parts({cell: totals[kind, cell] for cell, _ in cells}, len(same), rng)
        for group, counts in zip(same, of_groups, strict=True):
            out |= zip(groups[group], parts(counts, size, rng), strict=True)
    return out


def parts(counts: Counts, n: int, rng: random.Random) -> list[Counts]:
    """Counts cut in n random parts, each within one of counts / n in every cell, in every concept and in all."""
    sets = sums([(0, cell) for cell in counts])

    def cut(whole: list[int], n: int) -> list[list[int]]:
        if n == 1:
            return [whole]
        first = 1 << ((n - 1).bit_length() - 1)  # parts of powers of two are rounded fastest
        part = balanced_rounding([k * first / n for k in whole], sets, rng)
        return cut(part, first) + cut([k - j for k, j in zip(whole, part, strict=True)], n - first)

    out = [dict(zip(counts, part, strict=True)) for part in cut(list(counts.values()), n)]
    rng.shuffle(out)
    return out


def sums(cells: Sequence[tuple[int, Cell]]) -> list[list[int]]:
    """The sets whose sums count, as indices of cells of kinds of prompts, the most important first.

    All images of a kind, each concept of a kind and of the run, each pair of concepts of a kind and of the run, and so on.
    """
    sets: dict[tuple[int, bool, int, Cell], list[int]] = {}
    for i, (kind, cell) in enumerate(cells):
        for size in range(len(cell) + 1):
            for names in itertools.combinations(cell, size):
                sets.setdefault((size, False, kind, names), []).append(i)
                sets.setdefault((size, True, 0, names), []).append(i)
    ordered = dict.fromkeys(tuple(sets[key]) for key in sorted(sets, key=lambda key: key[:2]))
    return [list(s) for s in ordered if len(s) > 1]


def balanced_rounding(values: Sequence[float], sets: Sequence[Sequence[int]], rng: random.Random) -> list[int]:
    """Whole numbers next to the values, whose sums over the sets of indices are next to those of the values.

    It calculates with Python's own floats, so that the result is the same on every machine.
    """
    wanted = [_snapped(math.fsum(values[i] for i in s)) for s in sets]
    best: tuple[int, list[int]] = (-1, [])
    for _ in range(TRIES):
        x = _flight([_snapped(value) for value in values], list(wanted), sets, rng)
        kept = next((k for k, s in enumerate(sets) if abs(sum(x[i] for i in s) - wanted[k]) > 1 - EPSILON), len(sets))
        best = max(best, (kept, x))
        if kept == len(sets):
            break
    return best[1]


def _flight(x: list[float], totals: list[float], sets: Sequence[Sequence[int]], rng: random.Random) -> list[int]:
    """Rounds x once; ``totals`` are its sums over the sets. Both lists are changed."""
    sets_of: list[list[int]] = [[] for _ in x]
    for k, s in enumerate(sets):
        for i in s:
            sets_of[i].append(k)
    window = 8  # entries that are moved at a time: few are fast, and more are taken where none of them can move
    while free := [i for i, value in enumerate(x) if value % 1]:
        chosen = free[:window]
        rows: dict[int, dict[int, float]] = {}
        for i in chosen:
            for k in sets_of[i]:
                if not totals[k] % 1:
                    rows.setdefault(k, {})[i] = 1.0
        v = _null_vector([rows[k] for k in sorted(rows)], chosen, force=len(chosen) == len(free))
        if not v:
            window *= 2
            continue
        rates: dict[int, float] = {}
        for i, rate in v.items():
            for k in sets_of[i]:
                rates[k] = rates.get(k, 0.0) + rate
        moves = [(x[i], rate) for i, rate in v.items()] + [(totals[k], rate) for k, rate in rates.items() if totals[k] % 1]
        up, down = (min(_room(at, sign * rate) for at, rate in moves) for sign in (1, -1))
        step = up if rng.random() * (up + down) < down else -down
        for i, rate in v.items():
            x[i] = _snapped(x[i] + step * rate)
        for k, rate in rates.items():
            totals[k] = _snapped(totals[k] + step * rate)
    return [int(value) for value in x]


def _room(at: float, rate: float) -> float:
    """Time until a number that moves at this rate is whole."""
    if abs(rate) < EPSILON:
        return math.inf
    return (math.ceil(at) - at if rate > 0 else at - math.floor(at)) / abs(rate)


def _snapped(value: float) -> float:
    return float(round(value)) if abs(value - round(value)) < EPSILON else value


def _null_vector(rows: Iterable[dict[int, float]], columns: Sequence[int], force: bool) -> dict[int, float]:
    """A vector whose product with every row is 0, by elimination. If there is none: empty, or with ``force`` one for the first rows."""
    pivots: dict[int, dict[int, float]] = {}
    for given in rows:
        row = given
        for column, pivot in pivots.items():
            row = _minus(row, row.get(column, 0.0), pivot)
        if not row:
            continue
        if len(pivots) == len(columns) - 1:
            if not force:
                return {}
            break
        column = next(iter(row))
        row = {i: a / row[column] for i, a in row.items()}
        pivots = {i: _minus(pivot, pivot.get(column, 0.0), row) for i, pivot in pivots.items()} | {column: row}
    free = next(i for i in columns if i not in pivots)
    return {free: 1.0} | {i: -pivot[free] for i, pivot in pivots.items() if free in pivot}


def _minus(row: dict[int, float], factor: float, other: dict[int, float]) -> dict[int, float]:
    if not factor:
        return row
    out = row | {i: row.get(i, 0.0) - factor * a for i, a in other.items()}
    return {i: a for i, a in out.items() if abs(a) > EPSILON}
