"""Candidates for the neutral prompt side by side: figures with intervals, whether the choice matters, and which one to take.

The rule, fixed before any module was trained with it: the concept's own prompt stays, unless a candidate's mean of residual and
distance (`respodiff.experiments.neutral`) is lower beyond an interval that holds for all candidates at once. Both figures are shares of what a prompt
adds to the empty one, and count alike. Whether a lower figure makes a fairer module is another question (``benchmarks/neutral.py``).
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from respodiff.concepts.concept import Concept
from respodiff.evaluation.metrics.bootstrap import ratio_draws, stretch, summed_draws
from respodiff.experiments.neutral import Candidate
from respodiff.training.axes import OWN
from respodiff.training.config import TrainConfig

LEVEL = 0.95
SAME = 0.9
"""Pushes of two prompts count as the same from this cosine on: 26 degrees. A convention, no finding."""
Floats = NDArray[np.float64]


def choice(found: Sequence[Candidate], concept: Concept, *, n_bootstrap: int = 2000, seed: int = 0) -> dict[str, Any]:
    """JSON-ready figures of candidates, the concept's own neutral prompt first.

    Returns:
        ``candidates`` (each with residual, distance and both, as {mean, low, high, n}, ``less_own``: both less that of the own prompt,
        ``proportions`` of the alternatives, ``cosine_to_own`` with its interval), ``cosines`` (prompt -> prompt -> cosine of pushes),
        ``lowest`` (the pair that differs most, and its cosine), ``matters``, ``recommended``.

    Raises:
        ValueError: the first candidate is not the concept's own prompt.
    """
    if not found or found[0].prompt != concept.neutral:
        raise ValueError(f"candidates begin with {found[0].prompt if found else None!r}; give the own prompt {concept.neutral!r} first")
    draws = [_draws(c, n_bootstrap, seed, LEVEL) for c in found]
    each = 1 - (1 - LEVEL) / max(1, len(found) - 1)  # differences hold for all candidates at once
    own = _draws(found[0], n_bootstrap, seed, each)["both"]
    rows: list[dict[str, Any]] = []
    for c, d in zip(found, draws, strict=True):
        difference = _draws(c, n_bootstrap, seed, each)["both"]
        less = None if c is found[0] else _interval(difference[0] - own[0], difference[1] - own[1], each, len(c.distance[0]))
        rows.append(
            {
                "neutral": c.prompt,
                "residual": _interval(*d["residual"], LEVEL, len(c.residual[0])),
                "distance": _interval(*d["distance"], LEVEL, len(c.distance[0])),
                "both": _interval(*d["both"], LEVEL, len(c.distance[0])),
                "less_own": less,
                "proportions": dict(zip((concept.target, *concept.opposites), c.proportions, strict=True)),
                "cosine_to_own": cosine(c, found[0], n_bootstrap=n_bootstrap, seed=seed),
            }
        )
    cosines = {a.prompt: {b.prompt: cosine(a, b, n_bootstrap=1)["mean"] for b in found} for a in found}
    value, *pair = min((cosines[a.prompt][b.prompt], a.prompt, b.prompt) for a in found for b in found)
    better = [row for row in rows[1:] if row["less_own"]["high"] < 0]
    best = min(better, key=lambda row: row["both"]["mean"]) if better else rows[0]
    out = {"concept": concept.name, "own": concept.neutral, "candidates": rows, "cosines": cosines}
    return out | {"lowest": {"pair": pair, "cosine": value}, "matters": value < SAME, "recommended": best["neutral"]}


def cosine(a: Candidate, b: Candidate, *, n_bootstrap: int = 2000, seed: int = 0) -> dict[str, float]:
    """Cosine of two prompts' pushes, latent beside latent: sum <a_i, b_i> / (sum |a_i|^2 sum |b_i|^2)^(1/2), with a bootstrap over rollouts."""
    x, y = (c.push.flatten(1).double() for c in (a, b))
    units = int(a.units.max()) + 1
    products = torch.stack([(x * y).sum(1), (x * x).sum(1), (y * y).sum(1)], 1)
    sums = torch.zeros(units, 3, dtype=torch.float64).index_add(0, a.units, products).numpy()
    drawn = summed_draws(sums, n_bootstrap=n_bootstrap, seed=seed)
    point, draws = _ratio(sums.sum(0), 1.0), _ratio(drawn, _ratio(sums.sum(0), 1.0))
    found = _interval(float(point), stretch(draws, point, units, LEVEL), LEVEL, units)
    return found | {"low": max(-1.0, found["low"]), "high": min(1.0, found["high"])}


def _ratio(sums: Floats, otherwise: float | Floats) -> Floats:
    """Cosines (...) from sums <a, b>, |a|^2, |b|^2 (..., 3); ``otherwise`` where a prompt gives no push at all."""
    length = np.sqrt(sums[..., 1] * sums[..., 2])
    return np.where(length > 0, sums[..., 0] / np.where(length > 0, length, 1.0), otherwise)


def _draws(c: Candidate, n_bootstrap: int, seed: int, level: float) -> dict[str, tuple[float, Floats]]:
    """Points and bootstrap samples of a candidate's figures. Equal seeds draw the same units of every candidate, so that draws can be
    subtracted."""
    out = {}
    for i, (name, (tops, bottoms)) in enumerate((("residual", c.residual), ("distance", c.distance))):
        point = sum(tops) / sum(bottoms)
        drawn = ratio_draws(tops, bottoms, n_bootstrap=n_bootstrap, seed=2 * seed + i)
        out[name] = (point, stretch(drawn, point, len(tops), level))
    (a, x), (b, y) = out.values()
    return out | {"both": ((a + b) / 2, (x + y) / 2)}


def _interval(point: float, draws: Floats, level: float, n: int) -> dict[str, float]:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return {"mean": point, "low": min(low, point), "high": max(high, point), "n": n}


def lines(result: dict[str, Any], concept: Concept, model: str) -> list[str]:
    """The console table, what it says, and the command to train with."""
    width = max(len("neutral prompt"), *(len(row["neutral"]) for row in result["candidates"]))
    head = f"{'neutral prompt':<{width}}  {'residual':<22}  {'distance':<22}  {'both, less own':<24}  {'draws':<14}  cosine"
    out = [head]
    for row in result["candidates"]:
        less = "own" if row["less_own"] is None else _signed(row["less_own"])
        draws = " ".join(f"{share:.2f}" for share in row["proportions"].values())
        cells = f"{_shown(row['residual']):<22}  {_shown(row['distance']):<22}  {less:<24}  {draws:<14}"
        out.append(f"{row['neutral']:<{width}}  {cells}  {_shown(row['cosine_to_own'])}")
    pair, value = result["lowest"]["pair"], result["lowest"]["cosine"]
    says = "the choice matters" if result["matters"] else "the choice hardly matters"
    out.append(f"training sets out most differently on {pair[0]!r} and {pair[1]!r}: cosine {value:.2f}, {says}")
    if result["recommended"] == result["own"]:
        out.append(f"stay with {result['own']!r}: no candidate is better beyond its interval")
        return [*out, shlex.join(["respodiff", "train", "--model", model, "--concept", concept.name, "--out", _file(concept)])]
    out.append(f"take {result['recommended']!r}: closer to its alternatives and subjects than {result['own']!r}, beyond its interval")
    return [*out, command(concept, result["recommended"], model)]


def command(concept: Concept, neutral: str, model: str) -> str:
    """How to train the concept on another neutral prompt."""
    flags = ["--target", concept.target, "--neutral", neutral, "--name", concept.name]
    flags += ["--attribute", concept.attribute] if concept.attribute else []
    flags += ["--negative", concept.negative] if concept.negative else []
    flags += [part for text in concept.opposites for part in ("--opposite", text)]
    flags += [part for text in concept.preserve for part in ("--preserve", text)]
    if concept.contexts:
        flags += ["--set", f"contexts={','.join(concept.contexts)}", "--set", f"rollouts={TrainConfig(contexts=OWN).of(concept).rollouts}"]
    return shlex.join(["respodiff", "train", "--model", model, *flags, "--out", _file(concept)])


def _file(concept: Concept) -> str:
    return f"{concept.name.replace('*', '-')}.safetensors"


def _shown(e: dict[str, float]) -> str:
    return f"{e['mean']:.3f} [{e['low']:.3f}, {e['high']:.3f}]"


def _signed(e: dict[str, float]) -> str:
    return f"{e['mean']:+.3f} [{e['low']:+.3f}, {e['high']:+.3f}]"
