"""Scores the images of one run folder with one judge, and keeps the scores there. Every file is read once."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from respodiff.data.records import ImageRecord
from respodiff.data.run_folder import RunFolder
from respodiff.evaluation.judges import BATCH, UNKNOWN, Floats, Judge, JudgeInput, LabellingTask, Score
from respodiff.evaluation.score_files import ImageFile, ScoreFiles, ScoreHeader, find, key_of, open_image, short_name

SAVE_SECONDS = 60.0


def judge_run(folder: RunFolder, records: Sequence[ImageRecord], judge: Judge, task: LabellingTask) -> str:
    """Judge ``records`` of ``folder``, keep the scores there, and return the key that they are kept under.

    Scores of the same task and the same images are left as they are: a judge that loads its model when it is first used then loads none.
    """
    files = ScoreFiles(folder, key_of(judge.name, judge.digest))
    asked = {a.name: {c.name: c.target for c in a.concepts} for a in task.attributes}
    wanted = {a.name: dict(zip(a.names, a.proportions, strict=True)) for a in task.attributes if a.proportions}
    of_groups = {a: {group: dict(row) for group, row in rows.items()} for a, rows in task.group_proportions.items() if a in asked and rows}
    who = {"judge": short_name(judge.name), "digest": judge.digest, "version": judge.version, "kind": judge.kind}
    about = {**who, "attributes": asked, "proportions": wanted, "group_proportions": of_groups, **judge.asked(task)}
    task = replace(task, prompts=tuple(sorted({r.prompt for r in records})))
    header = ScoreHeader.from_json(about | {"fingerprint": _fingerprint(folder, records, task)})
    if judge.kind != "table" and _is_scored(files, header):
        return files.key
    if judge.kind == "table":  # it looks at no file
        found = judge.score([JudgeInput(record) for record in records], task)
        scores = [replace(s, digest=r.digest) for s, r in zip(found, records, strict=True)]
    else:
        scores = _from_images(folder, records, judge, task, files, dict.fromkeys(header.attributes, UNKNOWN))
    files.write(header, [replace(s, judge=header.judge, judge_digest=judge.digest) for s in scores])
    return files.key


def _fingerprint(folder: RunFolder, records: Sequence[ImageRecord], task: LabellingTask) -> str:
    """Digest of all that scores depend on beside the judge: the task, the records and the files."""
    found = [(r.id, r.prompt, r.group, r.subject, file.digest, file.problem) for r in records for file in [find(folder, r)]]
    text = json.dumps([asdict(task), found], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_scored(files: ScoreFiles, header: ScoreHeader) -> bool:
    """Whether the folder holds scores of this judge, task and images, none of them failed, and the vectors that belong to them."""
    try:
        held = files.header()
        if held != header or held.fingerprint != header.fingerprint:
            return False
        scores = files.scores().values()
    except ValueError:
        return False
    embedded = set(files.vectors()) if header.kind in ("texts", "features") else None
    return all(s.problem is None and (embedded is None or s.digest in embedded) for s in scores)


def _from_images(
    folder: RunFolder, records: Sequence[ImageRecord], judge: Judge, task: LabellingTask, files: ScoreFiles, unknown: Mapping[str, str]
) -> list[Score]:
    """A score a record. What the judge found in a file is kept, also after a kill in the middle of a run, and not asked for again."""
    values, held = files.held_scores(), files.vectors()
    kept, saved, out = dict[str, Floats](), time.monotonic(), list[Score]()
    for start in range(0, len(records), BATCH):
        batch = [(record, find(folder, record)) for record in records[start : start + BATCH]]
        problems, inputs = _opened(batch, values, held)
        answers = dict(zip(inputs, judge.score(list(inputs.values()), task), strict=True)) if inputs else {}
        scores = [
            replace(answers[i] if i in answers else Score(record.id, dict(unknown), problem=problems[i]), digest=found.digest)
            for i, (record, found) in enumerate(batch)
        ]
        if new := {s.digest: s.score for s in scores if s.score is not None and s.digest not in values}:
            files.note_scores(new)
            values |= new
        kept |= {s.digest: s.features for s in scores if s.features is not None}
        out += [replace(s, features=None) for s in scores]
        if time.monotonic() - saved > SAVE_SECONDS:
            files.write_vectors({**held, **kept})
            saved = time.monotonic()
    if kept.keys() != held.keys():
        files.write_vectors(kept)
    return out


def _opened(
    batch: Sequence[tuple[ImageRecord, ImageFile]], values: Mapping[str, float], held: Mapping[str, Floats]
) -> tuple[list[str | None], dict[int, JudgeInput]]:
    """What is wrong with each image, and place -> input for those that are fine; what was judged before is not opened."""
    problems = [found.problem for _, found in batch]
    inputs: dict[int, JudgeInput] = {}
    for i, (record, found) in enumerate(batch):
        if problems[i] is not None:
            continue
        if found.digest in values or found.digest in held:
            inputs[i] = JudgeInput(record, score=values.get(found.digest), features=held.get(found.digest))
        elif (image := open_image(found.path)) is None:
            problems[i] = "unreadable"
        else:
            inputs[i] = JudgeInput(record, image)
    return problems, inputs
