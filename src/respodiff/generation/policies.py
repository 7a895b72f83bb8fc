"""Samples a concept for each image: exact counts or random, any target proportions, intersections of attributes.

Every function is pure: the seed is an argument, and no global random state is read or written.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from fractions import Fraction
from hashlib import blake2b
from typing import Literal, get_args

from respodiff.concepts.intersections import JOIN, alternatives, factors, is_intersection, subgroups
from respodiff.data.target_proportions import check_proportions

Policy = Literal["none", "exact", "random"]
Names = Mapping[str, Sequence[str]]
"""Attribute -> names of its concepts."""


def assign(
    attributes: Names,
    n: int,
    policy: Policy = "exact",
    *,
    proportions: Mapping[str, Mapping[str, float]] | None = None,
    seed: int = 0,
) -> list[dict[str, str]]:
    """Sample a concept of every attribute for each of the n images of one prompt.

    Args:
        attributes: attribute -> names of its concepts, e.g. ``{"gender": ["woman", "man"], "tone": [...]}``.
        n: number of images, at least 1.
        policy: ``exact``: counts within 1 of n * share, in shuffled order, and over many seeds equal to it. Of two attributes, each pair of
            concepts is within 1 too; of more, the pairs of the first two. ``random``: independent samples. ``none``: empty dictionaries.
        proportions: attribute -> target proportions; uniform where not given.
        seed: of the order and of the samples.

    Raises:
        ValueError: ``n`` or the policy is not allowed, or shares are of an unknown attribute or concept, negative, or do not sum to 1.
    """
    if n < 1:
        raise ValueError(f"n is {n!r}; allowed: at least 1")
    if policy not in get_args(Policy):
        raise ValueError(f"policy is {policy!r}; allowed: {', '.join(get_args(Policy))}")
    if unknown := set(proportions or {}) - set(attributes):
        raise ValueError(
            f"proportions are given for {sorted(unknown)[0]!r}, but no concept of it is steered; known: {', '.join(attributes)}"
        )
    wanted = [check_proportions(names, (proportions or {}).get(a)) for a, names in attributes.items()]
    if policy == "none" or not attributes:
        return [{} for _ in range(n)]
    rng = random.Random(seed)
    if policy == "random":
        rows = list(zip(*(rng.choices(range(len(shares)), shares, k=n) for shares in wanted), strict=True))
    else:
        rows = _exact_rows(wanted, n, seed, rng)
        rng.shuffle(rows)
    return [{a: names[i] for (a, names), i in zip(attributes.items(), row, strict=True)} for row in rows]


def prompt_seed(seed: int, prompt_id: str) -> int:
    """Seed of one prompt, so that its concepts do not depend on the other prompts of the run."""
    return int.from_bytes(blake2b(f"policy/{seed}/{prompt_id}".encode(), digest_size=7).digest(), "big")


def exact_counts(proportions: Sequence[float], n: int, seed: int = 0) -> list[int]:
    """Whole counts that sum to n, each within 1 of n * share (largest remainder method).

    Equal remainders are ordered by the seed, so that over many prompts no concept gets the odd image more often.
    """
    quotas = [n * s for s in proportions]
    counts = [math.floor(q + 1e-9) for q in quotas]
    order = list(range(len(proportions)))
    random.Random(seed).shuffle(order)
    order.sort(key=lambda i: round(counts[i] - quotas[i], 9))
    for i in order[: n - sum(counts)]:
        counts[i] += 1
    return counts


def _exact_rows(wanted: Sequence[Sequence[float]], n: int, seed: int, rng: random.Random) -> list[tuple[int, ...]]:
    """For each of n images the index of its concept of every attribute, in no particular order."""
    first, *others = wanted
    if not others:
        counts = exact_counts(first, n, seed)
        ties = rng.sample(range(len(counts)), len(counts))
        spread = sorted(((j + 0.5) / count, ties[i], i) for i, count in enumerate(counts) for j in range(count))
        rng.random()  # not used, but every published table was generated from the order that follows
        return [(i,) for *_, i in spread]
    quotas: dict[tuple[int, ...], Fraction] = {(i,): n * s for i, s in enumerate(_fractions(first))}
    for proportions in others:
        table = rounded_table([[quota * s for s in _fractions(proportions)] for quota in quotas.values()], rng)
        quotas = {(*cell, j): Fraction(c) for cell, row in zip(quotas, table, strict=True) for j, c in enumerate(row)}
    return [cell for cell, count in quotas.items() for _ in range(int(count))]


def _fractions(proportions: Sequence[float]) -> list[Fraction]:
    """Shares as exact numbers that sum to 1: 0.1 is a tenth, and the float next to a third is a third."""
    exact = [Fraction(s).limit_denominator(10**9) for s in proportions]
    return [s / sum(exact) for s in exact]


def rounded_table(table: Sequence[Sequence[Fraction]], rng: random.Random) -> list[list[int]]:
    """Whole numbers for a table with a whole total (unbiased controlled rounding, Cox 1987).

    Every entry, row sum and column sum becomes one of the two whole numbers around it. Over many seeds the mean of an entry is the entry.
    """
    # With their negative sums appended all lines sum to zero, so that a line with one fraction has a second one.
    full = [[*row, -sum(row, Fraction())] for row in table]
    full.append([-sum(column, Fraction()) for column in zip(*full, strict=True)])
    while cycle := _fraction_cycle(full):
        signs = [(-1) ** k for k in range(len(cycle))]
        # Distances to the nearest whole entry upwards and downwards; (-x) % 1 is ceil(x) - x.
        up, down = (min(-way * s * full[i][j] % 1 for (i, j), s in zip(cycle, signs, strict=True)) for way in (1, -1))
        # Move until one entry of the cycle is whole, in a random direction that keeps the mean of each entry.
        move = -down if rng.random() * (up + down) < up else up
        for (i, j), s in zip(cycle, signs, strict=True):
            full[i][j] += s * move
    return [[int(x) for x in row[:-1]] for row in full[:-1]]


def _fraction_cycle(full: Sequence[Sequence[Fraction]]) -> list[tuple[int, int]]:
    """A cycle of entries that are not whole, each in the row or column of the one before; empty if all are whole."""
    left = [(i, j) for i, row in enumerate(full) for j, x in enumerate(row) if x.denominator > 1]
    if not left:
        return []
    lines = [(0, left[0][0])]  # as (0, row) or (1, column)
    entries: list[tuple[int, int]] = []
    while lines[-1] not in lines[:-1]:
        axis, index = lines[-1]
        entries.append(next(e for e in left if e[axis] == index and e not in entries[-1:]))
        lines.append((1 - axis, entries[-1][1 - axis]))
    return entries[lines.index(lines[-1]) :]


def sampled_attributes(loaded: Names, proportions: Mapping[str, Mapping[str, float]] | None) -> dict[str, list[str]]:
    """Attribute -> concepts that a policy samples from, for the modules that are loaded.

    An intersection with modules for all its subgroups is sampled by its factors, as separate modules would be, so that both ask for the same
    concepts in each image. If shares of its subgroups are given, the subgroups are sampled instead.

    Raises:
        ValueError: an attribute stands in two kinds of modules.
    """
    out: dict[str, list[str]] = {}
    for attribute, names in loaded.items():
        wanted = {attribute: list(names)}
        if is_intersection(attribute, names) and attribute not in (proportions or {}):
            by_factor = alternatives(attribute, names)
            wanted = by_factor if set(subgroups(list(by_factor.values()))) == set(names) else wanted
        if clash := {f for name in wanted for f in factors(name)} & {f for name in out for f in factors(name)}:
            raise ValueError(
                f"modules of {attribute!r} and of others both steer {min(clash)!r}; give modules of the intersection or of its factors"
            )
        out |= wanted
    for attribute in proportions or {}:
        if attribute not in out and all(factor in out for factor in factors(attribute)):
            out[attribute] = subgroups([out.pop(factor) for factor in factors(attribute)])
    return out


def attribute_of_concept(loaded: Names, name: str) -> str | None:
    """The loaded attribute that a concept or subgroup belongs to; a concept of a loaded intersection belongs to its factor. None if unknown."""
    by_factor = {
        a: v for attribute, names in loaded.items() if is_intersection(attribute, names) for a, v in alternatives(attribute, names).items()
    }
    for attribute, names in (*loaded.items(), *by_factor.items()):
        if name in names:
            return attribute
    owners = {concept: attribute for attribute, names in loaded.items() for concept in names}
    found = [owners.get(concept) for concept in factors(name)]
    return None if None in found or len(set(found)) < max(2, len(found)) else JOIN.join(str(owner) for owner in found)


def missing_concepts(loaded: Names, attribute: str, names: Sequence[str]) -> list[str]:
    """The concepts of an attribute without a module; of an intersection that is steered by its factors, the missing concepts of these."""
    if attribute in loaded or not is_intersection(attribute, names):
        return [name for name in names if name not in loaded.get(attribute, ())]
    wanted = alternatives(attribute, names)
    return [name for factor, concepts in wanted.items() for name in concepts if name not in loaded.get(factor, ())]
