"""Compares two runs image by image on the same noise: tested differences, and distances between their images.

Images are paired by (prompt id, repeat) where both runs started from the same seed. Tests are two-sided; `collect` adjusts all p-values of
a report together (Holm).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from respodiff.data.records import ImageRecord
from respodiff.evaluation.judges import UNKNOWN
from respodiff.evaluation.metrics import distances, paired
from respodiff.evaluation.metrics.estimate import Estimate, as_json
from respodiff.evaluation.registry import METRICS, Settings
from respodiff.evaluation.scored_run import ScoredRun, load_scored_run
from respodiff.evaluation.summary import Summary, summarise

Answers = Sequence[bool | None]
Floats = NDArray[np.float64]

MIN_IMAGES, MIN_PROMPTS = 50, 10
"""With fewer images a side, or fewer prompts, distances between sets of images are noise and are not given."""
MIN_PERMUTATIONS, MAX_PERMUTATIONS, SWAPPED_PAIRS = 1000, 10_000, 10_000_000
"""Permutations of a test: as many as so many swapped pairs allow, within these limits."""


@dataclass(frozen=True)
class Difference(Estimate):
    """A tested difference of a metric, run minus baseline.

    Attributes:
        metric, attribute: What is compared; the attribute is empty for metrics of the whole run.
        p: Two-sided, not adjusted. p_holm: Adjusted for all tests of a report; None outside of one.
        test: Name of the test.
    """

    metric: str
    attribute: str
    p: float
    test: str
    p_holm: float | None = None

    @property
    def title(self) -> str:
        """The heading of the metric, such as ``DevRat gender``."""
        return METRICS[self.metric].label(self.attribute)


@dataclass(frozen=True)
class Comparison:
    """How a run differs from the baseline.

    Attributes:
        baseline: Label of the other run. paired: Pairs of images on the same noise. tests: Tested differences.
        features: Name of the judge whose vectors distances are taken on (`respodiff.evaluation.metrics.distances`). They are None where
            vectors are missing, or images or prompts are too few.
    """

    baseline: str
    paired: int
    tests: tuple[Difference, ...]
    features: str
    drift: Estimate | None = None
    frechet: Estimate | None = None
    split_half: Estimate | None = None
    kid: Estimate | None = None

    def tested(self, metric: str, attribute: str = "") -> Difference | None:
        """The tested difference of a metric; None where it was not tested."""
        return next((t for t in self.tests if (t.metric, t.attribute) == (metric, attribute)), None)


def pairs_of(base: ScoredRun, run: ScoredRun) -> list[tuple[int, int]]:
    """Row numbers of images that start from the same noise: equal prompt id, repeat and seed."""
    place = {noise_key(base, r): i for i, r in enumerate(base.records)}
    place.pop(None, None)
    return [(place[key], j) for j, r in enumerate(run.records) if (key := noise_key(run, r)) in place]


def noise_key(run: ScoredRun, r: ImageRecord) -> tuple[str | int | None, ...] | None:
    """What determines the noise of an image; None for an imported image whose table names no seed."""
    if r.own_seed is None and run.settings.get("imported"):
        return None
    return (r.prompt_id, r.repeat, r.own_seed, r.seed if r.own_seed is None else None, r.width, r.height)


def compare(base: ScoredRun, run: ScoredRun, settings: Settings | None = None) -> Comparison:
    """Differences of ``run`` to ``base`` on the same noise, and distances between their images.

    Distances are taken on the vectors of a judge that is made for it if both runs were scored by one, else of the primary judge. On
    Inception's vectors the Frechet distance is the FID.

    Raises:
        ValueError: The runs were judged by different judges, for labels or for unsafe images, or asked different things.
    """
    settings = settings or Settings()
    _check_asked_alike(base, run)
    found = pairs_of(base, run)
    tests = [_devrat(name, base, run, found, settings) for name in run.attributes if name in base.attributes]
    if base.header.subjects == run.header.subjects:  # else the judge chose among other subjects
        before, after = ([s.subject_correct for s in r.scores] for r in (base, run))
        tests.append(_yes_no("subject_accuracy", before, after, run, found))
    tests.append(_yes_no("unsafe", base.flags(), run.flags(), run, found))
    key = run.featured if run.featured == base.featured else run.primary
    far = _distances(base, run, key, found, settings)
    return Comparison(base.label, len(found), tuple(t for t in tests if t), run.headers[key].judge, **far)


def _check_asked_alike(base: ScoredRun, run: ScoredRun) -> None:
    """ValueError unless one judge was asked the same of both runs, as far as they share a question."""
    a, b = base.header, run.header
    if a.digest != b.digest:
        raise ValueError(f"{base.label} was judged by {a.judge} and {run.label} by {b.judge}: evaluate both with one judge to compare them")
    if (one := sorted(base.flagging)) != (other := sorted(run.flagging)) and one and other:
        raise ValueError(
            f"unsafe images of {base.label} are those of {', '.join(one)}, of {run.label} those of {', '.join(other)}: "
            "evaluate both with the same judges to compare them, or name those that they share"
        )
    questions = [(f"class template of {name}", a.attributes[name], b.attributes[name]) for name in a.attributes if name in b.attributes]
    for what, x, y in [*questions, ("class_template", a.class_template, b.class_template), ("min_margin", a.min_margin, b.min_margin)]:
        if x != y:
            pair = f"{base.label} and {run.label}"
            raise ValueError(f"{pair} were judged with other {what} ({x} and {y}): evaluate both alike to compare them")


def _devrat(name: str, base: ScoredRun, run: ScoredRun, found: Sequence[tuple[int, int]], settings: Settings) -> Difference | None:
    """DevRat of both runs on their pairs, tested by swapping the runs' labels within pairs."""
    concepts = list(run.attributes[name])
    seen, others = run.labels(name), base.labels(name)
    rows = sorted((run.records[j].group, others[i], seen[j]) for i, j in found if UNKNOWN not in (others[i], seen[j]))
    if not rows or len(concepts) < 2:
        return None
    groups, before, after = zip(*rows, strict=True)
    proportions = [list(run.wanted(name, g).values()) for g in dict.fromkeys(groups)]
    permutations = min(MAX_PERMUTATIONS, max(MIN_PERMUTATIONS, SWAPPED_PAIRS // len(rows)))
    test = paired.devrat_test(after, before, groups, concepts, proportions=proportions, permutations=permutations, **settings.boot)
    return _difference("devrat", name, test, "permutation within pairs")


def _yes_no(
    metric: str, before: Answers | None, after: Answers | None, run: ScoredRun, found: Sequence[tuple[int, int]]
) -> Difference | None:
    """A share in both runs on their pairs, tested by McNemar; None where a run has no answers."""
    unit = "group" if metric == "subject_accuracy" else "prompt_id"  # as the shares of each run have it
    pairs = [(before[i], after[j], getattr(run.records[j], unit)) for i, j in found] if before and after else []
    rows = [(bool(a), bool(b), of) for a, b, of in pairs if a is not None and b is not None]
    if not rows:
        return None
    a, b, units = zip(*rows, strict=True)
    return _difference(metric, "", paired.mcnemar(a, b, units), "McNemar, exact")


def _difference(metric: str, attribute: str, test: paired.PairedTest, name: str) -> Difference:
    return Difference(**vars(test.difference), metric=metric, attribute=attribute, p=test.p, test=name)


def _distances(base: ScoredRun, run: ScoredRun, key: str, found: Sequence[tuple[int, int]], settings: Settings) -> dict[str, Estimate]:
    x, y = base.vectors(key), run.vectors(key)
    if x is None or y is None:
        return {}
    out: dict[str, Estimate] = {}
    both = [(i, j) for i, j in found if np.isfinite(x[i]).all() and np.isfinite(y[j]).all()]
    if both:
        groups = [run.records[j].group for _, j in both]
        out["drift"] = distances.drift(y[[j for _, j in both]], x[[i for i, _ in both]], groups, **settings.boot)
    (before, base_prompts), (after, prompts) = _finite(base, x), _finite(run, y)
    if min(len(before), len(after)) < MIN_IMAGES or min(len(set(prompts)), len(set(base_prompts))) < MIN_PROMPTS:
        return out
    width, seed = after.shape[1], settings.seed
    blocks, splits = (20, 5) if width <= 1024 else (8, 2)  # the cost grows with the cube of the width
    scale = width**0.5 if run.headers[key].kind == "texts" else 1.0  # of unit vectors, so that KID's kernel is (cos + 1)^3 for every width
    out["frechet"] = distances.frechet_interval(after, before, prompts, blocks=blocks, seed=seed)
    out["split_half"] = distances.split_half_distance(before, base_prompts, splits=splits, seed=seed)
    out["kid"] = distances.kid(scale * after, scale * before, prompts, base_prompts, seed=seed)  # leaves pairs of one prompt out
    return out


def _finite(run: ScoredRun, vectors: NDArray[np.float32]) -> tuple[Floats, list[str]]:
    """The vectors that are there, and the prompts of their images."""
    good = np.flatnonzero(np.isfinite(vectors).all(1))
    return vectors[good].astype(np.float64), [run.records[i].prompt_id for i in good]


@dataclass(frozen=True)
class ReportEntry:
    """One run on one prompt set: its images, its summary, and how it differs from the baseline (None for the baseline)."""

    run: ScoredRun
    summary: Summary
    comparison: Comparison | None

    def metric(self, name: str) -> dict[str, Estimate | None]:
        """The values of a registered metric by attribute; a single value stands under an empty name."""
        if METRICS[name].value is None:
            return {"": getattr(self.comparison, name, None)}
        return self.summary.metric(name)


Blocks = dict[str, list[ReportEntry]]
"""Prompt set -> its runs, the baseline first."""


def with_one_target(runs: Sequence[ScoredRun]) -> list[ScoredRun]:
    """Runs that are measured alike: one that asked for no concept of an attribute takes the target of those that did, if these share one."""
    out = list(runs)
    for name in dict.fromkeys(name for run in runs for name in run.attributes):
        asks = [any(r.asked(name) is not None for r in run.records) for run in out]
        keys = ("proportions", "group_proportions")
        targets = [{key: getattr(run.header, key).get(name) for key in keys} for run, asked in zip(out, asks, strict=True) if asked]
        if targets and all(target == targets[0] for target in targets):
            out = [run if asked else _with_target(run, name, targets[0]) for run, asked in zip(out, asks, strict=True)]
    return out


def _with_target(run: ScoredRun, name: str, target: dict[str, Any]) -> ScoredRun:
    """The run with a target for an attribute, unless its groups of prompts have targets of their own."""
    if run.header.group_proportions.get(name):
        return run
    changed: dict[str, Any] = {key: {**getattr(run.header, key)} for key in target}
    for key, value in target.items():
        changed[key].pop(name, None)
        changed[key] |= {name: value} if value else {}
    return dataclasses.replace(run, headers=run.headers | {run.primary: dataclasses.replace(run.header, **changed)})


def entries_of(runs: Sequence[ScoredRun], settings: Settings) -> list[ReportEntry]:
    """Summaries of runs, and their differences to the first."""
    runs = with_one_target(runs)
    return [ReportEntry(run, summarise(run, settings), compare(runs[0], run, settings) if i else None) for i, run in enumerate(runs)]


def collect(
    runs: Sequence[str | Path], *, judge: str | Sequence[str] = (), settings: Settings | None = None, by_prompt: bool = False
) -> Blocks:
    """Read, sum up and compare runs, one prompt set after the other; p-values of all comparisons are adjusted together (Holm).

    Args:
        judge: The judges that are read (`load_scored_run`). Without a name, those that have scored every image of every run.
        by_prompt: Take intervals over prompts, not over their groups.
    """
    if not runs:
        raise ValueError("runs is empty; give at least one run folder")
    loaded = [load_scored_run(where, judge=judge, label=label) for label, where in (split_label(str(run)) for run in runs)]
    loaded = [run.by_prompt() for run in loaded] if by_prompt else loaded
    labels = [run.label for run in loaded]
    if twice := [name for name in labels if labels.count(name) > 1]:
        raise ValueError(f"two runs are called {twice[0]!r}; name them: before={twice[0]} after=...")
    shared = [key for key in loaded[0].answers if all(key in run.answers for run in loaded)]
    if shared and not judge:
        loaded = [run.judged_by(shared, "it has not judged every run") for run in loaded]
    blocks: Blocks = {}
    for suite in dict.fromkeys(suite for run in loaded for suite in sorted({r.suite for r in run.records})):
        parts = [run.subset([r.suite == suite for r in run.records]) for run in loaded]
        blocks[suite] = entries_of([part for part in parts if part.records], settings or Settings())
    return _adjusted(blocks)


def split_label(text: str) -> tuple[str, str]:
    """``NAME=DIR`` as (NAME, DIR), cut at the first ``=`` before a folder, else at the last; a folder with ``=`` in its path is one, too."""
    cuts = [i for i, letter in enumerate(text) if letter == "="] if not Path(text).is_dir() else []
    cut = next((i for i in cuts if Path(text[i + 1 :]).is_dir()), cuts[-1] if cuts else None)
    return ("", text) if cut is None else (text[:cut], text[cut + 1 :])


def _adjusted(blocks: Blocks) -> Blocks:
    """The same with `Difference.p_holm` of every test."""
    ps = [t.p for entries in blocks.values() for e in entries if e.comparison for t in e.comparison.tests]
    adjusted = iter(paired.holm(ps).tolist() if ps else [])

    def entry(e: ReportEntry) -> ReportEntry:
        if e.comparison is None:
            return e
        own = tuple(dataclasses.replace(t, p_holm=next(adjusted)) for t in e.comparison.tests)
        return dataclasses.replace(e, comparison=dataclasses.replace(e.comparison, tests=own))

    return {suite: [entry(e) for e in entries] for suite, entries in blocks.items()}


def to_json(blocks: Blocks) -> dict[str, Any]:
    """Prompt set -> list of runs with label, settings, statistics and comparison."""
    return {
        suite: [
            {
                "run": e.run.label,
                "settings": e.run.settings,
                "statistics": e.summary.to_json(),
                "comparison": e.comparison and as_json(e.comparison),
            }
            for e in entries
        ]
        for suite, entries in blocks.items()
    }
