"""What travels between the tools, and what names it: a prompt, an image, and the seed of an image's noise."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field

from respodiff.concepts.intersections import asked


@dataclass(frozen=True)
class Prompt:
    """One text to draw.

    Attributes:
        id: stable name, such as ``occupations/doctor``.
        text: what the text-to-image model is given.
        suite: name of the suite it belongs to.
        group: what statistics are grouped by (an occupation, or "violence").
        subject: image name that a judge should find in the image, or None when there is none to find.
        categories: labels of a safety suite; one prompt may carry several ("hate", "violence").
        seed: the data set's own seed for this prompt, or None. guidance: its own guidance scale, or None.
        height, width: the size in pixels that the data set asks for, or None for the model's own.
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
    """One generated image and everything that was asked for.

    Attributes:
        concepts: attribute name -> name of the concept asked for; empty when none was. A cell of a product is kept as its parts.
        skipped_attributes: attribute name -> why the prompt was left as it is (`respodiff.generation.prompt_filter`); such an attribute is not among the concepts.
        margins: attribute -> how surely the noise leant to the concept by itself (`respodiff.generation.prediction.alignment_margin`), so that it was steered less; with
            ``safety_mode=leaning`` also safety module -> how surely it leant to what that takes out.
        modules: digests of the concept modules that were applied.
        scale: factor on the drawn modules (1.0 is as trained). safety_scale: on the safety modules.
        categories: as in `Prompt`.
        seed: seed of the whole run; the noise itself comes from `noise_seed`. own_seed: the data set's own seed where that was used.
        guidance: classifier-free guidance scale.
        digest: SHA-256 of the image file, filled in by `RunFolder.add`.
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

    def asked(self, attribute: str) -> str | None:
        """The concept of an attribute that was asked for, of a product ("gender*tone") the cell; None where none was."""
        return asked(self.concepts, attribute)


_FIELDS = frozenset(f.name for f in dataclasses.fields(ImageRecord))


def image_id(prompt_id: str, repeat: int) -> str:
    """File-system-safe id of the ``repeat``-th image of a prompt; distinct prompts never collide.

    >>> image_id("occupations/doctor", 3)
    'occupations_doctor-0003'
    """
    if repeat < 0:
        raise ValueError(f"repeat must be 0 or more, got {repeat}: count the images of one prompt from 0")
    safe = re.sub(r"[^a-z0-9-]+", "_", prompt_id)[:80]
    if not re.fullmatch(r"[a-z0-9-]{1,40}/[a-z0-9-]{1,39}", prompt_id):  # two such ids could meet: tell them apart
        safe += "-" + hashlib.blake2b(prompt_id.encode(), digest_size=4).hexdigest()
    return f"{safe}-{repeat:04d}"


def noise_seed(run_seed: int, prompt_id: str, repeat: int) -> int:
    """Seed in [0, 2**63) of one image's noise, from these three alone.

    Batch, rank, concept and method play no part: methods are compared on the same noise, and a run can be split.
    PyTorch's generator on the CPU reads the lower 32 bits alone, so that two of n images start from one noise with a probability of
    about n^2 / 2^33: 1 in 840 for 3 200 images, 1 in 10 for 30 000. Such a pair is one independent image fewer, no more.
    """
    key = json.dumps([run_seed, prompt_id, repeat]).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def parse_row(line: bytes) -> ImageRecord:
    """A line of a manifest; keys of newer versions are ignored. ValueError or TypeError for a line that is none."""
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got {type(row).__name__}")
    for key in ("id", "file", "prompt", "prompt_id"):
        if not isinstance(row.get(key), str):
            raise ValueError(f"{key} must be a text, got {row.get(key)!r}")
    concepts, categories = row.get("concepts", {}), row.get("categories", [])
    for key, value in (("concepts", concepts), ("skipped_attributes", row.get("skipped_attributes", {}))):
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            raise ValueError(f"{key} must be an object of texts, got {value!r}")
    if not isinstance(categories, list) or not all(isinstance(c, str) for c in categories):
        raise ValueError(f"categories must be a list of texts, got {categories!r}")
    for key in ("suite", "group", "method", "model", "digest"):
        if not isinstance(row.get(key, ""), str):
            raise ValueError(f"{key} must be a text, got {row[key]!r}")
    if not isinstance(row.get("subject"), str | None):
        raise ValueError(f"subject must be a text or null, got {row['subject']!r}")
    for key in ("repeat", "seed", "width", "height"):
        if not isinstance(row.get(key, 0), int):
            raise ValueError(f"{key} must be a whole number, got {row[key]!r}")
    row["categories"] = tuple(categories)
    return ImageRecord(**{key: value for key, value in row.items() if key in _FIELDS})
