"""Which concept each image gets: exact counts, random draws, any target shares, products of attributes.

Every function is a pure function of its arguments; the seed is explicit and nothing touches a global random state.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Literal, get_args

Policy = Literal["none", "exact", "random"]


def check_shares(names: Sequence[str], shares: Mapping[str, float] | None) -> list[float]:
    """Shares in the order of ``names``, uniform if None. ValueError unless they are known, not negative, and sum to 1."""
    if not names:
        raise ValueError("no concepts to draw from; give at least one")
    if shares is None:
        return [1 / len(names)] * len(names)
    if unknown := [s for s in shares if s not in names]:
        raise ValueError(f"shares name {unknown[0]!r}, which is not among the concepts {', '.join(names)}; use those names")
    values = [float(shares.get(n, 0.0)) for n in names]
    for name, value in zip(names, values, strict=True):
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"share of {name!r} is {value}; allowed: 0 to 1")
    if abs(sum(values) - 1) > 1e-6:
        raise ValueError(f"shares sum to {sum(values):g}; they must sum to 1 (concepts that are not named get 0)")
    return values


def exact_counts(shares: Sequence[float], n: int, seed: int = 0) -> list[int]:
    """Whole counts that sum to n, each within 1 of n * share (largest remainder; equal remainders in an order drawn from the seed,
    so that over many prompts no concept gets the odd image more often)."""
    quotas = [n * s for s in shares]
    counts = [math.floor(q + 1e-9) for q in quotas]
    order = list(range(len(shares)))
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


def assign(
    attributes: Mapping[str, Sequence[str]],
    n: int,
    policy: Policy = "exact",
    *,
    shares: Mapping[str, Mapping[str, float]] | None = None,
    seed: int = 0,
) -> list[dict[str, str]]:
    """A concept of every attribute for each of n images of one prompt.

    Args:
        attributes: attribute -> names of its concepts, e.g. ``{"gender": ["woman", "man"], "tone": [...]}``.
        n: number of images, at least 1.
        policy: ``exact``: stratified counts, each concept (and of two attributes each cell) within 1 of its quota, in shuffled order;
            ``random``: independent draws per image; ``none``: empty dictionaries.
        shares: attribute -> target shares, uniform where not given.
        seed: of the order and of the draws.

    Raises:
        ValueError: for n < 1, an unknown policy, or shares that are negative or do not sum to 1.
    """
    if n < 1:
        raise ValueError(f"number of images is {n}; allowed: at least 1")
    if policy not in get_args(Policy):
        raise ValueError(f"policy is {policy!r}; allowed: {', '.join(get_args(Policy))}")
    if unknown := set(shares or {}) - set(attributes):
        raise ValueError(f"shares are given for {sorted(unknown)[0]!r}, but no concept of it is steered; known: {', '.join(attributes)}")
    wanted = {a: check_shares(names, (shares or {}).get(a)) for a, names in attributes.items()}
    out: list[dict[str, str]] = [{} for _ in range(n)]
    if policy == "none":
        return out
    rng = random.Random(seed)
    for k, (attribute, names) in enumerate(attributes.items()):
        if policy == "random":
            drawn = rng.choices(range(len(names)), wanted[attribute], k=n)
        else:
            drawn = _spread(exact_counts(wanted[attribute], n, seed + k), rng)
            # Grouped by what was drawn before, an evenly spread sequence fills the cells of the product evenly too. The groups come in
            # an order drawn anew: in a fixed one the same cells would get the odd image at every prompt.
            place = {cell: rng.random() for cell in dict.fromkeys(tuple(row.values()) for row in out)}
            out.sort(key=lambda row: place[tuple(row.values())])
        for row, i in zip(out, drawn, strict=True):
            row[attribute] = names[i]
    if policy == "exact":
        rng.shuffle(out)
    return out


def prompt_seed(seed: int, prompt_id: str) -> int:
    """Seed of the draws of one prompt, so that its assignment does not depend on which other prompts are in the run."""
    return int.from_bytes(blake2b(f"policy/{seed}/{prompt_id}".encode(), digest_size=7).digest(), "big")
