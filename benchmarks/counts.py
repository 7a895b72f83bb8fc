"""How far exact counts are from their quotas, over prompts, groups and runs: shares of women .5, .3 and .12 by group, tones equal.

python -m benchmarks.counts     (1 minute; its greatest values are in docs/generation.md)
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from respodiff.generation.policies import Target, assign_run

GENDER = {"gender": ["woman", "man"]}
TONE = {"tone": ["light", "medium", "dark"]}
SHARES = (0.5, 0.3, 0.12)
GROUPS = 36
SEEDS = 200


def targets(sizes: Sequence[int]) -> dict[str, Target]:
    """The prompts of `GROUPS` groups by id; sizes are numbers of prompts, taken in turn."""
    return {
        f"{g}/{i}": Target(f"group {g}", {"gender": {"woman": SHARES[g % 3], "man": 1 - SHARES[g % 3]}})
        for g in range(GROUPS)
        for i in range(sizes[g % len(sizes)])
    }


def deviations(
    names: Mapping[str, Sequence[str]], n: int, prompts: Mapping[str, Target], rows: Mapping[str, Sequence[Mapping[str, str]]]
) -> dict[tuple[str, int], float]:
    """("prompt", "group" or "run", number of concepts combined) -> largest difference of a count and its quota in images."""
    found: dict[tuple[str, str], dict[Any, float]] = defaultdict(lambda: defaultdict(float))
    for p, target in prompts.items():
        shares = {a: target.proportions.get(a, dict.fromkeys(names[a], 1 / len(names[a]))) for a in names if a not in target.skipped}
        for size in range(len(shares) + 1):
            for chosen in itertools.combinations(shares, size):
                counts = Counter(tuple((a, row[a]) for a in chosen) for row in rows[p])
                for combined in itertools.product(*[[(a, c) for c in names[a]] for a in chosen]):
                    off = counts[combined] - n * math.prod(shares[a].get(c, 0.0) for a, c in combined)
                    for key in (("prompt", p), ("group", target.group), ("run", "")):
                        found[key][combined] += off
    out: dict[tuple[str, int], float] = defaultdict(float)
    for (level, _), by_concept in found.items():
        for combined, off in by_concept.items():
            out[level, len(combined)] = max(out[level, len(combined)], abs(off))
    return out


def main() -> None:
    print("| attributes | prompts a group | images a prompt | prompt | group | run | n |\n| --- | --- | --- | --- | --- | --- | --- |")
    for names, sizes, n in itertools.product((GENDER, {**GENDER, **TONE}), ((5,), (1, 2, 3, 5)), (1, 2, 5, 12)):
        prompts, worst = targets(sizes), dict.fromkeys(("prompt", "group", "run"), 0.0)
        for seed in range(SEEDS):
            for (level, _), off in deviations(names, n, prompts, assign_run(names, n, "exact", prompts, seed)).items():
                worst[level] = max(worst[level], off)
        cells = [f"{off:.2f}" for off in worst.values()]
        print(f"| {', '.join(names)} | {', '.join(map(str, sizes))} | {n} | {' | '.join(cells)} | {SEEDS} |", flush=True)


if __name__ == "__main__":
    main()
