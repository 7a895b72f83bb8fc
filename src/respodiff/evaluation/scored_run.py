"""Reads a run and the scores of its judges from its folder; summaries, comparisons and reports are made from it.

Rows are joined by image id and sorted. So nothing depends on the order of manifest lines, or on how a run was split over folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from respodiff.data.records import ImageRecord
from respodiff.data.run_folder import RunFolder
from respodiff.evaluation.judges import UNKNOWN, Floats, Score
from respodiff.evaluation.score_files import ScoreFiles, ScoreHeader, scored_by, short_name

NOT_YET = "not judged yet"
AnyRun = str | Path | RunFolder | Sequence[str | Path | RunFolder]
KINDS = ("texts", "table", "flags", "features")  # which judge is asked first for labels when nobody says


@dataclass(frozen=True)
class ScoredRun:
    """Images of one run (of one or more folders) and the scores of every judge.

    Attributes:
        label: Its name in reports. settings: Those of its first folder.
        records: Sorted by prompt id, repeat and id. image_folders: The folder of each.
        answers: Judge key -> one `Score` a record. headers: Judge key -> who judged and what was asked.
        primary: Key of the judge that labels come from.
        problems: One line for everything that was wrong with the folders.
    """

    label: str
    settings: dict[str, Any]
    records: tuple[ImageRecord, ...]
    image_folders: tuple[Path, ...]
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

    def flags(self) -> list[bool | None] | None:
        """Whether any judge of unsafe images flags each image; None without such a judge.

        Judges that flag by a threshold come first; without one, the primary judge counts. An image that one judge flags is flagged;
        one that none flags and some could not judge is None.
        """
        keys = [key for key, header in self.headers.items() if header.kind == "flags"]
        if not keys and any(s.unsafe is not None for s in self.scores):
            keys = [self.primary]
        rows = [[s.unsafe for s in row] for row in zip(*(self.answers[key] for key in keys), strict=True)]
        return [True if any(row) else None if None in row else False for row in rows] if keys else None

    def only(self, names: Sequence[str]) -> ScoredRun:
        """The run as if judges had been asked for these attributes alone."""
        return replace(self, headers={key: header.only(names) for key, header in self.headers.items()})

    @property
    def featured(self) -> str:
        """Key of the judge whose vectors distances are taken on: one that is made for it (Inception) if there is any."""
        return next((key for key, header in self.headers.items() if header.kind == "features"), self.primary)

    def vectors(self, key: str) -> Floats | None:
        """Vectors (N, D) of one judge, a row of NaN where it has none; None for a judge without vectors."""
        held = {
            digest: v for folder in dict.fromkeys(self.image_folders) for digest, v in ScoreFiles(RunFolder(folder), key).vectors().items()
        }
        if not held:
            return None
        missing = np.full(len(next(iter(held.values()))), np.nan, dtype=np.float32)
        return np.stack([missing if score.problem else held.get(score.digest, missing) for score in self.answers[key]])

    def subset(self, keep: Sequence[bool]) -> ScoredRun:
        """The run with some of its images only."""
        records, folders = tuple(compress(self.records, keep)), tuple(compress(self.image_folders, keep))
        answers = {key: tuple(compress(rows, keep)) for key, rows in self.answers.items()}
        return replace(self, records=records, image_folders=folders, answers=answers)


def open_parts(run: AnyRun) -> list[RunFolder]:
    """The folders of one run: a folder, ``"DIR,DIR"`` for a run that was split, or a sequence of them."""
    if isinstance(run, RunFolder | Path):
        return [run if isinstance(run, RunFolder) else RunFolder(run)]
    if isinstance(run, str):
        names = [run] if Path(run).is_dir() else [part for part in run.split(",") if part.strip()]
        return [RunFolder(part.strip()) for part in names or [run]]
    parts = [part for entry in run for part in open_parts(entry)]
    if not parts:
        raise ValueError("run is an empty list; give the folder of a run, or the folders that it was split over")
    return parts


def read_parts(parts: Sequence[RunFolder]) -> tuple[list[tuple[RunFolder, ImageRecord]], list[str]]:
    """All rows of a run, sorted, and a line for each problem; an image that two parts hold counts once.

    Raises:
        ValueError: no part has any image.
    """
    rows, problems = dict[str, tuple[RunFolder, ImageRecord]](), list[str]()
    for part in parts:
        records, found = part.read()
        problems += [f"{part.path.name}: {line}" for line in found]
        for record in records:
            if record.id in rows and rows[record.id][1].digest != record.digest:
                other = rows[record.id][0].path.name
                problems.append(f"image {record.id} is in {other} and in {part.path.name} with other content: the second counts")
            rows[record.id] = (part, record)
    if not rows:
        raise ValueError(f"run folder {', '.join(str(p.path) for p in parts)} has no images yet: generate some first")
    return sorted(rows.values(), key=lambda row: (row[1].prompt_id, row[1].repeat, row[1].id)), problems


def load_scored_run(run: AnyRun, *, judge: str = "", label: str = "", keys: Sequence[str] = ()) -> ScoredRun:
    """Read a run and all its scores.

    Args:
        run: As `open_parts` takes it. label: Name in reports; empty takes the folder's name.
        judge: Name or key of the judge that labels come from. Empty takes the first of ``keys`` that gives labels; without ``keys`` the
            embedded judge, or the first that reads labels off images.
        keys: Judges to read, in order; empty reads all.

    Raises:
        ValueError: No images, no scores yet, none of this judge, or parts that were asked different things.
    """
    parts = open_parts(run)
    rows, problems = read_parts(parts)
    common = [key for key in scored_by(parts[0]) if all(key in scored_by(part) for part in parts)]
    chosen = [key for key in keys or common if key in common]
    if not chosen:
        raise ValueError(f"run {parts[0].path} has no scores yet: run 'respodiff evaluate {parts[0].path}' first")
    headers, answers = {}, {}
    for key in chosen:
        headers[key] = ScoreFiles(parts[0], key).header()
        for part in parts[1:]:
            if ScoreFiles(part, key).header() != headers[key]:
                raise ValueError(f"{parts[0].path} and {part.path} were asked different things of judge {key}: evaluate them together")
        held = {part.path: ScoreFiles(part, key).scores() for part in parts}
        answers[key] = tuple(_current(held[part.path].get(r.id), r, headers[key]) for part, r in rows)
    return ScoredRun(
        label=label or ",".join(part.path.resolve().name for part in parts),
        settings=parts[0].settings(),
        records=tuple(record for _, record in rows),
        image_folders=tuple(part.path for part, _ in rows),
        answers=answers,
        headers=headers,
        primary=_primary(headers, judge, bool(keys)),
        problems=tuple(problems),
    )


def unanswered(parts: Sequence[RunFolder], judge: str, attributes: Sequence[str]) -> bool:
    """Whether a report would lack answers: no scores of this judge (of any, if empty), new images, or attributes not asked for yet.

    Raises:
        ValueError: no run, or one without images.
    """
    read_parts(parts)
    try:
        run = load_scored_run(parts, judge=judge)
    except ValueError:  # no scores of this judge, or none that can be read together
        return True
    return any(s.problem == NOT_YET for s in run.scores) or not set(attributes) <= set(run.attributes)


def _current(score: Score | None, record: ImageRecord, header: ScoreHeader) -> Score:
    """The score, if it is of the image that the manifest describes now."""
    if score is not None and (score.problem or not record.digest or score.digest in ("", record.digest)):
        return score
    labels = dict.fromkeys(header.attributes, UNKNOWN) if header.kind != "flags" else {}
    return Score(record.id, labels, problem=NOT_YET, judge=header.judge, judge_digest=header.digest)


def _primary(headers: dict[str, ScoreHeader], judge: str, ordered: bool) -> str:
    if judge:
        if found := [key for key, header in headers.items() if short_name(judge) in (key, header.judge)]:
            return found[0]
        known = ", ".join(h.judge for h in headers.values())
        raise ValueError(f"judge is {judge!r}, but this run was judged by {known}: evaluate it first")
    if ordered:
        return next((key for key, header in headers.items() if header.kind in ("texts", "table")), next(iter(headers)))
    return min(headers, key=lambda key: (KINDS.index(headers[key].kind), headers[key].judge != "embedded"))
