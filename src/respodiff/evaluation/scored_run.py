"""Reads a run and the scores of its judges from its folder; summaries, comparisons and reports are made from it.

Rows are joined by image id and sorted, so nothing depends on the order of manifest lines.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from respodiff._optional import optional
from respodiff.data.records import ImageRecord
from respodiff.data.run_folder import RunFolder
from respodiff.evaluation.judges import UNKNOWN, Score
from respodiff.evaluation.judges.texts import Floats
from respodiff.evaluation.score_files import ScoreFiles, ScoreHeader, key_of, scored_by, short_name

NOT_YET = "not judged yet"
SAID = {
    "found": "subject",
    **{name: name for name in ("subject_correct", "unsafe", "score", "alignment", "problem")},
}
"""Column of a table -> field of a `Score`."""
AnyRun = str | Path | RunFolder
KINDS = ("texts", "answers", "table", "flags", "features")  # which judge is asked first for labels when nobody says


@dataclass(frozen=True)
class ScoredRun:
    """Images of one run and the scores of every judge.

    Attributes:
        label: Its name in reports.
        records: Sorted by prompt id, repeat and id.
        answers: Judge key -> one `Score` a record. headers: Judge key -> who judged and what was asked.
        primary: Key of the judge that labels come from.
        problems: One line for everything that was wrong with the folder.
    """

    label: str
    settings: dict[str, Any]
    records: tuple[ImageRecord, ...]
    folder: Path
    answers: dict[str, tuple[Score, ...]]
    headers: dict[str, ScoreHeader]
    primary: str
    problems: tuple[str, ...]

    @property
    def scores(self) -> tuple[Score, ...]:
        """Scores of the primary judge."""
        return self.answers[self.primary]

    @property
    def header(self) -> ScoreHeader:
        """What the primary judge was asked."""
        return self.headers[self.primary]

    @property
    def attributes(self) -> dict[str, dict[str, str]]:
        """Attribute -> concept -> target prompt, as the primary judge was asked."""
        return self.header.attributes

    @property
    def known(self) -> list[tuple[ImageRecord, Score]]:
        """Images that the primary judge could judge, with their scores."""
        return [(r, s) for r, s in zip(self.records, self.scores, strict=True) if s.problem is None]

    def labels(self, attribute: str, key: str = "") -> list[str]:
        """What a judge (the primary one, if empty) perceives in each image; ``unknown`` also where it was not asked."""
        return [score.labels.get(attribute, UNKNOWN) for score in self.answers[key or self.primary]]

    def counts(self, attribute: str) -> dict[str, dict[str, int]]:
        """Group of prompts -> concept -> number of images, the last entry of each row ``unknown``; groups by name."""
        out: dict[str, dict[str, int]] = {}
        for record, score in zip(self.records, self.scores, strict=True):
            if attribute in score.labels:
                row = out.setdefault(record.group, dict.fromkeys((*self.attributes[attribute], UNKNOWN), 0))
                if score.labels[attribute] in row:
                    row[score.labels[attribute]] += 1
        return dict(sorted(out.items()))

    def known_counts(self, attribute: str) -> dict[str, tuple[int, ...]]:
        """Group of prompts -> number of images of each concept."""
        return {group: tuple(row.values())[:-1] for group, row in self.counts(attribute).items()}

    def wanted(self, attribute: str, group: str = "") -> dict[str, float]:
        """Concept -> wanted share in a group of prompts: the group's own, else the attribute's, else equal ones."""
        concepts, header = self.attributes[attribute], self.header
        found = header.group_proportions.get(attribute, {}).get(group) or header.proportions.get(attribute)
        return {c: found.get(c, 0.0) for c in concepts} if found else dict.fromkeys(concepts, 1 / len(concepts))

    @property
    def flagging(self) -> list[str]:
        """Keys of the judges whose flags are combined: those that flag by a threshold, else the primary judge if it flags at all."""
        keys = [key for key, header in self.headers.items() if header.kind == "flags"]
        return keys or [self.primary] * any(s.unsafe is not None for s in self.scores)

    @property
    def unsafe_rule(self) -> str | None:
        """In words, which images count as unsafe: "flagged by any of nudenet, q16:ViT-L-14"; None without a judge of unsafe images."""
        names = [self.headers[key].judge for key in self.flagging]
        return f"flagged by {'any of ' * (len(names) > 1)}{', '.join(names)}" if names else None

    def flags(self) -> list[bool | None] | None:
        """Whether any of the judges of `flagging` flags each image; None without one.

        An image that one of them could not judge is None, whatever the others say: to keep it only where they flag it would raise the share.
        """
        keys = self.flagging
        rows = [[s.unsafe for s in row] for row in zip(*(self.answers[key] for key in keys), strict=True)]
        return [None if None in row else any(row) for row in rows] if keys else None

    def judged_by(self, keys: Sequence[str], note: str = "") -> ScoredRun:
        """The run with the scores of some of its judges alone, and a problem for every other one, if it is noted."""
        left_out = [f"judge {self.headers[key].judge} is left out: {note}" for key in self.answers if key not in keys] if note else []
        headers, answers = {key: self.headers[key] for key in keys}, {key: self.answers[key] for key in keys}
        primary = self.primary if self.primary in headers else _primary(headers, False)
        return replace(self, headers=headers, answers=answers, primary=primary, problems=(*self.problems, *left_out))

    def only(self, names: Sequence[str]) -> ScoredRun:
        """The run as if judges had been asked for these attributes alone."""
        return replace(self, headers={key: header.only(names) for key, header in self.headers.items()})

    @property
    def featured(self) -> str:
        """Key of the judge whose vectors distances are taken on: one that is made for it (Inception) if there is any."""
        return next((key for key, header in self.headers.items() if header.kind == "features"), self.primary)

    def vectors(self, key: str) -> Floats | None:
        """Vectors (N, D) of one judge, a row of NaN where it has none; None for a judge without vectors."""
        if not (held := ScoreFiles(RunFolder(self.folder), key).vectors()):
            return None
        missing = np.full(len(next(iter(held.values()))), np.nan, dtype=np.float32)
        return np.stack([missing if score.problem else held.get(score.digest, missing) for score in self.answers[key]])

    def rows(self) -> list[dict[str, Any]]:
        """One row an image, all of the same keys: those of `ImageRecord.row`, and of each judge ``JUDGE/perceived_ATTRIBUTE`` (``unknown``
        where it cannot tell), and as far as it says any ``JUDGE/found`` (the subject), ``/subject_correct``, ``/unsafe``, ``/score``,
        ``/alignment`` and ``/problem``.

        JUDGE is the judge's name; its key where two have one name.
        """
        out = [r.row() | {f"asked_{name}": r.asked(name) for h in self.headers.values() for name in h.attributes} for r in self.records]
        names = [header.judge for header in self.headers.values()]
        for key, scores in self.answers.items():
            header = self.headers[key]
            judge = header.judge if names.count(header.judge) == 1 else key
            for row, s in zip(out, scores, strict=True):
                row |= {f"{judge}/perceived_{name}": s.labels.get(name, UNKNOWN) for name in header.attributes}
            for column, field in SAID.items():
                values = [getattr(s, field) for s in scores]
                for row, value in zip(out, values, strict=True) if set(values) != {None} else ():
                    row[f"{judge}/{column}"] = value
        columns = dict.fromkeys(key for row in out for key in row)
        return [{column: row.get(column) for column in columns} for row in out]

    def to_pandas(self) -> Any:
        """A DataFrame of `rows`. RuntimeError without pandas."""
        return optional("pandas", "to_pandas", "data").DataFrame(self.rows())

    def to_metricframe(self, attribute: str, concept: str, *, by: str | Sequence[str] = "group", metrics: Any = None) -> Any:
        """A fairlearn ``MetricFrame`` of one concept, as the primary judge perceives it.

        ``y_pred`` is 1 where the concept is perceived, else 0. ``y_true`` is 1 where it was asked for, 0 where another one was, and NaN where
        none was: metrics that read it then fail. Images that the judge could not tell are left out, with a warning, as in DevRat.

        Args:
            attribute, concept: what was asked and perceived, such as ``"gender", "woman"``.
            by: column or columns of `rows` whose values are the groups to compare.
            metrics: name -> function (y_true, y_pred), or one function. Default: ``selection_rate``, the share of images in which the concept
                is perceived, and ``count``; its ``difference()`` is the demographic parity difference between the groups.

        Raises:
            ValueError: an attribute that the judge was not asked for, another concept, an unknown column, or no image that it could tell.
            RuntimeError: without fairlearn.
        """
        if concept not in (concepts := self.attributes.get(attribute, {})):
            known = ", ".join(f"{a} ({', '.join(names)})" for a, names in self.attributes.items())
            name, value = ("concept", concept) if concepts else ("attribute", attribute)
            raise ValueError(f"{name} is {value!r}, which {self.header.judge} was not asked for; allowed: {known or 'none'}")
        columns, rows = [by] if isinstance(by, str) else [*by], self.rows()
        if unknown := [column for column in columns if column not in rows[0]]:
            raise ValueError(f"by is {unknown[0]!r}; allowed: {', '.join(rows[0])}")
        perceived = self.labels(attribute)
        told = [i for i, label in enumerate(perceived) if label in concepts]
        if not told:
            raise ValueError(f"attribute is {attribute!r}, which {self.header.judge} could tell in no image")
        if left_out := len(perceived) - len(told):
            warnings.warn(f"{left_out} of {len(perceived)} images are left out: {attribute} is unknown in them", stacklevel=2)
        fairlearn, pandas = optional("fairlearn.metrics", "to_metricframe", "data"), optional("pandas", "to_metricframe", "data")
        asked = [self.records[i].asked(attribute) for i in told]
        return fairlearn.MetricFrame(
            metrics=metrics or {"selection_rate": fairlearn.selection_rate, "count": fairlearn.count},
            y_true=np.array([np.nan if name is None else float(name == concept) for name in asked]),
            y_pred=np.array([float(perceived[i] == concept) for i in told]),
            sensitive_features=pandas.DataFrame([{column: rows[i][column] for column in columns} for i in told]),
        )

    def by_prompt(self) -> ScoredRun:
        """The same with every prompt as a group of its own: what intervals are over, where groups are themes of prompts."""
        return replace(self, records=tuple(replace(r, group=r.prompt_id) for r in self.records))

    def subset(self, keep: Sequence[bool]) -> ScoredRun:
        """The run with some of its images only."""
        answers = {key: tuple(compress(rows, keep)) for key, rows in self.answers.items()}
        return replace(self, records=tuple(compress(self.records, keep)), answers=answers)


def read_records(folder: RunFolder) -> tuple[list[ImageRecord], list[str]]:
    """The records of a run, sorted, and a line for each problem; ValueError if there are none."""
    records, problems = folder.read()
    if not records:
        raise ValueError(f"run folder {folder.path} has no images yet: generate some first")
    return sorted(records, key=lambda r: (r.prompt_id, r.repeat, r.id)), [f"{folder.path.name}: {line}" for line in problems]


def load_scored_run(run: AnyRun, *, judge: str | Sequence[str] = (), label: str = "", keys: Sequence[str] = ()) -> ScoredRun:
    """Read a run and the scores of some judges.

    Args:
        label: Name in reports; empty takes the folder's name.
        judge: Names or keys of the judges that are read, and no others. Labels come from the first that gives any. Without a name, all
            judges that have scored every image are read (all, if none has), and labels come from the embedded one, or the first that reads
            labels off images.
        keys: Keys of the judges to read, in place of names.

    Raises:
        ValueError: No images, no scores yet, none of a judge that is named, or two judges of one name.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder(run)
    records, problems = read_records(folder)
    there = {key: ScoreFiles(folder, key) for key in scored_by(folder)}
    if not there:
        raise ValueError(f"run {folder.path} has no scores yet: run 'respodiff evaluate {folder.path}' first")
    headers = {key: file.header() for key, file in there.items()}
    names = [judge] if isinstance(judge, str) and judge else list(judge)
    chosen = list(dict.fromkeys(keys or [_key(headers, name) for name in names])) or list(headers)
    headers, held = {key: headers[key] for key in chosen}, {key: there[key].scores() for key in chosen}
    found = ScoredRun(
        label=label or folder.path.resolve().name,
        settings=folder.settings(),
        records=tuple(records),
        folder=folder.path,
        answers={key: tuple(_current(held[key].get(r.id), r, headers[key]) for r in records) for key in chosen},
        headers=headers,
        primary=_primary(headers, bool(keys or names)),
        problems=tuple(problems),
    )
    if keys or names:
        return found
    complete = [key for key, scores in found.answers.items() if all(s.problem != NOT_YET for s in scores)] or chosen
    for key in complete:
        _key({key: headers[key] for key in complete}, headers[key].judge)
    return found.judged_by(complete, "it has not judged every image, or not as they are now; name it to read it")


def asked_before(run: AnyRun, name: str, digest: str) -> dict[str, Any]:
    """The wording, least margin and groups' targets that a judge was asked with, as `judge_all` takes them; empty where it has not judged."""
    folder, key = run if isinstance(run, RunFolder) else RunFolder(run), key_of(name, digest)
    if key not in scored_by(folder):
        return {}
    header, own = ScoreFiles(folder, key).header(), folder.settings().get("group_proportions") or {}
    groups: dict[str, dict[str, Any]] = {group: dict(rows) for group, rows in own.items()}  # also of attributes that were not asked for yet
    for attribute, rows in header.group_proportions.items():
        for group, shares in rows.items():
            groups.setdefault(group, {})[attribute] = shares
    template, margin = header.asked
    return {"class_template": template, "min_margin": margin} | ({"group_proportions": groups} if groups else {})


def unanswered(run: AnyRun, judge: str, attributes: Sequence[str]) -> bool:
    """Whether a report would lack answers: no scores of this judge (of any, if empty), new images, or attributes not asked for yet."""
    try:
        found = load_scored_run(run, judge=judge)
    except ValueError:  # no scores of this judge, of two of this name, or damaged ones
        read_records(run if isinstance(run, RunFolder) else RunFolder(run))  # says so if there is no image
        return True
    asked = set() if found.header.kind in ("flags", "features") else set(attributes)
    return any(s.problem == NOT_YET for s in found.scores) or not asked <= set(found.attributes)


def _current(score: Score | None, record: ImageRecord, header: ScoreHeader) -> Score:
    """The score, if it is of the image that the manifest describes now."""
    if score is not None and (score.problem or not record.digest or score.digest in ("", record.digest)):
        return score
    labels = dict.fromkeys(header.attributes, UNKNOWN) if header.kind != "flags" else {}
    return Score(record.id, labels, problem=NOT_YET, judge=header.judge, judge_digest=header.digest)


def _key(headers: dict[str, ScoreHeader], judge: str) -> str:
    """The key of the judge of this name; ValueError without one, or for two that differ in their weights or labels."""
    found = [key for key, header in headers.items() if short_name(judge) in (key, header.judge)]
    if not found:
        known = ", ".join(h.judge for h in headers.values())
        raise ValueError(f"judge is {judge!r}, but this run was judged by {known}: evaluate it first")
    if len(found) > 1:
        raise ValueError(f"judge is {judge!r}, of which this run holds scores of two: name one of {', '.join(found)}")
    return found[0]


def _primary(headers: dict[str, ScoreHeader], ordered: bool) -> str:
    if ordered:
        return next((key for key, header in headers.items() if header.kind in ("texts", "answers", "table")), next(iter(headers)))
    return min(headers, key=lambda key: (KINDS.index(headers[key].kind), headers[key].judge != "embedded"))
