"""Reads I2P, "inappropriate image prompts": 4,703 prompts for which text-to-image models make unsafe images that nobody asked for.

The texts are offensive and not shipped.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from respodiff.data.prompt_sets.download import Source
from respodiff.data.records import Prompt
from respodiff.data.tables import Row, number, numbered, rank, read_table, whole_number

CATEGORIES = ("hate", "harassment", "violence", "self-harm", "sexual", "shocking", "illegal activity")
PER_CATEGORY = 100


def read(path: Path) -> list[Prompt]:
    """Prompts of a file in the published layout, in its order. Rows without a prompt are prompts without a text.

    Columns ``prompt`` and ``categories`` (comma separated) are needed. Seed, guidance, width and height come from ``evaluation_seed``,
    ``evaluation_guidance``, ``width``, ``height``, or from ``sd_seed``, ``sd_guidance_scale``, ``sd_image_width``, ``sd_image_height``.
    An id comes from text and seed: a prompt has one id, and thus one noise, in every layout, order and part of the data set. The group is
    the text, which some rows repeat: intervals resample groups, and seven categories would be too few.

    Raises:
        ValueError: unreadable, a column missing, or a number that is none.
    """
    found = [_prompt(path, line, row) for line, row in read_table(path, ("prompt", "categories"))]
    ids = numbered([p.id for p in found], [(p.categories, str(p.guidance), str(p.width), str(p.height)) for p in found])
    return [dataclasses.replace(p, id=name) for p, name in zip(found, ids, strict=True)]


def _prompt(path: Path, line: int, row: Row) -> Prompt:
    seed = whole_number(path, line, row, "evaluation_seed", "sd_seed")
    labels = {" ".join(label.lower().split()) for label in row["categories"].split(",")} - {""}
    text = " ".join(row["prompt"].split())
    return Prompt(
        id=f"i2p/{rank('i2p', text, '' if seed is None else seed)}",
        text=row["prompt"].strip(),
        suite="i2p",
        group=f"i2p/{rank('i2p', text)}",
        categories=(*(c for c in CATEGORIES if c in labels), *sorted(labels.difference(CATEGORIES))),
        seed=seed,
        guidance=number(path, line, row, "evaluation_guidance", "sd_guidance_scale"),
        height=whole_number(path, line, row, "height", "sd_image_height"),
        width=whole_number(path, line, row, "width", "sd_image_width"),
    )


def preset(prompts: Sequence[Prompt]) -> list[Prompt]:
    """``i2p-700``: the prompts of `choose`, category by category; a warning names categories that have fewer."""
    chosen = choose(prompts)
    if short := [f"{c} {len(taken)}" for c, taken in chosen.items() if len(taken) < PER_CATEGORY]:
        warnings.warn(f"i2p-700 wants {PER_CATEGORY} prompts of each category, the file has only: {', '.join(short)}", stacklevel=2)
    return [p for taken in chosen.values() for p in taken]


def choose(prompts: Sequence[Prompt]) -> Mapping[str, list[Prompt]]:
    """`PER_CATEGORY` prompts of each of `CATEGORIES`, every prompt for one category at most.

    Categories in their order take the prompts of their label that are first by the hash of their id. A category without free prompts makes another
    one exchange a prompt (bipartite matching), so that it gets fewer only where no choice could fill all. The order of ``prompts`` plays no part.
    """
    ranked = sorted(prompts, key=lambda p: (rank("i2p-700", p.id), p.id))
    carries = {c: [p for p in ranked if c in p.categories] for c in CATEGORIES}
    owner: dict[str, str] = {}

    def take(category: str, asked: set[str]) -> bool:
        asked.add(category)
        free = (p for p in carries[category] if p.id not in owner)
        given = (p for p in carries[category] if owner[p.id] not in asked and take(owner[p.id], asked))
        if p := next(free, None) or next(given, None):
            owner[p.id] = category
        return p is not None

    for category in CATEGORIES:
        for _ in range(PER_CATEGORY):
            if not take(category, set()):
                break
    return {c: [p for p in carries[c] if owner.get(p.id) == c] for c in CATEGORIES}


SOURCE = Source(
    "I2P",
    ("unsafe-prompts4703.csv", "i2p_benchmark.csv", "i2p.csv"),
    size=1_376_625,
    rows=4703,
    labels=dict(zip(CATEGORIES, (231, 824, 756, 801, 931, 856, 727), strict=True)),
    images=5,
    read=read,
)
