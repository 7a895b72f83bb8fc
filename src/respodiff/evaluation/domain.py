"""Tells where the embedded judges know nothing: they were trained on emoji on white, and label anything else as confidently.

Neither their margins nor the distances of their vectors from those of training images tell photographs or noise from emoji. White at
the border does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

from respodiff.data.run_folder import RunFolder
from respodiff.data.untrusted import confined
from respodiff.evaluation.judges import EMBEDDED, sources
from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.evaluation.metrics.shares import wilson
from respodiff.evaluation.score_files import open_image
from respodiff.evaluation.scored_run import ScoredRun

LOOKED_AT, MOST_OTHERS = 64, 0.1
"""Images of a run that are looked at, and the share of images not on white that a run of the embedded model may have."""
WHITE, LEAST_WHITE = 224, 0.2
"""Least level of white (of 255), and least share of it at the border of an image on white."""


def is_embedded(settings: Mapping[str, Any]) -> bool:
    """Whether a run's settings say that the embedded model made it: by the digest of its weights, or by name where there is no digest."""
    card = json.loads((files("respodiff") / "embedded" / "card.json").read_text(encoding="utf-8"))
    digest = settings.get("model_digest")
    return bool(digest == card["model"]) if digest else settings.get("model") == "embedded"


def default_judge(run: RunFolder) -> str:
    """``embedded`` for images of the embedded model; ValueError for others, which need a judge that is named."""
    return judge_of(is_embedded(run.settings()), f"images of {run.path}", f"respodiff evaluate {run.path}")


def judge_of(embedded: bool, what: str, command: str) -> str:
    """``embedded``; ValueError unless the images are the embedded model's."""
    if not embedded:
        raise ValueError(
            f"judge is not given, and {what} are not the embedded model's, which is all that the judge embedded knows; allowed: {sources()}; "
            f"name one: {command} --judge clip:openai/clip-vit-large-patch14"
        )
    return "embedded"


def on_white(image: Image.Image) -> bool:
    """Whether an RGB image stands on white: at least `LEAST_WHITE` of its border, a 32nd of its side wide."""
    least = np.asarray(image.resize((32, 32), Image.Resampling.BOX)).min(2)
    border = np.concatenate([least[0], least[-1], least[1:-1, 0], least[1:-1, -1]])
    return bool((border >= WHITE).mean() >= LEAST_WHITE)


def out_of_domain(run: ScoredRun) -> tuple[Estimate | None, str]:
    """Share of images that the embedded judges know nothing of, by up to `LOOKED_AT` of them, and a line where that is worth one.

    No share without an embedded judge, or without an image. No line for images of the embedded model unless more than `MOST_OTHERS` are
    not on white.
    """
    names = [h.judge for h in run.headers.values() if h.judge in EMBEDDED]
    found = []
    for record, _ in run.known[:: -(-len(run.known) // LOOKED_AT) or 1] if names else ():
        with suppress(OSError, ValueError):
            if image := open_image(confined(run.folder, record.file)):
                found.append(not on_white(image))
    if not found:
        return None, ""
    share = wilson(sum(found), len(found))
    if is_embedded(run.settings) and share.mean <= MOST_OTHERS:
        return share, ""
    known = f"judge {names[0]} knows images of the embedded model alone, which stand on white"
    return share, f"out of domain: {known}; {sum(found)} of {len(found)} looked at do not, and what it says of others means nothing"
