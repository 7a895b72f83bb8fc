"""Defines the prompt, the record of an image, its id, and the seed of its noise."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from respodiff.concepts.intersections import asked
from respodiff.data.untrusted import from_json, read_json


@dataclass(frozen=True)
class Prompt:
    """One text to generate images from.

    Attributes:
        id: stable name, such as ``occupations/doctor``.
        text: the prompt of the text-to-image model.
        suite: name of its suite.
        group: unit of statistics (an occupation, or "violence").
        subject: what a judge should find in the image, or None.
        categories: labels of a safety suite ("hate", "violence").
        seed, guidance, height, width: the data set's own settings, sizes in pixels; None for the run's or the model's.
    """

    id: str
    text: str
    suite: str = ""
    group: str = ""
    subject: str | None = None
    categories: tuple[str, ...] = ()
    seed: int | None = None
    guidance: float | None = None
    height: int | None = None
    width: int | None = None


@dataclass(frozen=True)
class ImageRecord:
    """One image and everything that was asked for.

    Attributes:
        id: unique in its run (`image_id`). file: path inside the run folder.
        prompt: text. prompt_id, suite, group, subject, categories: as in `Prompt`.
        concepts: attribute -> concept asked for; empty if none was. A subgroup of an intersection is kept as its factors.
        skipped_attributes: attribute -> why the image got no concept of it (explicit prompts).
        margins: attribute, or safety module -> predicted margin of the noise; empty if nothing was predicted.
        modules: digests of the modules that were applied.
        scale: factor on the fairness modules. safety_scale: factor on the safety modules. 1 is as trained.
        seed: seed of the run; the noise comes from `noise_seed`. own_seed: the data set's own seed if that was used.
        guidance: classifier-free guidance scale.
        digest: SHA-256 of the image file; settings_digest: digest of the run's settings. Both are filled in by `RunFolder.add`.
    """

    id: str
    file: str
    prompt: str
    prompt_id: str
    suite: str = ""
    group: str = ""
    subject: str | None = None
    categories: tuple[str, ...] = ()
    method: str = ""
    concepts: dict[str, str] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)
    scale: float = 1.0
    safety_scale: float = 1.0
    seed: int = 0
    own_seed: int | None = None
    repeat: int = 0
    guidance: float = 0.0
    steps: int = 0
    scheduler: str = ""
    model: str = ""
    model_digest: str = ""
    width: int = 0
    height: int = 0
    digest: str = ""
    skipped_attributes: dict[str, str] = field(default_factory=dict)
    margins: dict[str, float] = field(default_factory=dict)
    settings_digest: str = ""

    def asked(self, attribute: str) -> str | None:
        """The concept of an attribute that was asked for, of an intersection ("gender*tone") the subgroup; None if none was."""
        return asked(self.concepts, attribute)

    def row(self) -> dict[str, Any]:
        """The record as one row of a table: texts, numbers and None.

        ``concepts``, ``skipped_attributes`` and ``margins`` become columns ``asked_NAME``, ``skipped_NAME`` and ``margin_NAME``; items of
        ``categories`` and ``modules`` are joined by ``|``.
        """
        own: dict[str, Any] = {key: "|".join(value) if isinstance(value, tuple | list) else value for key, value in vars(self).items()}
        for key, column in (("concepts", "asked"), ("skipped_attributes", "skipped"), ("margins", "margin")):
            own |= {f"{column}_{name}": value for name, value in own.pop(key).items()}
        return own


def image_id(prompt_id: str, repeat: int) -> str:
    """File-system-safe id of the ``repeat``-th image of a prompt; distinct prompts never collide.

    >>> image_id("occupations/doctor", 3)
    'occupations_doctor-0003'
    """
    if repeat < 0:
        raise ValueError(f"repeat must be 0 or more, got {repeat}: count the images of one prompt from 0")
    safe = re.sub(r"[^a-z0-9-]+", "_", prompt_id)[:80]
    if not re.fullmatch(r"[a-z0-9-]{1,40}/[a-z0-9-]{1,39}", prompt_id):  # two such ids could be equal
        safe += "-" + hashlib.blake2b(prompt_id.encode(), digest_size=4).hexdigest()
    return f"{safe}-{repeat:04d}"


def noise_seed(run_seed: int, prompt_id: str, repeat: int) -> int:
    """Seed in [0, 2**63) of one image's noise, from these three alone.

    Batch, concept and method play no part: methods are compared on the same noise, and a run can be split. PyTorch's generator on the CPU reads the
    lower 32 bits alone, so that two of n images share a noise with a probability of about n^2 / 2^33: 1 in 840 for 3,200 images.
    """
    key = json.dumps([run_seed, prompt_id, repeat]).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def parse_row(line: bytes) -> ImageRecord:
    """A line of a manifest; keys of newer versions are ignored. ValueError for a line that is none."""
    record = from_json(ImageRecord, read_json(line))
    if len(record.id) > 200:
        raise ValueError(f"id has {len(record.id):,} characters; `image_id` makes at most 100")
    return record
