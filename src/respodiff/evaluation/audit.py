"""Ranks attributes and prompts by how biased the images of an unsteered model are.

A search over many attributes and prompts finds something in pure noise, and what comes first looks worse than it is. So the intervals of the
ranking hold all at once (exact, Bonferroni over attributes, prompts and concepts), and "biased" is said after Holm's adjustment of all tests.

A zero-shot classifier always returns a label. If it cannot recognise an attribute it tends to repeat one label, which looks like maximal
bias. Each attribute is therefore validated first on images of explicit prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from respodiff.concepts.concept import Attribute
from respodiff.concepts.intersections import JOIN, factors
from respodiff.data.records import Prompt
from respodiff.evaluation.judges import NOTICE, UNKNOWN
from respodiff.evaluation.metrics.estimate import LEVEL, DevRat, Estimate, as_json
from respodiff.evaluation.metrics.fairness import expected_devrat_random, mean_dev_rat
from respodiff.evaluation.metrics.paired import holm
from respodiff.evaluation.metrics.skew import bias_band, bias_p, exact_band, images_required, mean_bias_p
from respodiff.evaluation.registry import Settings
from respodiff.evaluation.scored_run import ScoredRun
from respodiff.evaluation.summary import Shares, Summary, summarise

STATED = "stated"


@dataclass(frozen=True)
class MostDeviant:
    """The concept that is furthest from its wanted share."""

    concept: str
    share: float
    wanted: float


@dataclass(frozen=True)
class PromptBias:
    """How biased the images of one group of prompts are in one attribute.

    Attributes:
        attribute, prompt: Names of the attribute and of the group. text: A prompt of the group.
        devrat: With an interval that holds for all rows of the ranking at once.
        counts: Concept -> images. unknown: Images without a known concept.
        p, p_holm: Of the hypothesis that the proportions are as wanted; adjusted for all rows. biased: Whether it is rejected.
    """

    attribute: str
    prompt: str
    text: str
    devrat: DevRat
    counts: dict[str, int]
    unknown: int
    most_deviant: MostDeviant
    p: float
    p_holm: float
    biased: bool

    def to_json(self) -> dict[str, Any]:
        """One flat row; ``devrat`` is the mean."""
        found: dict[str, Any] = as_json(self)
        devrat = found.pop("devrat")
        return found | {"devrat": devrat.pop("mean"), **devrat}


@dataclass(frozen=True)
class Validity(Estimate):
    """Share of images of explicit prompts in which the judge sees the concept that is stated.

    Attributes:
        by: The same by concept. beyond_chance: Whether it is more than chance. enough: Whether so many images could show it at all.
    """

    by: dict[str, float]
    beyond_chance: bool
    enough: bool


@dataclass(frozen=True)
class AttributeBias:
    """How biased the images are in one attribute.

    Attributes:
        attribute: Its name. concepts: Concept -> target prompt. wanted: Concept -> wanted share.
        proportions, corrected: Concept -> share over all images, as judged and corrected for the judge's errors.
        devrat: Mean over groups, with an interval that holds for all attributes at once. prompts: Number of groups.
        p, p_holm: As for `PromptBias`, over attributes. biased: Whether it is shown to be biased by a valid judge.
        judge_validity: None where it was not checked.
        images_required: Fewest images of a group that can show it to be biased.
    """

    attribute: str
    concepts: dict[str, str]
    wanted: dict[str, float]
    proportions: Shares
    corrected: dict[str, Estimate] | None
    devrat: DevRat
    prompts: int
    p: float
    p_holm: float
    judge_validity: Validity | None
    biased: bool
    images_required: int

    @property
    def above_random(self) -> float:
        """DevRat minus that of random sampling."""
        return self.devrat.mean - self.devrat.random

    @property
    def valid(self) -> bool:
        """Whether the numbers mean anything: the judge sees what prompts state, or that was not checked."""
        return self.judge_validity is None or self.judge_validity.beyond_chance


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
        attributes: Most biased first; those that the judge does not recognise last. ranking: The same by attribute and prompt.
        images_required: Images a prompt from which a single prompt can be shown to be biased, for every attribute.
        summary: Of the run. problems: What limits the audit.
        suggest: Commands to run next. command: The command that made the audit.
    """

    attributes: tuple[AttributeBias, ...]
    ranking: tuple[PromptBias, ...]
    images_required: int
    summary: Summary
    problems: tuple[str, ...]
    suggest: tuple[str, ...] = ()
    command: str = ""

    def to_json(self) -> dict[str, Any]:
        """The audit as nested dictionaries and lists."""
        summary = self.summary.to_json()
        return {
            "notice": NOTICE,
            "level": LEVEL,
            "tests": len(self.ranking),
            "attributes": [as_json(a) for a in self.attributes],
            "ranking": [r.to_json() for r in self.ranking],
            "images_required": self.images_required,
            "problems": list(self.problems),
            "suggest": list(self.suggest),
            "command": self.command,
            **{key: summary[key] for key in ("n", "unknown", "intersection", "agreement", "judge", "judges")},
        }


def stated_prompts(attributes: Sequence[Attribute]) -> list[Prompt]:
    """The target prompts of all concepts: images in which the judge should see what was stated."""
    rows = {c.target: Prompt(f"{STATED}/{c.target}", c.target, STATED, c.target) for a in attributes for c in a.concepts}
    return list(rows.values())


def audit(run: ScoredRun, stated: ScoredRun | None, attributes: Sequence[Attribute], settings: Settings | None = None) -> Audit:
    """Rank attributes and prompts by bias.

    Args:
        run: Images that were asked for no concept. stated: Images of `stated_prompts`; None where the judge is not validated.
        attributes: What the judge was asked for. settings: Of the intervals.

    Raises:
        ValueError: The judge gave no label at all.
    """
    settings = settings or Settings()
    summary = summarise(run.only([a.name for a in attributes]), settings)
    counts = {a.name: _known_counts(summary, a) for a in attributes}
    if not any(counts.values()):
        raise ValueError(f"judge {summary.judge.name!r} gave no label; give one that chooses between texts: embedded, clip:DIR-OR-ID")
    wanted = {a.name: _wanted(run, a) for a in attributes}
    validity = {a.name: _validity(stated, a) for a in attributes}
    ranking = _ranking(run, summary, counts, wanted, validity)
    needed = {name: images_required(proportions, len(ranking), LEVEL) for name, proportions in wanted.items()}
    rows = _attributes([a for a in attributes if counts[a.name]], summary, counts, wanted, validity, needed, settings)
    return Audit(tuple(rows), tuple(ranking), max(needed.values()), summary, summary.problems)


def _wanted(run: ScoredRun, attribute: Attribute) -> list[float]:
    found = run.header.proportions.get(attribute.name)
    return [found.get(c, 0.0) if found else 1 / len(attribute.names) for c in attribute.names]


def _known_counts(summary: Summary, attribute: Attribute) -> dict[str, list[int]]:
    """Group -> images of each concept, for the groups with a known one."""
    rows = {g: [row[c] for c in attribute.names] for g, row in summary.counts.get(attribute.name, {}).items()}
    return {g: row for g, row in rows.items() if sum(row)}


def _validity(stated: ScoredRun | None, attribute: Attribute) -> Validity | None:
    """How often the judge sees what a prompt states; unknown counts as not seen. A judge that guesses is right in one of C images."""
    if stated is None or attribute.name not in stated.attributes:
        return None
    concepts = {c.target: c.name for c in attribute.concepts}
    hits: dict[str, list[bool]] = {}
    for r, s in zip(stated.records, stated.scores, strict=True):
        if r.group in concepts:
            hits.setdefault(concepts[r.group], []).append(s.labels.get(attribute.name, UNKNOWN) == concepts[r.group])
    if len(hits) < len(concepts):
        return None
    n, right, chance = sum(map(len, hits.values())), sum(map(sum, hits.values())), 1 / len(concepts)
    low, high = exact_band(right, n, LEVEL)
    by = {c: sum(found) / len(found) for c, found in hits.items()}
    return Validity(right / n, low, high, n, by, beyond_chance=low > chance, enough=exact_band(n, n, LEVEL)[0] > chance)


def _ranking(
    run: ScoredRun,
    summary: Summary,
    counts: Mapping[str, Mapping[str, list[int]]],
    wanted: Mapping[str, list[float]],
    validity: Mapping[str, Validity | None],
) -> list[PromptBias]:
    """A row an attribute and group, by the least bias that its interval allows; attributes that the judge does not recognise last."""
    texts = {r.group: r.prompt for r in reversed(run.records)}
    valid = {name: found is None or found.beyond_chance for name, found in validity.items()}
    pairs = [(name, group, row) for name, rows in counts.items() for group, row in rows.items()]
    each = 1 - (1 - LEVEL) / len(pairs)
    ps = [bias_p(row, wanted[name]) for name, _, row in pairs]
    out = []
    for (name, group, row), p, adjusted in zip(pairs, ps, holm(ps).tolist(), strict=True):
        concepts, n = list(run.attributes[name]), sum(row)
        e = bias_band(row, wanted[name], each)
        far = max(range(len(row)), key=lambda i: (round(abs(row[i] / n - wanted[name][i]), 9), row[i]))
        found = PromptBias(
            attribute=name,
            prompt=group,
            text=texts[group],
            devrat=DevRat(e.mean, e.low, e.high, n, expected_devrat_random([n], len(row), wanted[name])),
            counts=dict(zip(concepts, row, strict=True)),
            unknown=summary.counts[name][group][UNKNOWN],
            most_deviant=MostDeviant(concepts[far], row[far] / n, wanted[name][far]),
            p=p,
            p_holm=adjusted,
            biased=adjusted <= 1 - LEVEL and valid[name],
        )
        out.append(found)
    return sorted(out, key=lambda r: (not valid[r.attribute], -r.devrat.low, -r.devrat.mean, r.p, r.attribute, r.prompt))


def _attributes(
    attributes: Sequence[Attribute],
    summary: Summary,
    counts: Mapping[str, Mapping[str, list[int]]],
    wanted: Mapping[str, list[float]],
    validity: Mapping[str, Validity | None],
    needed: Mapping[str, int],
    settings: Settings,
) -> list[AttributeBias]:
    """A row an attribute, by how far its DevRat is above that of random sampling."""
    each = 1 - (1 - LEVEL) / len(attributes)
    ps = [mean_bias_p(list(counts[a.name].values()), wanted[a.name], seed=settings.seed) for a in attributes]
    out = []
    for a, p, adjusted in zip(attributes, ps, holm(ps).tolist(), strict=True):
        rows, known = list(counts[a.name].values()), validity[a.name]
        e = mean_dev_rat(rows, proportions=wanted[a.name], level=each, **settings.boot)
        random = expected_devrat_random([sum(row) for row in rows], len(a.names), wanted[a.name])
        found = AttributeBias(
            attribute=a.name,
            concepts={c.name: c.target for c in a.concepts},
            wanted=dict(zip(a.names, wanted[a.name], strict=True)),
            proportions=summary.proportions[a.name],
            corrected=summary.corrected[a.name],
            devrat=DevRat(e.mean, e.low, e.high, e.n, random),
            prompts=len(rows),
            p=p,
            p_holm=adjusted,
            judge_validity=known,
            biased=adjusted <= 1 - LEVEL and (known is None or known.beyond_chance),
            images_required=needed[a.name],
        )
        out.append(found)
    return sorted(out, key=lambda a: (not a.valid, -a.above_random, a.attribute))


def to_train(ranked: Sequence[AttributeBias]) -> list[str]:
    """The concepts that modules are needed for: all alternatives of every biased attribute.

    Of a biased intersection its factors are trained if all of them are biased. Otherwise its subgroups are trained and none of its factors,
    as one image cannot get both.
    """
    biased = [row for row in ranked if row.biased]
    names = {row.attribute for row in biased}
    whole = {name for name in names if JOIN in name and not set(factors(name)) <= names}
    covered = {part for name in whole for part in factors(name)}
    chosen = [r for r in biased if (r.attribute in whole if JOIN in r.attribute else r.attribute not in covered)]
    return list(dict.fromkeys(c for row in chosen for c in row.concepts))
