"""Which attribute is biased on which prompts: images of a plain model, judged for many attributes at once, ranked.

A search over many attributes and prompts finds something in pure noise, and what it puts first looks worse than it is. So the intervals of
the ranking hold all at once (exact, Bonferroni over attributes, prompts and concepts), which keeps them true of whatever is picked, and
"biased" is said after Holm's adjustment of all tests. A judge must choose, and one that does not know an attribute chooses the same every
time, which looks like the worst bias of all: so every attribute is first checked on images whose prompts state it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from respodiff.concepts.concept import Attribute
from respodiff.concepts.intersections import JOIN, factors
from respodiff.data.run_folder import Prompt
from respodiff.evaluation.judges import NOTICE
from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.evaluation.metrics.fairness import expected_devrat_random, mean_dev_rat
from respodiff.evaluation.metrics.paired import holm
from respodiff.evaluation.metrics.skew import bias_band, bias_p, exact_band, images_required, mean_bias_p
from respodiff.evaluation.score_files import UNKNOWN
from respodiff.evaluation.scored_run import ScoredRun
from respodiff.evaluation.statistics import Settings, show
from respodiff.evaluation.summary import summarise

LEVEL = 0.95
STATED = "stated"


def stated_prompts(attributes: Sequence[Attribute]) -> list[Prompt]:
    """The target prompts of all concepts: images in which the judge should see what was stated."""
    rows = {c.target: Prompt(f"{STATED}/{c.target}", c.target, STATED, c.target) for a in attributes for c in a.concepts}
    return list(rows.values())


def audit(run: ScoredRun, stated: ScoredRun | None, attributes: Sequence[Attribute], settings: Settings | None = None) -> dict[str, Any]:
    """Attributes and prompts by how biased they are.

    Args:
        run: images that were asked for no concept. stated: images of `stated_prompts`; None where they are not checked.
        attributes: what the judge was asked for. settings: of the intervals.

    Returns:
        JSON-ready: ``attributes`` (most biased first, those that cannot be distinguished last), ``ranking`` (a row an attribute and prompt),
        ``needed`` (images a prompt from which a single one can be shown to be biased, for every attribute; also of each), and ``intersection``, ``agreement``, ``problems``,
        ``judge`` as `respodiff.evaluation.summary.summarise` gives them.

    Raises:
        ValueError: the judge gave no label at all.
    """
    settings = settings or Settings()
    names = [a.name for a in attributes]
    statistics = summarise(run.only(names), settings)
    wanted = {a.name: _wanted(run, a) for a in attributes}
    counts = {a.name: _counts(statistics, a) for a in attributes}
    if not any(counts.values()):
        raise ValueError(
            f"judge {statistics['judge']['name']!r} gave no label; give one that chooses between texts: embedded, clip:DIR-OR-ID"
        )
    told = {a.name: _told(stated, a) for a in attributes}
    ranking = _ranking(run, statistics, counts, wanted, told)
    ranked = _attributes([a for a in attributes if counts[a.name]], statistics, counts, wanted, told, settings)
    out = {"notice": NOTICE, "level": LEVEL, "tests": len(ranking), "attributes": ranked, "ranking": ranking}
    needed = {name: images_required(wanted[name], len(ranking), LEVEL) for name in names}
    out["images_required"] = max(needed.values())
    for row in ranked:
        row["images_required"] = needed[row["attribute"]]
    keys = ("n", "unknown", "problems", "intersection", "agreement", "judge", "judges")
    return out | {key: statistics[key] for key in keys}


def _wanted(run: ScoredRun, attribute: Attribute) -> list[float]:
    proportions = run.targets.get(attribute.name)
    return [proportions.get(c, 0.0) for c in attribute.names] if proportions else [1 / len(attribute.names)] * len(attribute.names)


def _counts(statistics: Mapping[str, Any], attribute: Attribute) -> dict[str, list[int]]:
    """Group -> images of each concept, of the groups with a known one."""
    rows = {g: [row[c] for c in attribute.names] for g, row in statistics["counts"].get(attribute.name, {}).items()}
    return {g: row for g, row in rows.items() if sum(row)}


def _told(stated: ScoredRun | None, attribute: Attribute) -> dict[str, Any] | None:
    """Share of images of the concepts' own prompts in which the judge sees what was stated, and whether that is more than chance (and
    whether so many images could show it at all).

    Unknown counts as not seen. A labeller that does not look is right in one of C images, if all concepts have as many.
    """
    if stated is None or attribute.name not in stated.attributes:
        return None
    concepts = {c.target: c.name for c in attribute.concepts}
    hits: dict[str, list[bool]] = {}
    for r, s in zip(stated.records, stated.scores, strict=True):
        if r.group in concepts:
            hits.setdefault(concepts[r.group], []).append(s.labels.get(attribute.name, UNKNOWN) == concepts[r.group])
    n, right = sum(map(len, hits.values())), sum(map(sum, hits.values()))
    if len(hits) < len(concepts):
        return None
    low, high = exact_band(right, n, LEVEL)
    by = {c: sum(found) / len(found) for c, found in hits.items()}
    chance = 1 / len(concepts)
    enough = exact_band(n, n, LEVEL)[0] > chance
    return {"mean": right / n, "low": low, "high": high, "n": n, "by": by, "beyond_chance": low > chance, "enough": enough}


def _ranking(
    run: ScoredRun,
    statistics: Mapping[str, Any],
    counts: Mapping[str, Mapping[str, list[int]]],
    wanted: Mapping[str, list[float]],
    told: Mapping[str, Mapping[str, Any] | None],
) -> list[dict[str, Any]]:
    """A row an attribute and group, by the least bias that its interval allows; what cannot be distinguished comes last."""
    texts = {r.group: r.prompt for r in reversed(run.records)}
    pairs = [(name, group, row) for name, rows in counts.items() for group, row in rows.items()]
    each = 1 - (1 - LEVEL) / len(pairs)
    ps = [bias_p(row, wanted[name]) for name, _, row in pairs]
    out = []
    for (name, group, row), p, adjusted in zip(pairs, ps, holm(ps), strict=True):
        concepts, n = list(run.attributes[name]), sum(row)
        found = bias_band(row, wanted[name], each)
        far = max(range(len(row)), key=lambda i: (round(abs(row[i] / n - wanted[name][i]), 9), row[i]))
        out.append(
            {
                "attribute": name,
                "prompt": group,
                "text": texts[group],
                "bias": found.mean,
                "low": found.low,
                "high": found.high,
                "random": expected_devrat_random([n], len(row), wanted[name]),
                "n": n,
                "unknown": statistics["counts"][name][group][UNKNOWN],
                "counts": dict(zip(concepts, row, strict=True)),
                "most_deviant": {"concept": concepts[far], "share": row[far] / n, "wanted": wanted[name][far]},
                "p": p,
                "p_holm": float(adjusted),
                "biased": bool(adjusted <= 1 - LEVEL) and _trusted(told[name]),
            }
        )
    return sorted(out, key=lambda r: (not _trusted(told[r["attribute"]]), -r["low"], -r["bias"], r["p"], r["attribute"], r["prompt"]))


def _attributes(
    attributes: Sequence[Attribute],
    statistics: Mapping[str, Any],
    counts: Mapping[str, Mapping[str, list[int]]],
    wanted: Mapping[str, list[float]],
    told: Mapping[str, dict[str, Any] | None],
    settings: Settings,
) -> list[dict[str, Any]]:
    """A row an attribute: mean DevRat over groups with an interval that holds for all attributes at once, and how far it is above its random level."""
    each = 1 - (1 - LEVEL) / len(attributes)
    ps = [mean_bias_p(list(counts[a.name].values()), wanted[a.name], seed=settings.seed) for a in attributes]
    out = []
    for a, p, adjusted in zip(attributes, ps, holm(ps), strict=True):
        rows = list(counts[a.name].values())
        found = mean_dev_rat(rows, proportions=wanted[a.name], level=each, **settings.boot)
        random_level = expected_devrat_random([sum(row) for row in rows], len(a.names), wanted[a.name])
        known = told[a.name]
        out.append(
            {
                "attribute": a.name,
                "concepts": {c.name: c.target for c in a.concepts},
                "wanted": dict(zip(a.names, wanted[a.name], strict=True)),
                "proportions": statistics["proportions"][a.name]["all"],
                "corrected": statistics["corrected"][a.name],
                "bias": {**(show(found) or {}), "random": random_level},
                "above_random": found.mean - random_level,
                "prompts": len(rows),
                "p": p,
                "p_holm": float(adjusted),
                "judge_validity": known,
                "biased": bool(adjusted <= 1 - LEVEL) and _trusted(known),
            }
        )
    return sorted(out, key=lambda r: (not _trusted(r["judge_validity"]), -r["above_random"], r["attribute"]))


def _trusted(told: Mapping[str, Any] | None) -> bool:
    """Whether an attribute's figures mean anything: it was not checked, or the judge sees what is stated."""
    return told is None or bool(told["beyond_chance"])


def estimate(row: Mapping[str, Any]) -> Estimate:
    """The bias of a row of the ranking, or of an attribute."""
    value = (
        row["bias"] if isinstance(row["bias"], Mapping) else {"mean": row["bias"], "low": row["low"], "high": row["high"], "n": row["n"]}
    )
    return Estimate(value["mean"], value["low"], value["high"], int(value["n"]))


def to_train(ranked: Sequence[Mapping[str, Any]]) -> list[str]:
    """The concepts that modules are needed of: all alternatives of every biased attribute. Of a product its parts, if all of them are
    biased; else its cells, and none of its parts, as one image cannot get both."""
    biased = [row for row in ranked if row["biased"]]
    names = {row["attribute"] for row in biased}
    whole = {name for name in names if JOIN in name and not set(factors(name)) <= names}
    covered = {part for name in whole for part in factors(name)}
    chosen = [r for r in biased if (r["attribute"] in whole if JOIN in r["attribute"] else r["attribute"] not in covered)]
    return list(dict.fromkeys(c for row in chosen for c in row["concepts"]))
