"""Judges: models that say what an automatic judge perceives in a generated image, never what a real person is.

`load` takes a source in words; what a judge needs is imported when that judge is loaded. Every judge has one method, `score`. A judge compares
images with texts (`TextJudge`), flags images (`FlagJudge`), turns them into vectors (`FeatureJudge`), or repeats labels made elsewhere (`TableJudge`).
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from respodiff.evaluation.judges.base import BATCH, EMBEDDED, NOTICE, UNKNOWN, Judge, JudgeInput, Score
from respodiff.evaluation.judges.clip import ClipJudge, judge_folder, load_judge, weights_digest
from respodiff.evaluation.judges.kinds import FeatureJudge, FlagJudge, TextJudge, flagged
from respodiff.evaluation.judges.table import TableJudge
from respodiff.evaluation.judges.texts import LOGIT_SCALE, Floats, LabellingTask, Vocabulary, choose, class_texts, image_text

SOURCES = "embedded, embedded-b, clip:DIR-OR-ID, DIR, nudenet, open-nsfw, q16:DIR, inception:FILE.safetensors, table:FILE.csv"
_HOMES = {
    "nudenet": ("nudenet", "NudeNet"),
    "open-nsfw": ("open_nsfw", "OpenNsfw"),
    "q16": ("q16", "Q16"),
    "inception": ("inception", "Inception"),
    "table": ("table", "TableJudge"),
}

__all__ = [
    "BATCH",
    "EMBEDDED",
    "LOGIT_SCALE",
    "NOTICE",
    "SOURCES",
    "UNKNOWN",
    "ClipJudge",
    "FeatureJudge",
    "FlagJudge",
    "Floats",
    "Judge",
    "JudgeInput",
    "LabellingTask",
    "Score",
    "TableJudge",
    "TextJudge",
    "Vocabulary",
    "choose",
    "class_texts",
    "flagged",
    "image_text",
    "judge_folder",
    "load",
    "load_judge",
    "weights_digest",
]


def load(source: str = "embedded", device: str = "cpu") -> Judge:
    """A judge by its source, one of `SOURCES`.

    Args:
        device: where a torch model runs. NudeNet and Open-NSFW run on the cpu, a table nowhere.

    Raises:
        ValueError: none of the allowed sources, or one that does not hold what it should.
        FileNotFoundError: no such file or folder.
        RuntimeError: the optional package of the judge is not installed; says how to.

    >>> load("embedded").name
    'embedded'
    """
    kind, colon, _ = source.partition(":")
    if kind in _HOMES and not (colon and kind in ("nudenet", "open-nsfw")):
        module, name = _HOMES[kind]
        judge: Judge = getattr(import_module(f"respodiff.evaluation.judges.{module}"), name).load(source, device)
        return judge
    if source in EMBEDDED or kind == "clip" or (not colon and "/" in source) or Path(source or "?").expanduser().is_dir():
        return ClipJudge.load(source, device)
    raise ValueError(f"judge is {source!r}; allowed: {SOURCES}; write clip:ID for a model of the hub")
