"""Samples a concept for each image: exact counts or random, any target proportions, intersections of attributes.

Every function is pure: the seed is an argument, and no global random state is read or written.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Collection, Hashable, Mapping, Sequence
from hashlib import blake2b
from typing import Literal, NamedTuple, get_args

from respodiff.concepts.intersections import JOIN, alternatives, factors, is_intersection, subgroups
from respodiff.data.target_proportions import check_proportions
from respodiff.generation.apportionment import Counts, Quotas, apportion

Policy = Literal["none", "exact", "random"]
Names = Mapping[str, Sequence[str]]
"""Attribute -> names of its concepts."""


class Target(NamedTuple):
    """What the images of one prompt should show.

    Attributes:
        group: prompts of one group have the same target proportions, and their counts are exact together.
        proportions: attribute -> target proportions; uniform where not given.
        skipped: attributes of which the prompt gets no concept.
    """

    group: str = ""
    proportions: Mapping[str, Mapping[str, float]] = {}
    skipped: Collection[str] = ()


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
        policy: ``exact``: counts within 1 of n * share, of each concept and each combination, in shuffled order; over many seeds equal to it.
            With three and more attributes combinations may be off by more. ``random``: independent samples. ``none``: empty dictionaries.
        proportions: attribute -> target proportions; uniform where not given.
        seed: of the order and of the samples.

    Raises:
        ValueError: ``n`` or the policy is not allowed, or shares are of an unknown attribute or concept, negative, or do not sum to 1.
    """
    if n < 1:
        raise ValueError(f"n is {n!r}; allowed: at least 1")
    if policy not in get_args(Policy):
        raise ValueError(f"policy is {policy!r}; allowed: {', '.join(get_args(Policy))}")
    shares = checked_shares(attributes, proportions)
    if policy == "none" or not attributes:
        return [{} for _ in range(n)]
    rng = random.Random(seed)
    if policy == "random":
        drawn = [rng.choices(list(of_concept), list(of_concept.values()), k=n) for of_concept in shares.values()]
        return [dict(zip(attributes, row, strict=True)) for row in zip(*drawn, strict=True)]
    counts = apportion({"": _quotas(shares, n)}, {"": [""]}, random.Random(f"counts/{seed}"))
    return _shuffled(counts[""], rng)


def assign_run(attributes: Names, n: int, policy: Policy, prompts: Mapping[str, Target], seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """As `assign` for every prompt of a run, by its id: ``exact`` counts hold for each prompt, each group, and the run as a whole.

    They depend on all of the prompts, but not on their order. Samples of ``random`` depend on the seed and the prompt's id alone.
    """
    if policy != "exact":
        rows = {p: assign(attributes, n, policy, proportions=t.proportions, seed=prompt_seed(seed, p)) for p, t in prompts.items()}
        return {p: [{a: c for a, c in row.items() if a not in prompts[p].skipped} for row in found] for p, found in rows.items()}
    groups: dict[Hashable, list[str]] = {}
    quotas: dict[Hashable, Quotas] = {}
    for p, target in sorted(prompts.items(), key=lambda item: (item[1].group, item[0])):
        key = (target.group, tuple(a for a in attributes if a not in target.skipped))
        if key not in groups:
            shares = checked_shares(attributes, target.proportions)
            groups[key], quotas[key] = [], _quotas({a: shares[a] for a in key[1]}, n)
        groups[key].append(p)
    counts = apportion(quotas, groups, random.Random(f"counts/{seed}"))
    return {p: _shuffled(counts[p], random.Random(prompt_seed(seed, p))) for p in prompts}


def checked_shares(attributes: Names, proportions: Mapping[str, Mapping[str, float]] | None) -> dict[str, dict[str, float]]:
    """Attribute -> concept -> share, uniform where not given; ValueError as for `assign`."""
    if unknown := set(proportions or {}) - set(attributes):
        raise ValueError(
            f"proportions are given for {sorted(unknown)[0]!r}, but no concept of it is steered; known: {', '.join(attributes)}"
        )
    shares = {a: check_proportions(names, (proportions or {}).get(a)) for a, names in attributes.items()}
    return {a: {c: share / math.fsum(shares[a]) for c, share in zip(names, shares[a], strict=True)} for a, names in attributes.items()}


def _quotas(shares: Mapping[str, Mapping[str, float]], n: int) -> Quotas:
    """The images that each combination of concepts should have of n; those with a share of 0 are left out."""
    cells = itertools.product(*[[(a, c) for c, share in of_concept.items() if share] for a, of_concept in shares.items()])
    return tuple((cell, n * math.prod(shares[a][c] for a, c in cell)) for cell in cells)


def _shuffled(counts: Counts, rng: random.Random) -> list[dict[str, str]]:
    """The images of these counts in a random order."""
    cells = [cell for cell, count in counts.items() for _ in range(count)]
    if all(len(cell) == 1 for cell in counts):  # the order that every published table was generated from
        ties = dict(zip(counts, rng.sample(range(len(counts)), len(counts)), strict=True))
        spread = sorted(((j + 0.5) / count, ties[cell], cell) for cell, count in counts.items() for j in range(count))
        rng.random()
        cells = [cell for *_, cell in spread]
    rng.shuffle(cells)
    return [dict(cell) for cell in cells]


def prompt_seed(seed: int, prompt_id: str) -> int:
    """Seed of one prompt: of the order of its concepts, and of random ones."""
    return int.from_bytes(blake2b(f"policy/{seed}/{prompt_id}".encode(), digest_size=7).digest(), "big")


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
