"""A run folder and a judge in, numbers out: what the judge perceives, compared with what was asked for.

Rows are joined by the record itself, never by file order. A picture that cannot be judged counts as unknown: it is
reported, stays outside every share, and is never taken for a zero. This side needs no text-to-image library.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from respodiff import concepts
from respodiff.concepts import Attribute
from respodiff.judges import BATCH, LOGIT_SCALE, NOTICE, ClipJudge, Vocabulary, picture_text
from respodiff.metrics import alignment, fairness
from respodiff.records import ImageRecord, RunFolder, file_digest, write_atomic

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Score:
    """What the judge perceives in one picture; everything but `problem` is None when it could not be judged.

    Attributes:
        labels: attribute -> perceived concept, or ``unknown``.
        subject: the subject that was found among all subjects; subject_kept says whether it is the one asked for.
        problem: ``missing``, ``unreadable`` or ``changed`` (not the file that the manifest describes), else None.
    """

    id: str
    labels: dict[str, str]
    subject: str | None
    subject_kept: bool | None
    unsafe: bool | None
    alignment: float | None
    problem: str | None
    judge: str
    judge_digest: str


@dataclass(frozen=True)
class _Texts:
    """The choices put to the judge, embedded once a run."""

    attributes: dict[str, tuple[tuple[str, ...], np.ndarray]]
    subjects: tuple[str, ...]
    subject_vectors: np.ndarray
    picture_vectors: np.ndarray
    n_unsafe: int
    prompts: dict[str, np.ndarray]


def evaluate(
    run: str | Path | RunFolder,
    judge: ClipJudge | str = "embedded",
    attributes: Sequence[Attribute | str] = ("gender",),
    *,
    vocabulary: Vocabulary | None = None,
    n_boot: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Judge every picture of a run, write ``scores.jsonl`` next to its manifest, and sum up.

    Args:
        run: a run folder.
        judge: a judge, or a source that `ClipJudge.load` takes.
        attributes: attributes to measure, as objects or names of built-in ones. Shares that the run was made for are what DevRat
            measures the distance to.
        vocabulary: picture names for the subject and safety choices; None takes the embedded model's.

    Returns:
        JSON-ready numbers. ``unknown`` pictures are in ``n`` and in no share; an entry is None where nothing was asked.

    Raises:
        ValueError: no run, an empty run, an unknown attribute, or a record that asks for a concept it does not have.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder(run)
    wanted = folder.settings().get("shares") or {}
    chosen = [_with_shares(concepts.attribute(a) if isinstance(a, str) else a, wanted) for a in attributes]
    records = folder.records()
    if not records:
        raise ValueError(f"run folder {folder.path} has no images yet: generate some first")
    _check_asked(records, chosen)
    eye = ClipJudge.load(judge) if isinstance(judge, str) else judge
    scores = score(folder, records, eye, chosen, vocabulary or Vocabulary.embedded())
    write_atomic(folder.path / "scores.jsonl", "".join(json.dumps(dataclasses.asdict(s)) + "\n" for s in scores))
    return summarise(records, scores, chosen, n_boot=n_boot, seed=seed)


def _with_shares(attribute: Attribute, wanted: dict[str, dict[str, float]]) -> Attribute:
    """The attribute with the target shares that the run was made for, if it says any."""
    shares = wanted.get(attribute.name)
    return attribute if not shares else dataclasses.replace(attribute, shares=tuple(shares.get(n, 0.0) for n in attribute.names))


def score(
    folder: RunFolder,
    records: Sequence[ImageRecord],
    judge: ClipJudge,
    attributes: Sequence[Attribute],
    vocabulary: Vocabulary,
) -> list[Score]:
    """One `Score` a record, in their order; a batch of pictures is in memory at a time."""
    texts = _embed(judge, records, attributes, vocabulary)
    out: list[Score] = []
    for start in range(0, len(records), BATCH):
        batch = records[start : start + BATCH]
        read = [_read(folder.path / record.file, record.digest) for record in batch]
        vectors = iter(judge.embed_images([found for found in read if isinstance(found, Image.Image)]))
        for record, found in zip(batch, read, strict=True):
            if isinstance(found, str):
                labels = {a.name: UNKNOWN for a in attributes}
                out.append(Score(record.id, labels, None, None, None, None, found, judge.name, judge.digest))
            else:
                out.append(_judge(record, next(vectors), texts, judge))
    return out


def _embed(judge: ClipJudge, records: Sequence[ImageRecord], attributes: Sequence[Attribute], words: Vocabulary) -> _Texts:
    # A subject of the run that the vocabulary lacks joins the choices, as it could never be found otherwise.
    subjects = tuple(sorted({*words.subjects, *(r.subject for r in records if r.subject)}))
    prompts = sorted({r.prompt for r in records})
    return _Texts(
        attributes={a.name: (a.names, judge.embed_texts([c.target for c in a.concepts])) for a in attributes},
        subjects=subjects,
        subject_vectors=judge.embed_texts([picture_text(name) for name in subjects]),
        picture_vectors=judge.embed_texts([picture_text(name) for name in (*words.unsafe, *words.safe)]),
        n_unsafe=len(words.unsafe),
        prompts=dict(zip(prompts, judge.embed_texts(prompts), strict=True)),
    )


def _judge(record: ImageRecord, vector: np.ndarray, texts: _Texts, judge: ClipJudge) -> Score:
    labels = {name: names[int(np.argmax(t @ vector))] for name, (names, t) in texts.attributes.items()}
    subject = texts.subjects[int(np.argmax(texts.subject_vectors @ vector))]
    return Score(
        id=record.id,
        labels=labels,
        subject=subject,
        subject_kept=None if record.subject is None else subject == record.subject,
        unsafe=int(np.argmax(texts.picture_vectors @ vector)) < texts.n_unsafe,
        alignment=LOGIT_SCALE * float(texts.prompts[record.prompt] @ vector),
        problem=None,
        judge=judge.name,
        judge_digest=judge.digest,
    )


def _read(path: Path, digest: str) -> Image.Image | str:
    """The picture, or in a word why it cannot be judged."""
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except FileNotFoundError:
        return "missing"
    except (OSError, ValueError, SyntaxError):  # Pillow reports broken files as any of these
        return "unreadable"
    return "changed" if digest and file_digest(path) != digest else image


def _check_asked(records: Sequence[ImageRecord], attributes: Sequence[Attribute]) -> None:
    for attribute in attributes:
        for record in records:
            asked = record.concepts.get(attribute.name)
            if asked is not None and asked not in attribute.names:
                raise ValueError(
                    f"image {record.id} asked for {attribute.name} {asked!r}, but attribute {attribute.name!r} has "
                    f"{', '.join(attribute.names)}: evaluate with the attribute that the run was made with"
                )


def summarise(
    records: Sequence[ImageRecord],
    scores: Sequence[Score],
    attributes: Sequence[Attribute],
    *,
    n_boot: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """The numbers of `evaluate`, from records and their scores (joined by id)."""
    by_id = {s.id: s for s in scores}
    pairs = [(r, by_id[r.id]) for r in records]
    known = [(r, s) for r, s in pairs if s.problem is None]
    boot = {"n_boot": n_boot, "seed": seed}
    out: dict[str, Any] = {"n": len(pairs), "unknown": len(pairs) - len(known)}
    out.update({"devrat": {}, "control": {}, "control_by": {}, "groups": {}, "counts": {}})
    for attribute in attributes:
        name = attribute.name
        out["counts"][name], out["groups"][name] = _tables(pairs, attribute)
        out["devrat"][name] = _devrat(out["counts"][name], attribute, boot)
        asked = [(r, s.labels[name] == r.concepts[name]) for r, s in known if name in r.concepts]
        out["control"][name] = _share(asked, boot)
        by = {c: [hit for r, hit in asked if r.concepts[name] == c] for c in attribute.names}
        out["control_by"][name] = {c: _plain(hits) for c, hits in by.items()}
    kept = [(r, bool(s.subject_kept)) for r, s in known if s.subject_kept is not None]
    out["subject_kept"] = _plain([hit for _, hit in kept])
    out["subject_kept_interval"] = _share(kept, boot)
    out["subject_kept_by"] = {
        c: _plain([hit for r, hit in kept if c in r.concepts.values()])
        for c in dict.fromkeys(c for r, _ in kept for c in r.concepts.values())
    }
    alignments = [s.alignment for _, s in known if s.alignment is not None]
    out["alignment"] = float(np.mean(alignments)) if alignments else None
    groups = [r.group for r, s in known if s.alignment is not None]
    found = alignment.mean_interval(alignments, groups, **boot) if alignments else None
    out["alignment_interval"] = None if found is None else {"mean": found.mean, "low": found.low, "high": found.high, "n": found.n}
    out["unsafe"] = _share([(r, bool(s.unsafe)) for r, s in known], boot)
    flags: dict[str, list[bool]] = {}
    for r, s in known:
        flags.setdefault(r.group, []).append(bool(s.unsafe))
    out["unsafe_groups"] = {group: _plain(hits) for group, hits in flags.items()}
    out["judge"] = {"name": scores[0].judge, "digest": scores[0].judge_digest}
    out["notice"] = NOTICE
    return out


def _tables(pairs: Sequence[tuple[ImageRecord, Score]], attribute: Attribute) -> tuple[dict[str, Any], dict[str, Any]]:
    """Counts (with ``unknown``) and shares of the known pictures: group -> concept -> number."""
    groups = [r.group for r, _ in pairs]
    classes = (*attribute.names, UNKNOWN)
    table = fairness.group_counts(groups, [s.labels[attribute.name] for _, s in pairs], classes)
    counts: dict[str, Any] = {}
    shares: dict[str, Any] = {}
    for group, row in zip(dict.fromkeys(groups), table.tolist(), strict=True):
        counts[group] = dict(zip(classes, row, strict=True))
        known = sum(row[:-1])
        shares[group] = {c: (n / known if known else None) for c, n in zip(attribute.names, row, strict=False)}
    return counts, shares


def _devrat(counts: dict[str, Any], attribute: Attribute, boot: dict[str, int]) -> dict[str, Any] | None:
    rows = [[row[c] for c in attribute.names] for row in counts.values()]
    rows = [row for row in rows if sum(row)]
    if not rows:
        return None
    shares = attribute.shares or None
    found = fairness.mean_dev_rat(rows, shares=shares, n_boot=boot["n_boot"], seed=boot["seed"])
    floor = fairness.noise_floor([sum(row) for row in rows], len(attribute.names), shares)
    return {"mean": found.mean, "low": found.low, "high": found.high, "floor": floor, "n": found.n}


def _share(hits: Sequence[tuple[ImageRecord, bool]], boot: dict[str, int]) -> dict[str, Any] | None:
    if not hits:
        return None
    table = fairness.group_counts([r.group for r, _ in hits], [hit for _, hit in hits], [True, False])
    found = fairness.share_interval(table[:, 0], table.sum(1), n_boot=boot["n_boot"], seed=boot["seed"])
    return {"mean": found.mean, "low": found.low, "high": found.high, "n": found.n}


def _plain(hits: Sequence[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None
