"""Sums up one scored run: every registered metric with its interval, and what stands behind them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, compress
from typing import Any

from respodiff.concepts.intersections import JOIN
from respodiff.evaluation import registry
from respodiff.evaluation.domain import out_of_domain
from respodiff.evaluation.judges import NOTICE, UNKNOWN, Score
from respodiff.evaluation.metrics import intersection, judge_errors, shares
from respodiff.evaluation.metrics.estimate import DevRat, Estimate, as_json
from respodiff.evaluation.registry import METRICS, Settings, Value
from respodiff.evaluation.scored_run import NOT_YET, ScoredRun

MIN_SUBGROUP = 10
"""Images from which the share of a combination of concepts is shown."""
Shares = dict[str, Estimate | None]
"""Concept -> its share of the images."""


@dataclass(frozen=True)
class JudgeInfo:
    """Who judged, and by which class template or rule."""

    name: str
    digest: str
    version: str
    kind: str
    class_template: str | None
    min_margin: float | None
    rule: str | None


@dataclass(frozen=True)
class Agreement:
    """How often two judges give the same answer (`agree`), and beyond chance (Cohen's `kappa`). `task` is an attribute or ``unsafe``."""

    task: str
    judges: tuple[str, str]
    agree: Estimate
    kappa: Estimate | None


@dataclass(frozen=True)
class Intersection:
    """All combinations of the attributes, the first attribute slowest, and the share of images in which every attribute is as asked for."""

    attributes: tuple[str, ...]
    concept_accuracy: Estimate | None
    subgroups: tuple[intersection.Subgroup, ...]


@dataclass(frozen=True)
class Summary:
    """All numbers of one run. Values are None where nothing was asked; unknown images are in `n` and in no share.

    Attributes:
        n, unknown: Images, and those among them that the primary judge could not judge.
        devrat, concept_accuracy: By attribute; these and the following: see `respodiff.evaluation.registry`.
        more: All other registered metrics by name.
        devrat_by: Attribute -> group of prompts -> DevRat. unsafe_by: Group -> flagged share.
        unsafe_by_category: Flagged share of the prompts with a safety category; empty without categories.
        counts: Attribute -> group -> concept, or ``unknown`` -> images.
        proportions: Attribute -> concept -> share over all images. proportions_by: Attribute -> group -> concept -> share.
        corrected: Attribute -> concept -> share corrected for the judge's known errors; None where they are not known.
        out_of_domain: Share of images that an embedded judge knows nothing of (`respodiff.evaluation.domain`); None without such a judge.
        skipped_attributes: Attribute -> images that were left as they are, as their prompts state it or show no people.
        judge: The judge that labels come from. unsafe_rule: Which judges' flags `unsafe` combines, and how. problems: One line for everything that could not be used.
    """

    n: int
    unknown: int
    devrat: dict[str, DevRat | None]
    concept_accuracy: dict[str, Estimate | None]
    subject_accuracy: Estimate | None
    alignment: Estimate | None
    unsafe: Estimate | None
    more: dict[str, Value]
    devrat_by: dict[str, dict[str, DevRat | None]]
    unsafe_by: dict[str, float]
    unsafe_by_category: Shares
    counts: dict[str, dict[str, dict[str, int]]]
    proportions: dict[str, Shares]
    proportions_by: dict[str, dict[str, Shares]]
    corrected: dict[str, dict[str, Estimate] | None]
    intersection: Intersection | None
    agreement: tuple[Agreement, ...]
    out_of_domain: Estimate | None
    skipped_attributes: dict[str, int]
    judge: JudgeInfo
    judges: tuple[JudgeInfo, ...]
    unsafe_rule: str | None
    problems: tuple[str, ...]
    notice: str = NOTICE

    def metric(self, name: str) -> dict[str, Estimate | None]:
        """The values of a registered metric by attribute; a single value stands under an empty name."""
        value: Value = self.more[name] if name in self.more else getattr(self, name)
        return dict(value) if isinstance(value, Mapping) else {"": value}

    def to_json(self) -> dict[str, Any]:
        """The summary as nested dictionaries and lists, one key a metric."""
        found: dict[str, Any] = as_json(self)
        more: dict[str, Any] = found.pop("more")
        return found | more


def summarise(run: ScoredRun, settings: Settings | None = None) -> Summary:
    """All numbers of one run."""
    settings = settings or Settings()
    own = {f.name for f in dataclasses.fields(Summary)}
    values: dict[str, Any] = {m.name: m.value(run, settings) for m in METRICS.values() if m.value}
    strange, warning = out_of_domain(run)
    problems = [*([warning] if warning else []), *run.problems, *_failures(run)]
    problems += [
        f"DevRat {name} is not given: half of the groups or more hold one image, and one image is always lopsided; name groups of prompts"
        for name, found in values["devrat"].items()
        if found is None and any(map(sum, run.known_counts(name).values()))
    ]
    corrected = {name: _corrected(name, run, settings, problems) for name in run.attributes}
    judges = {
        key: JudgeInfo(h.judge, h.digest, h.version, h.kind, h.class_template, h.min_margin, h.rule) for key, h in run.headers.items()
    }
    return Summary(
        n=len(run.records),
        unknown=len(run.records) - len(run.known),
        **{name: value for name, value in values.items() if name in own},
        more={name: value for name, value in values.items() if name not in own},
        devrat_by={name: _devrat_by(name, run, settings) for name in run.attributes},
        unsafe_by=_unsafe_by(run),
        unsafe_by_category=registry.flagged_by_category(run, settings),
        counts={name: run.counts(name) for name in run.attributes},
        proportions={name: _proportions(name, run, settings) for name in run.attributes},
        proportions_by={name: _proportions_by(name, run) for name in run.attributes},
        corrected=corrected,
        intersection=_intersection(run, settings),
        agreement=agreements(run, settings),
        out_of_domain=strange,
        skipped_attributes=dict(Counter(name for r in run.records for name in r.skipped_attributes)),
        judge=judges[run.primary],
        judges=tuple(judges.values()),
        unsafe_rule=run.unsafe_rule,
        problems=tuple(problems),
    )


def _failures(run: ScoredRun) -> list[str]:
    """One line a kind of failure of the primary judge, with an example."""
    found: dict[str, list[str]] = {}
    for score in run.scores:
        if score.problem:
            found.setdefault(score.problem, []).append(score.id)
    return [
        f"{len(ids)} image{'s' * (len(ids) > 1)} {problem}, e.g. {ids[0]}: counted as unknown" for problem, ids in sorted(found.items())
    ]


def _proportions(attribute: str, run: ScoredRun, settings: Settings) -> Shares:
    """Shares of the concepts over all images, with an interval over groups."""
    used = [row for row in run.known_counts(attribute).values() if sum(row)]
    totals = [sum(row) for row in used]
    return {
        c: shares.share_interval([row[i] for row in used], totals, **settings.boot) if used else None
        for i, c in enumerate(run.attributes[attribute])
    }


def _proportions_by(attribute: str, run: ScoredRun) -> dict[str, Shares]:
    """Shares of the concepts in each group, with Wilson's interval."""
    return {
        group: {c: shares.wilson(k, sum(row)) if sum(row) else None for c, k in zip(run.attributes[attribute], row, strict=True)}
        for group, row in run.known_counts(attribute).items()
    }


def _devrat_by(attribute: str, run: ScoredRun, settings: Settings) -> dict[str, DevRat | None]:
    """DevRat of every group; groups with equal counts and equal targets are computed once."""
    kinds = {g: (row, tuple(run.wanted(attribute, g).values())) for g, row in run.known_counts(attribute).items()}
    found = {kind: registry.devrat_of([kind[0]], [kind[1]], settings) for kind in set(kinds.values())}
    return {g: found[kind] for g, kind in kinds.items()}


def _unsafe_by(run: ScoredRun) -> dict[str, float]:
    flags: dict[str, list[bool]] = {}
    for r, flag in registry.flagged(run):
        flags.setdefault(r.group, []).append(flag)
    return {group: sum(found) / len(found) for group, found in sorted(flags.items())}


def _corrected(name: str, run: ScoredRun, settings: Settings, problems: list[str]) -> dict[str, Estimate] | None:
    """Shares over the images that could be judged, after correction for the judge's errors, if these are known for the very question that it was asked."""
    known = settings.confusion.get(run.header.digest, {}).get(name)
    if not known or (run.attributes[name], *run.header.asked) != (known["targets"], known["class_template"], known["min_margin"]):
        return None
    judged = run.subset([s.problem is None for s in run.scores])  # the matrix is of answers: what could not be judged is in neither
    matrix, rows = known["matrix"], [list(row.values()) for row in judged.counts(name).values()]
    if not any(row[-1] for row in matrix):  # this judge always answers
        matrix, rows = [row[:-1] for row in matrix], [row[:-1] for row in rows]
    if not any(map(sum, rows)):
        return None
    try:
        found = judge_errors.corrected_proportions([row for row in rows if sum(row)], matrix, **settings.boot)
    except ValueError as error:
        problems.append(f"shares of {name} are not corrected for the judge's errors: {error}")
        return None
    return dict(zip(run.attributes[name], found, strict=True))


def agreements(run: ScoredRun, settings: Settings) -> tuple[Agreement, ...]:
    """The agreement of every two judges that were asked the same question, over the images that both were asked about and either could judge."""
    out = []
    for a, b in combinations(run.answers, 2):
        both = run.subset([s.problem is None or t.problem is None for s, t in zip(run.answers[a], run.answers[b], strict=True)])
        names = (run.headers[a].judge, run.headers[b].judge)
        for task, first, second in _tasks(both, a, b) if both.records else ():
            asked = [all(_asked(both.answers[key][i], task, run.headers[key].kind) for key in (a, b)) for i in range(len(both.records))]
            if any(asked):
                pairs = [list(compress(answers, asked)) for answers in (first, second, [r.group for r in both.records])]
                out.append(Agreement(task, names, *judge_errors.agreement(*pairs, **settings.boot)))
    return tuple(out)


def _asked(score: Score, task: str, kind: str) -> bool:
    """Whether a judge was asked a question of an image: a table was not where it has no row or an empty cell."""
    if score.problem in ("unlisted", NOT_YET):
        return False
    if task == "unsafe":
        return kind != "table" or score.unsafe is not None
    return score.problem is not None or task in score.labels


def _tasks(run: ScoredRun, a: str, b: str) -> list[tuple[str, list[str], list[str]]]:
    """(question, answers of a, answers of b) for what both judges were asked; unknown is an answer."""
    both = [name for name in run.headers[a].attributes if name in run.headers[b].attributes]
    out = [(name, run.labels(name, a), run.labels(name, b)) for name in both]
    first, second = ([UNKNOWN if s.unsafe is None else str(s.unsafe) for s in run.answers[key]] for key in (a, b))
    return [*out, ("unsafe", first, second)] if {*first} != {UNKNOWN} != {*second} else out


def _intersection(run: ScoredRun, settings: Settings) -> Intersection | None:
    names = registry.single_attributes(run)
    if len(names) < 2:
        return None
    found = intersection.intersection(*registry.combined(run, names), minimum=MIN_SUBGROUP, **settings.boot)
    whole = JOIN.join(names)
    asked = [(r, s) for r, s in run.known if r.asked(whole) is not None and all(name in s.labels for name in names)]
    seen = [(r, JOIN.join(s.labels[name] for name in names)) for r, s in asked]
    return Intersection(tuple(names), registry.share([(r, labels == r.asked(whole)) for r, labels in seen], settings), found)
