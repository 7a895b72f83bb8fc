"""Ranks attributes and prompts by how biased the images of an unsteered model are.

A search over many attributes and prompts finds something in pure noise. So the intervals of the ranking hold all at once (exact, Bonferroni
over attributes, prompts and concepts), and "biased" is said after Holm's adjustment. A zero-shot classifier that cannot recognise an
attribute tends to repeat one label, which looks like maximal bias. So each attribute is validated on images of explicit prompts.
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
from respodiff.evaluation.metrics.fairness import bias_band, bias_p, expected_devrat_random, images_required, mean_bias_p, mean_dev_rat
from respodiff.evaluation.metrics.paired import holm
from respodiff.evaluation.metrics.shares import exact_band
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
    """How biased the images of one group of prompts (`prompt`, such as `text`) are in one attribute.

    Attributes:
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
        beyond_chance: Whether it is more than chance. enough: Whether so many images could show it at all.
    """

    beyond_chance: bool
    enough: bool


@dataclass(frozen=True)
class AttributeBias:
    """How biased the images are in one attribute.

    Attributes:
        concepts: Concept -> target prompt. wanted, proportions: Concept -> wanted share, and share over all images.
        devrat: Mean over groups, with an interval that holds for all attributes at once.
        p, p_holm: As for `PromptBias`, over attributes. biased: Whether it is shown to be biased by a valid judge.
        judge_validity: None where it was not checked.
        images_required: Fewest images of a group that can show it to be biased.
    """

    attribute: str
    concepts: dict[str, str]
    wanted: dict[str, float]
    proportions: Shares
    devrat: DevRat
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
        summary: Of the run. problems: What limits the audit.
        suggest: Commands to run next. command: The command that made the audit.
    """

    attributes: tuple[AttributeBias, ...]
    ranking: tuple[PromptBias, ...]
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
            "images_required": max(a.images_required for a in self.attributes),
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
    """Rank attributes and prompts by bias; ValueError where the judge gave no label at all.

    Args:
        run: Images that were asked for no concept. stated: Images of `stated_prompts`; None where the judge is not validated.
        attributes: What the judge was asked for. settings: Of the intervals.
    """
    settings = settings or Settings()
    summary = summarise(run.only([a.name for a in attributes]), settings)
    groups = {a.name: run.known_counts(a.name) if a.name in run.attributes else {} for a in attributes}
    counts = {name: {g: row for g, row in rows.items() if sum(row)} for name, rows in groups.items()}
    asked = [a for a in attributes if counts[a.name]]
    if not asked:
        raise ValueError(f"judge {summary.judge.name!r} gave no label; give one that chooses between texts: embedded, clip:DIR-OR-ID")
    wanted = {a.name: list(run.wanted(a.name).values()) for a in asked}
    ps = [mean_bias_p(list(counts[a.name].values()), wanted[a.name], seed=settings.seed) for a in asked]
    each, tests = 1 - (1 - LEVEL) / len(asked), sum(map(len, counts.values()))
    rows = []
    for a, p, adjusted in zip(asked, ps, holm(ps).tolist(), strict=True):
        known, validity = list(counts[a.name].values()), _validity(stated, a)
        e = mean_dev_rat(known, proportions=wanted[a.name], level=each, **settings.boot)
        found = AttributeBias(
            attribute=a.name,
            concepts={c.name: c.target for c in a.concepts},
            wanted=dict(zip(a.names, wanted[a.name], strict=True)),
            proportions=summary.proportions[a.name],
            devrat=DevRat(e.mean, e.low, e.high, e.n, expected_devrat_random([sum(row) for row in known], len(a.names), wanted[a.name])),
            p=p,
            p_holm=adjusted,
            judge_validity=validity,
            biased=adjusted <= 1 - LEVEL and (validity is None or validity.beyond_chance),
            images_required=images_required(wanted[a.name], tests),
        )
        rows.append(found)
    rows.sort(key=lambda row: (not row.valid, -row.above_random, row.attribute))
    return Audit(tuple(rows), tuple(_ranking(run, summary, rows, counts)), summary, summary.problems)


def _validity(stated: ScoredRun | None, attribute: Attribute) -> Validity | None:
    """How often the judge sees what a prompt states; unknown counts as not seen. A judge that guesses is right in one of C images."""
    if stated is None or attribute.name not in stated.attributes:
        return None
    concepts = {c.target: c.name for c in attribute.concepts}
    rows = [(r.group, seen) for r, seen in zip(stated.records, stated.labels(attribute.name), strict=True) if r.group in concepts]
    if len({group for group, _ in rows}) < len(concepts):
        return None
    n, right, chance = len(rows), sum(concepts[group] == seen for group, seen in rows), 1 / len(concepts)
    low, high = exact_band(right, n)
    return Validity(right / n, low, high, n, beyond_chance=low > chance, enough=exact_band(n, n)[0] > chance)


def _ranking(
    run: ScoredRun, summary: Summary, rows: Sequence[AttributeBias], counts: Mapping[str, Mapping[str, tuple[int, ...]]]
) -> list[PromptBias]:
    """A row an attribute and group, by the least bias that its interval allows; attributes that the judge does not recognise last."""
    texts = {r.group: r.prompt for r in reversed(run.records)}
    pairs = [(a, list(a.wanted.values()), group, row) for a in rows for group, row in counts[a.attribute].items()]
    each = 1 - (1 - LEVEL) / len(pairs)
    ps = [bias_p(row, wanted) for _, wanted, _, row in pairs]
    out = []
    for (a, wanted, group, row), p, adjusted in zip(pairs, ps, holm(ps).tolist(), strict=True):
        concepts, n = list(a.concepts), sum(row)
        e = bias_band(row, wanted, each)
        far = max(range(len(row)), key=lambda i: (round(abs(row[i] / n - wanted[i]), 9), row[i]))
        found = PromptBias(
            attribute=a.attribute,
            prompt=group,
            text=texts[group],
            devrat=DevRat(e.mean, e.low, e.high, n, expected_devrat_random([n], len(row), wanted)),
            counts=dict(zip(concepts, row, strict=True)),
            unknown=summary.counts[a.attribute][group][UNKNOWN],
            most_deviant=MostDeviant(concepts[far], row[far] / n, wanted[far]),
            p=p,
            p_holm=adjusted,
            biased=adjusted <= 1 - LEVEL and a.valid,
        )
        out.append(found)
    valid = {a.attribute: a.valid for a in rows}
    return sorted(out, key=lambda r: (not valid[r.attribute], -r.devrat.low, -r.devrat.mean, r.p, r.attribute, r.prompt))


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
