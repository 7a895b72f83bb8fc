"""Judges: models that say what an automatic judge perceives in a generated image, never what a real person is.

`load_judge` takes a source in words; optional packages are imported when their judge is loaded. Every judge has one method, `score`. A judge
compares images with texts (`ClipJudge`), answers closed questions about them (`AnswerJudge`), flags them (`FlagJudge`), turns them into
vectors (`FeatureJudge`), or repeats labels made elsewhere (`TableJudge`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from respodiff import _plugins
from respodiff._device import chosen_device
from respodiff.concepts.concept import Concept
from respodiff.evaluation.judges.base import NOTICE, UNKNOWN, AnswerJudge, FeatureJudge, FlagJudge, Judge, JudgeInput, Score
from respodiff.evaluation.judges.clip import EMBEDDED, ClipJudge, judge_folder
from respodiff.evaluation.judges.detectors import NudeNet, OpenNsfw
from respodiff.evaluation.judges.hf import HfJudge
from respodiff.evaluation.judges.inception import Inception
from respodiff.evaluation.judges.q16 import Q16
from respodiff.evaluation.judges.siglip import SiglipJudge
from respodiff.evaluation.judges.table import TableJudge
from respodiff.evaluation.judges.texts import LabellingTask, Vocabulary, choose, class_texts
from respodiff.evaluation.judges.vlm import VlmJudge

SOURCES = (
    "embedded, embedded-b, clip:DIR-OR-ID, clip:ID@REVISION, DIR, siglip:DIR-OR-ID, hf:DIR-OR-ID@FILE.toml, vlm:DIR-OR-ID, nudenet, open-nsfw, "
    "q16:DIR, inception:FILE, table:FILE.csv"
)
_BY_SOURCE: dict[str, type[SiglipJudge | HfJudge | VlmJudge | NudeNet | OpenNsfw | Q16 | Inception | TableJudge]] = {
    "siglip": SiglipJudge,
    "hf": HfJudge,
    "vlm": VlmJudge,
    "nudenet": NudeNet,
    "open-nsfw": OpenNsfw,
    "q16": Q16,
    "inception": Inception,
    "table": TableJudge,
}

__all__ = [
    "EMBEDDED",
    "NOTICE",
    "UNKNOWN",
    "AnswerJudge",
    "ClipJudge",
    "FeatureJudge",
    "FlagJudge",
    "Judge",
    "JudgeInput",
    "LabellingTask",
    "Score",
    "TableJudge",
    "Vocabulary",
    "choose",
    "class_texts",
    "classifier",
    "judge_folder",
    "load_judge",
    "sources",
]


def sources() -> str:
    """All sources that `load_judge` takes, in words: `SOURCES`, and the judges of other packages."""
    return ", ".join([SOURCES, *_added()])


def _added() -> tuple[str, ...]:
    return _plugins.names("judges", (*EMBEDDED, "clip", *_BY_SOURCE))


def load_judge(source: str = "embedded", device: str = "cpu") -> Judge:
    """A judge, as `respodiff.evaluate` takes it.

    Args:
        source: What ``--judge`` takes; `sources` lists it.
        device: Where a torch model runs. NudeNet and Open-NSFW run on the cpu.

    Raises:
        ValueError: none of the allowed sources, or one that does not hold what it should.
        FileNotFoundError: no such file or folder.
        RuntimeError: the optional package of the judge is not installed; says how to.

    >>> load_judge("embedded").name
    'embedded'
    """
    kind, colon, _ = source.partition(":")
    if kind in _BY_SOURCE and not (colon and kind in ("nudenet", "open-nsfw")):
        return _BY_SOURCE[kind].load(source, chosen_device(device) if kind in ("siglip", "hf", "vlm") else device)
    if source in EMBEDDED or kind == "clip" or (not colon and "/" in source) or Path(source or "?").expanduser().is_dir():
        return ClipJudge.load(source, device)
    if kind in _added():
        made: Judge = _plugins.load("judges", kind, lambda j: hasattr(j, "load"), "a class with load(source, device)").load(
            source, chosen_device(device)
        )
        return made
    raise ValueError(f"judge is {source!r}; allowed: {sources()}; write clip:ID for a model of the hub")


def classifier(source: str, chosen: Concept, device: str) -> Callable[[Any], Any] | None:
    """A judge as a differentiable classifier of a concept's alternatives: images (N, 3, H, W) in [0, 1] -> logits (N, K); None for "".

    Images are resized as they are (bicubic), without the crop that a judge makes of images that are not square. Errors as `load_judge`;
    ValueError for a judge that is none of images, or that knows no such concept.
    """
    if not source:
        return None
    judge = load_judge(source, device)
    if not isinstance(judge, ClipJudge | HfJudge):
        raise ValueError(
            f"judge is {source!r}, which no method can learn from; allowed: embedded, clip:DIR-OR-ID, siglip:DIR-OR-ID, hf:DIR"
        )
    return judge.classifier(chosen)
