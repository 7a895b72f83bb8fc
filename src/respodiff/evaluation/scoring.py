"""Scores the images of one run folder with one judge, and keeps the scores there. Every file is read once."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
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
    if judge.kind == "table":  # it looks at no file
        found = judge.score([JudgeInput(record) for record in records], task)
        scores = [replace(s, digest=r.digest) for s, r in zip(found, records, strict=True)]
    elif _is_scored(files, header):
        return files.key
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
        held, scores = files.header(), files.scores().values()
    except ValueError:
        return False
    if held != header or held.fingerprint != header.fingerprint or any(s.problem for s in scores):
        return False
    return header.kind not in ("texts", "features") or {s.digest for s in scores} <= files.vectors().keys()


def _from_images(
    folder: RunFolder, records: Sequence[ImageRecord], judge: Judge, task: LabellingTask, files: ScoreFiles, unknown: dict[str, str]
) -> list[Score]:
    """A score a record. What the judge found in a file is kept, also after a kill in the middle of a run, and not asked for again."""
    values, held = files.held_scores(), files.vectors()
    kept, saved, out = dict[str, Floats](), time.monotonic(), list[Score]()
    for start in range(0, len(records), BATCH):
        batch = [(record, find(folder, record)) for record in records[start : start + BATCH]]
        opened = [_opened(record, file, values, held) for record, file in batch]
        inputs = [given for given in opened if isinstance(given, JudgeInput)]
        answers = iter(judge.score(inputs, task) if inputs else ())
        scores = [
            replace(next(answers) if isinstance(given, JudgeInput) else Score(record.id, dict(unknown), problem=given), digest=file.digest)
            for given, (record, file) in zip(opened, batch, strict=True)
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


def _opened(record: ImageRecord, file: ImageFile, values: dict[str, float], held: dict[str, Floats]) -> JudgeInput | str:
    """An image as a judge takes it, or what is wrong with its file; what was judged before is not opened."""
    if file.problem is not None:
        return file.problem
    if file.digest in values or file.digest in held:
        return JudgeInput(record, score=values.get(file.digest), features=held.get(file.digest))
    image = open_image(file.path)
    return "unreadable" if image is None else JudgeInput(record, image)
