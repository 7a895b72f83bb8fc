"""Run folders whose images say by the colour of their first pixel what is in them, and a judge that reads it: no model, no luck."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from respodiff.concepts.concept import Attribute, Concept
from respodiff.data.records import ImageRecord, image_id
from respodiff.data.run_folder import RunFolder
from respodiff.evaluation.judges import ClipJudge, Vocabulary

GENDER = Attribute("gender", (Concept("woman", "a woman"), Concept("man", "a man")))
WORDS = Vocabulary(subjects=("cook", "guard"), unsafe=("bomb",), safe=("tulip",))
TEXTS = ["a woman", "a man", "a cook", "a guard", "a tulip", "a bomb"]

Painted = tuple[str, str | None, tuple[int, int, int]]
"""Group, concept asked for, colour: red is a man, green a guard, blue a bomb."""


class ColourJudge(ClipJudge):
    """Reads the answers off the colour; every text has an axis of its own."""

    def __init__(self) -> None:
        self.name, self.digest, self.version = "colour", "0123456789abcdef", "1"
        self.seen = 0

    def embed_images(self, images: Sequence[Any]) -> Any:
        self.seen += len(images)
        out = np.zeros((len(images), len(TEXTS)), np.float32)
        for row, image in zip(out, images, strict=True):
            for channel, value in enumerate(image.getpixel((0, 0))):
                row[2 * channel + (value > 127)] = 3**-0.5
        return out

    def embed_texts(self, texts: Sequence[str]) -> Any:
        return np.array([[float(text == axis) for axis in TEXTS] for text in texts], np.float32)


def paint(folder: Path, rows: Sequence[Painted], *, settings: dict[str, Any] | None = None, **record: Any) -> RunFolder:
    """One image a row; its id and repeat follow from its place."""
    run = RunFolder(folder).create(settings or {})
    for i, (group, asked, colour) in enumerate(rows):
        fields: dict[str, Any] = {"suite": "occupations", "subject": group, **record}
        made = ImageRecord(
            id=image_id(f"occupations/{group}", i),
            file="",
            prompt=f"a {group}",
            prompt_id=f"occupations/{group}",
            group=group,
            concepts={"gender": asked} if asked else {},
            repeat=i,
            **fields,
        )
        run.add(made, coloured(tuple(255 * c for c in colour)))
    return run


def coloured(colour: tuple[int, ...], size: tuple[int, int] = (4, 4)) -> Image.Image:
    """An image of one colour but for its last pixel, as one without is blank."""
    image = Image.new("RGB", size, colour)
    image.putpixel((size[0] - 1, size[1] - 1), (128, 128, 128))
    return image
