"""Scores the images of a run folder with a judge, and keeps the scores there.

A judge has three files under ``scores/``, named after it and the digest of its weights: ``NAME.json`` says who judged and what was asked,
``NAME.jsonl`` holds one `Score` an image, and ``NAME.safetensors`` its image vectors by the digest of the image file. Vectors are computed
once: later questions need no image. A shard keeps what the judge found in its images in a part of its own; scores of the run are made of all.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from respodiff.data.places import new_file
from respodiff.data.records import ImageRecord
from respodiff.data.run_folder import RunFolder, file_digest, write_atomic
from respodiff.data.shards import WHOLE, Shard, parts_of
from respodiff.data.untrusted import confined, from_json, read_json
from respodiff.evaluation.judges.base import BATCH, UNKNOWN, AnswerJudge, Judge, JudgeInput, Score
from respodiff.evaluation.judges.texts import Floats, LabellingTask

T = TypeVar("T")
SLIMMEST = 50
BLANK, CONTRAST = "blank", 8
"""`Score.problem` of an image of one colour, and the most levels of 255 by which a channel of such an image varies."""
SAVE_SECONDS = 60.0


def short_name(name: str) -> str:
    """A judge's name without the way to its folder or file, which differs between machines: ``clip:ViT-B-32`` of ``clip:models/ViT-B-32``."""
    kind, _, rest = name.rpartition(":")
    model, at, labels = rest.rpartition("@") if rest.endswith(".toml") else (rest, "", "")
    short = (Path(model).name or model) + at + Path(labels).name
    return ":".join(part for part in (kind, short) if part)


def key_of(name: str, digest: str) -> str:
    """Name of a judge's files.

    >>> key_of("clip:models/ViT-B-32", "0123456789abcdef")
    'clip-ViT-B-32-01234567'
    """
    return re.sub(r"[^A-Za-z0-9-]+", "-", short_name(name)).strip("-")[:60] + "-" + digest[:8]


def open_image(path: Path) -> Image.Image | None:
    """The image as RGB, or None for a file that is none, or a strip no judge could look at (sides of more than 50 to 1)."""
    try:
        with Image.open(path) as file:
            return None if max(file.size) > SLIMMEST * min(file.size) else file.convert("RGB")
    except Exception:  # Pillow reports broken files in a dozen ways, NotImplementedError and MemoryError among them
        return None


def is_blank(image: Image.Image) -> bool:
    """Whether an RGB image shows one colour, as safety checkers and exploding latents leave black ones: it says nothing of its prompt."""
    return bool(np.ptp(np.asarray(image), axis=(0, 1)).max() <= CONTRAST)


@dataclass(frozen=True)
class ScoreHeader:
    """Who judged a run, and what was asked.

    Attributes:
        judge, digest, version, kind: See `judges.Judge`; the name is short.
        attributes: Attribute -> concept -> target prompt.
        proportions: Attribute -> concept -> wanted share, where the run or the attribute says any.
        group_proportions: Attribute -> group of prompts -> concept -> wanted share.
        class_template, min_margin, subjects: See `judges.LabellingTask`; None for judges that compare with no text.
        threshold, rule: See `judges.FlagJudge`.
        fingerprint: Digest of the task and of all images; equal fingerprints give equal scores.
        scores_digest: Of the lines of the scores, in any order.
    """

    judge: str
    digest: str
    version: str
    kind: str
    attributes: dict[str, dict[str, str]] = field(default_factory=dict)
    proportions: dict[str, dict[str, float]] = field(default_factory=dict)
    group_proportions: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    class_template: str | None = None
    min_margin: float | None = None
    subjects: list[str] | None = None
    threshold: float | None = None
    rule: str | None = None
    fingerprint: str | None = None
    scores_digest: str | None = None

    @property
    def asked(self) -> tuple[str, float]:
        """Class prompt template and least margin of the labels."""
        return self.class_template or "{concept}", self.min_margin or 0.0

    def only(self, names: Sequence[str]) -> ScoreHeader:
        """The header as if these attributes alone had been asked for."""
        kept: dict[str, Any] = {
            key: {name: value for name, value in getattr(self, key).items() if name in names}
            for key in ("attributes", "proportions", "group_proportions")
        }
        return replace(self, **kept)


def _lines_digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Held:
    """What a judge found in an image file of this digest; see `Score`."""

    digest: str
    score: float | None = None
    answers: dict[str, dict[str, float]] = field(default_factory=dict)


class ScoreFiles:
    """The files of one judge in one run folder."""

    def __init__(self, folder: RunFolder, key: str, shard: Shard = WHOLE) -> None:
        self.folder, self.key, self.shard = folder, key, shard
        self.base = folder.path / "scores"
        names = (f"{key}.{end}" for end in ("json", "jsonl", "safetensors", "progress"))
        self._header_file, self._scores_file, self._vectors_file, self._progress_file = (self.base / name for name in names)

    def write(self, header: ScoreHeader, scores: Sequence[Score]) -> None:
        """Replace what the judge said of this run before."""
        self._make_folder()
        rows = ({key: value for key, value in vars(s).items() if key != "features" and (key != "answers" or value)} for s in scores)
        lines = [json.dumps(row) for row in rows]
        about = {key: value for key, value in vars(header).items() if value is not None} | {"scores_digest": _lines_digest(lines)}
        write_atomic(self._scores_file, "".join(line + "\n" for line in lines))
        write_atomic(self._header_file, json.dumps(about, indent=1) + "\n")
        for path in (self._progress_file, *self.parts):
            path.unlink(missing_ok=True)

    @property
    def parts(self) -> list[Path]:
        """What shards have kept for the scores of the whole run."""
        return [path for file in (self._progress_file, self._vectors_file) for path in parts_of(file).values()]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """While the block runs, no other process keeps scores of this judge; OSError that says which one does."""
        self._make_folder()
        with self.shard.lock(self._scores_file):
            yield

    def _make_folder(self) -> None:
        try:
            self.base.mkdir(exist_ok=True)
        except OSError as error:
            reason = f"{error.strerror}; judge a copy that you may write to"
            if not self.folder.path.exists():
                reason = "it was deleted or moved meanwhile"
            raise OSError(f"cannot write scores to {self.folder.path}: {reason}") from error

    def header(self) -> ScoreHeader:
        """Who judged, and what was asked; ValueError for a file that does not say it."""
        return self._read(self._header_file, lambda text: from_json(ScoreHeader, read_json(text)))

    def scores(self) -> dict[str, Score]:
        """Image id -> score, as last written; ValueError for a damaged file."""
        wanted = self.header().scores_digest

        def parse(text: str) -> dict[str, Score]:
            if wanted not in (None, _lines_digest(lines := text.splitlines())):
                raise ValueError("they have changed since they were written")
            return {s.id: s for s in (from_json(Score, read_json(line)) for line in lines)}

        return self._read(self._scores_file, parse)

    def _read(self, path: Path, parse: Callable[[str], T]) -> T:
        try:
            return parse(confined(self.base, path.name).read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"scores {path} cannot be read ({error}): run 'respodiff evaluate {self.folder.path}' again") from error

    def held(self) -> dict[str, Held]:
        """Digest of an image -> what a judge found in it before, also in a run that was cut off; vectors are in a file of their own."""
        out: dict[str, Held] = {}
        for path in (self._scores_file, self._progress_file, *parts_of(self._progress_file).values()):
            for line in confined(self.base, path.name).read_bytes().splitlines() if path.exists() else ():
                try:
                    found = from_json(Held, read_json(line))
                except (ValueError, TypeError, KeyError):  # cut off by a kill: judged anew
                    continue
                if found.digest and (found.score is not None or found.answers):
                    before = out.get(found.digest, found)
                    score = before.score if found.score is None else found.score
                    out[found.digest] = Held(found.digest, score, before.answers | found.answers)
        return out

    def note(self, found: Iterable[Held]) -> None:
        """Keep what was judged so far, so that a kill loses a batch and no more."""
        self._make_folder()
        with self.shard.part(self._progress_file).open("a", encoding="utf-8") as handle:
            handle.writelines(json.dumps(vars(row)) + "\n" for row in found)

    def vectors(self) -> dict[str, Floats]:
        """Digest of an image file -> its unit vector; empty if there are none (a broken cache is made anew)."""
        from safetensors import SafetensorError, safe_open

        out: dict[str, Floats] = {}
        for path in (self._vectors_file, *parts_of(self._vectors_file).values()):
            try:
                with safe_open(confined(self.base, path.name), framework="numpy") as file:
                    digests, table = read_json((file.metadata() or {})["digests"]), file.get_slice("vectors")
                    if table.get_dtype() == "F32" and table.get_shape()[:-1] == [len(digests)]:
                        out |= zip(digests, file.get_tensor("vectors"), strict=True)
            except (OSError, SafetensorError, KeyError, TypeError, ValueError):
                continue
        return out

    def write_vectors(self, vectors: dict[str, Floats]) -> None:
        """Replace the vectors, unless there are none."""
        from safetensors.numpy import save_file

        if not vectors:
            return
        self._make_folder()
        with new_file(self.shard.part(self._vectors_file)) as partial:
            save_file({"vectors": np.stack(list(vectors.values()))}, partial, metadata={"digests": json.dumps(list(vectors))})


def scored_by(folder: RunFolder) -> list[str]:
    """Keys of the judges that have judged a run folder, in name order."""
    return sorted(path.stem for path in (folder.path / "scores").glob("*.json") if path.with_suffix(".jsonl").is_file())


@dataclass(frozen=True)
class _Listed:
    """A record and its image file as found: its digest, and in a word why it cannot be judged, if so."""

    record: ImageRecord
    path: Path
    digest: str = ""
    problem: str | None = None


def judge_run(folder: RunFolder, judge: Judge, task: LabellingTask, shard: Shard = WHOLE) -> str:
    """Judge the images of a run folder, keep the scores there, and return the key that they are kept under.

    A shard judges the images of its prompts and keeps what was found; scores are written by a call for the whole run, which opens none of them.
    Scores of the same task and the same images are left as they are: a judge that loads its model when it is first used then loads none.
    """
    files = ScoreFiles(folder, key_of(judge.name, judge.digest), shard)
    asked = {a.name: {c.name: c.target for c in a.concepts} for a in task.attributes}
    wanted = {a.name: dict(zip(a.names, a.proportions, strict=True)) for a in task.attributes if a.proportions}
    of_groups = {a: {group: dict(row) for group, row in rows.items()} for a, rows in task.group_proportions.items() if a in asked and rows}
    records = folder.records()
    own = set(shard.take(sorted({r.prompt_id for r in records})))
    images = [_listed(folder.path, record) for record in records if record.prompt_id in own]
    task = replace(task, prompts=tuple(sorted({i.record.prompt for i in images})))
    seen = [(i.record.id, i.record.prompt, i.record.group, i.record.subject, i.digest, i.problem) for i in images]
    text = json.dumps([asdict(task), seen], sort_keys=True, default=str)
    who = {"judge": short_name(judge.name), "digest": judge.digest, "version": judge.version, "kind": judge.kind}
    about = {**who, "attributes": asked, "proportions": wanted, "group_proportions": of_groups, **judge.asked(task)}
    header = ScoreHeader(**about, fingerprint=hashlib.sha256(text.encode()).hexdigest()[:16])
    if judge.kind != "table" and shard == WHOLE and _is_scored(files, header):
        return files.key
    with files.lock():
        _judge(images, judge, task, files, header)
    return files.key


def _judge(images: Sequence[_Listed], judge: Judge, task: LabellingTask, files: ScoreFiles, header: ScoreHeader) -> None:
    """Score the images; a shard keeps what its judge found, a call for the whole run the scores."""
    if files.shard != WHOLE:
        if judge.kind != "table":
            _from_images(images, judge, task, files, {})
        return
    unknown = dict.fromkeys(header.attributes, UNKNOWN)
    if judge.kind == "table":  # its labels count without the image, but not for a blank one
        found = zip(images, judge.score([JudgeInput(i.record) for i in images], task), strict=True)
        told = [Score(i.record.id, unknown, problem=BLANK) if _opened(i) == BLANK else score for i, score in found]
        scores = [replace(s, digest=i.record.digest) for s, i in zip(told, images, strict=True)]
    else:
        scores = _from_images(images, judge, task, files, unknown)
    files.write(header, [replace(s, judge=header.judge, judge_digest=judge.digest) for s in scores])


def _listed(folder: Path, record: ImageRecord) -> _Listed:
    """A file other than the manifest describes is a problem, not another image."""
    try:
        path = confined(folder, record.file)
    except (OSError, ValueError) as error:
        return _Listed(record, folder, problem="missing" if isinstance(error, OSError) else "outside")
    digest = file_digest(path)
    if digest == (record.digest or digest):
        return _Listed(record, path, digest)
    return _Listed(record, path, digest, "unreadable" if open_image(path) is None else "changed")


def _is_scored(files: ScoreFiles, header: ScoreHeader) -> bool:
    """Whether the folder holds scores of this judge, task and images, none of which another look could change, and their vectors."""
    try:
        held, scores = files.header(), files.scores().values()
    except ValueError:
        return False
    same = replace(held, scores_digest=None) == header and all(s.problem in (None, BLANK) for s in scores)
    return same and (header.kind in ("flags", "answers") or {s.digest for s in scores if not s.problem} <= files.vectors().keys())


def _from_images(images: Sequence[_Listed], judge: Judge, task: LabellingTask, files: ScoreFiles, unknown: dict[str, str]) -> list[Score]:
    """A score an image. What the judge found in a file is kept, also after a kill in the middle of a run, and not asked for again."""
    known, held = files.held(), files.vectors()
    kept, saved, out = dict[str, Floats](), time.monotonic(), list[Score]()
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        given = [_given(image, judge, task, known.get(image.digest, Held(image.digest)), held) for image in batch]
        inputs = [item for item in given if isinstance(item, JudgeInput)]
        answers = iter(judge.score(inputs, task) if inputs else ())
        scores = [
            replace(next(answers) if isinstance(item, JudgeInput) else Score(i.record.id, dict(unknown), problem=item), digest=i.digest)
            for item, i in zip(given, batch, strict=True)
        ]
        told = {s.digest: Held(s.digest, s.score, s.answers) for s in scores if s.score is not None or s.answers}
        if new := {digest: row for digest, row in told.items() if row != known.get(digest)}:
            files.note(new.values())
            known |= new
        kept |= {s.digest: s.features for s in scores if s.features is not None}
        out += [replace(s, features=None) for s in scores]
        if time.monotonic() - saved > SAVE_SECONDS:
            files.write_vectors({**held, **kept})
            saved = time.monotonic()
    if kept.keys() != held.keys() or files.parts:
        files.write_vectors(kept)
    return out


def _given(image: _Listed, judge: Judge, task: LabellingTask, known: Held, held: dict[str, Floats]) -> JudgeInput | str:
    """An image as a judge takes it, or what is wrong with its file; what was judged before is not opened."""
    if image.problem is not None:
        return image.problem
    found = JudgeInput(image.record, score=known.score, features=held.get(image.digest), answers=known.answers)
    enough = judge.known(known.answers, task, image.record.group) if isinstance(judge, AnswerJudge) else found.score is not None
    if enough or found.features is not None:
        return found
    pixels = _opened(image)
    return pixels if isinstance(pixels, str) else replace(found, image=pixels)


def _opened(image: _Listed) -> Image.Image | str:
    """The pixels of an image, or what is wrong with it."""
    pixels = None if image.problem else open_image(image.path)
    return image.problem or "unreadable" if pixels is None else BLANK if is_blank(pixels) else pixels
