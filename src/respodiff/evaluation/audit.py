"""Which attribute is skewed on which prompts: pictures of a plain model, judged for many attributes at once, ranked.

A search over many attributes and prompts finds something in pure noise, and what it puts first looks worse than it is. So the intervals of
the ranking hold all at once (exact, Bonferroni over attributes, prompts and concepts), which keeps them true of whatever is picked, and
"skewed" is said after Holm's adjustment of all tests. A judge must choose, and one that does not know an attribute chooses the same every
time, which looks like the worst skew of all: so every attribute is first checked on pictures whose prompts state it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from respodiff.concepts.concept import Attribute
from respodiff.concepts.intersections import JOIN, parts
from respodiff.data.run_folder import Prompt
from respodiff.evaluation.judges import NOTICE, UNKNOWN
from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.evaluation.metrics.fairness import mean_dev_rat, noise_floor
from respodiff.evaluation.metrics.paired import holm
from respodiff.evaluation.metrics.skew import exact_band, mean_skew_p, pictures_needed, skew_band, skew_p
from respodiff.evaluation.scored_run import JudgedRun
from respodiff.evaluation.statistics import Settings, show
from respodiff.evaluation.summary import summarise

LEVEL = 0.95
STATED = "stated"


def stated_prompts(attributes: Sequence[Attribute]) -> list[Prompt]:
    """The target prompts of all concepts: pictures in which the judge should see what was stated."""
    rows = {c.target: Prompt(f"{STATED}/{c.target}", c.target, STATED, c.target) for a in attributes for c in a.concepts}
    return list(rows.values())


def audit(run: JudgedRun, stated: JudgedRun | None, attributes: Sequence[Attribute], settings: Settings | None = None) -> dict[str, Any]:
    """Attributes and prompts by how skewed they are.

    Args:
        run: pictures that were asked for no concept. stated: pictures of `stated_prompts`; None where they are not checked.
        attributes: what the judge was asked for. settings: of the intervals.

    Returns:
        JSON-ready: ``attributes`` (most skewed first, those that cannot be told apart last), ``ranking`` (a row an attribute and prompt),
        ``needed`` (pictures a prompt from which a single one can be shown to be skewed, for every attribute; also of each), and ``intersection``, ``agreement``, ``problems``,
        ``judge`` as `respodiff.evaluation.summary.summarise` gives them.

    Raises:
        ValueError: the judge gave no label at all.
    """
    settings = settings or Settings()
    names = [a.name for a in attributes]
    figures = summarise(run.only(names), settings)
    wanted = {a.name: _wanted(run, a) for a in attributes}
    counts = {a.name: _counts(figures, a) for a in attributes}
    if not any(counts.values()):
        raise ValueError(f"judge {figures['judge']['name']!r} gave no label; give one that chooses between texts: embedded, clip:DIR-OR-ID")
    told = {a.name: _told(stated, a) for a in attributes}
    ranking = _ranking(run, figures, counts, wanted, told)
    ranked = _attributes([a for a in attributes if counts[a.name]], figures, counts, wanted, told, settings)
    out = {"notice": NOTICE, "level": LEVEL, "tests": len(ranking), "attributes": ranked, "ranking": ranking}
    needed = {name: pictures_needed(wanted[name], len(ranking), LEVEL) for name in names}
    out["needed"] = max(needed.values())
    for row in ranked:
        row["needed"] = needed[row["attribute"]]
    keys = ("n", "unknown", "problems", "intersection", "agreement", "judge", "judges")
    return out | {key: figures[key] for key in keys}


def _wanted(run: JudgedRun, attribute: Attribute) -> list[float]:
    shares = run.targets.get(attribute.name)
    return [shares.get(c, 0.0) for c in attribute.names] if shares else [1 / len(attribute.names)] * len(attribute.names)


def _counts(figures: Mapping[str, Any], attribute: Attribute) -> dict[str, list[int]]:
    """Group -> pictures of each concept, of the groups with a known one."""
    rows = {g: [row[c] for c in attribute.names] for g, row in figures["counts"].get(attribute.name, {}).items()}
    return {g: row for g, row in rows.items() if sum(row)}


def _told(stated: JudgedRun | None, attribute: Attribute) -> dict[str, Any] | None:
    """Share of pictures of the concepts' own prompts in which the judge sees what was stated, and whether that is more than chance (and
    whether so many pictures could show it at all).

    Unknown counts as not seen. A labeller that does not look is right in one of C pictures, if all concepts have as many.
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
    run: JudgedRun,
    figures: Mapping[str, Any],
    counts: Mapping[str, Mapping[str, list[int]]],
    wanted: Mapping[str, list[float]],
    told: Mapping[str, Mapping[str, Any] | None],
) -> list[dict[str, Any]]:
    """A row an attribute and group, by the least skew that its interval allows; what cannot be told apart comes last."""
    texts = {r.group: r.prompt for r in reversed(run.records)}
    pairs = [(name, group, row) for name, rows in counts.items() for group, row in rows.items()]
    each = 1 - (1 - LEVEL) / len(pairs)
    ps = [skew_p(row, wanted[name]) for name, _, row in pairs]
    out = []
    for (name, group, row), p, adjusted in zip(pairs, ps, holm(ps), strict=True):
        concepts, n = list(run.attributes[name]), sum(row)
        found = skew_band(row, wanted[name], each)
        far = max(range(len(row)), key=lambda i: (round(abs(row[i] / n - wanted[name][i]), 9), row[i]))
        out.append(
            {
                "attribute": name,
                "prompt": group,
                "text": texts[group],
                "skew": found.mean,
                "low": found.low,
                "high": found.high,
                "floor": noise_floor([n], len(row), wanted[name]),
                "n": n,
                "unknown": figures["counts"][name][group][UNKNOWN],
                "counts": dict(zip(concepts, row, strict=True)),
                "furthest": {"concept": concepts[far], "share": row[far] / n, "wanted": wanted[name][far]},
                "p": p,
                "p_holm": float(adjusted),
                "skewed": bool(adjusted <= 1 - LEVEL) and _trusted(told[name]),
            }
        )
    return sorted(out, key=lambda r: (not _trusted(told[r["attribute"]]), -r["low"], -r["skew"], r["p"], r["attribute"], r["prompt"]))


def _attributes(
    attributes: Sequence[Attribute],
    figures: Mapping[str, Any],
    counts: Mapping[str, Mapping[str, list[int]]],
    wanted: Mapping[str, list[float]],
    told: Mapping[str, dict[str, Any] | None],
    settings: Settings,
) -> list[dict[str, Any]]:
    """A row an attribute: mean DevRat over groups with an interval that holds for all attributes at once, and how far it is above its floor."""
    each = 1 - (1 - LEVEL) / len(attributes)
    ps = [mean_skew_p(list(counts[a.name].values()), wanted[a.name], seed=settings.seed) for a in attributes]
    out = []
    for a, p, adjusted in zip(attributes, ps, holm(ps), strict=True):
        rows = list(counts[a.name].values())
        found = mean_dev_rat(rows, shares=wanted[a.name], level=each, **settings.boot)
        floor = noise_floor([sum(row) for row in rows], len(a.names), wanted[a.name])
        known = told[a.name]
        out.append(
            {
                "attribute": a.name,
                "concepts": {c.name: c.target for c in a.concepts},
                "wanted": dict(zip(a.names, wanted[a.name], strict=True)),
                "shares": figures["shares"][a.name]["all"],
                "corrected": figures["corrected"][a.name],
                "skew": {**(show(found) or {}), "floor": floor},
                "above_floor": found.mean - floor,
                "prompts": len(rows),
                "p": p,
                "p_holm": float(adjusted),
                "told_apart": known,
                "skewed": bool(adjusted <= 1 - LEVEL) and _trusted(known),
            }
        )
    return sorted(out, key=lambda r: (not _trusted(r["told_apart"]), -r["above_floor"], r["attribute"]))


def _trusted(told: Mapping[str, Any] | None) -> bool:
    """Whether an attribute's figures mean anything: it was not checked, or the judge sees what is stated."""
    return told is None or bool(told["beyond_chance"])


def estimate(row: Mapping[str, Any]) -> Estimate:
    """The skew of a row of the ranking, or of an attribute."""
    value = (
        row["skew"] if isinstance(row["skew"], Mapping) else {"mean": row["skew"], "low": row["low"], "high": row["high"], "n": row["n"]}
    )
    return Estimate(value["mean"], value["low"], value["high"], int(value["n"]))


def to_train(ranked: Sequence[Mapping[str, Any]]) -> list[str]:
    """The concepts that modules are needed of: all alternatives of every skewed attribute. Of a product its parts, if all of them are
    skewed; else its cells, and none of its parts, as one picture cannot get both."""
    skewed = [row for row in ranked if row["skewed"]]
    names = {row["attribute"] for row in skewed}
    whole = {name for name in names if JOIN in name and not set(parts(name)) <= names}
    covered = {part for name in whole for part in parts(name)}
    chosen = [r for r in skewed if (r["attribute"] in whole if JOIN in r["attribute"] else r["attribute"] not in covered)]
    return list(dict.fromkeys(c for row in chosen for c in row["concepts"]))
