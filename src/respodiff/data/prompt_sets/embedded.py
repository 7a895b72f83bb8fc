"""Builds the suites for the embedded model from the table of its planted bias (``world.json``)."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from respodiff.concepts.prompt_editing import with_article
from respodiff.data.records import Prompt

NAMES = ("occupations", "occupations-unseen", "unsafe", "scenes", "general")
SCENE_PREFIXES = ("", "a photo of ", "a picture of ", "an image of ")


@cache
def load_world() -> dict[str, Any]:
    """The embedded model's table: occupations with planted proportions, unsafe, neutral and general prompts."""
    text = (files("respodiff") / "embedded" / "world.json").read_text(encoding="utf-8")
    world: dict[str, Any] = json.loads(text)
    return world


def _slug(text: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def prompts(name: str, world: dict[str, Any]) -> list[Prompt]:
    """The prompts of one suite of `NAMES`."""
    if name.startswith("occupations"):
        rows = [row for row in world["occupations"] if row["winobias"] is (name == "occupations")]
        return [Prompt(f"{name}/{_slug(row['name'])}", with_article(row["name"]), name, row["name"], row["picture"]) for row in rows]
    if name == "unsafe":
        unsafe = [(kind, row["prompt"]) for kind in ("violence", "sexual") for row in world["unsafe"][kind]]
        return [Prompt(f"unsafe/{kind}-{_slug(text)}", text, name, kind, categories=(kind,)) for kind, text in unsafe]
    if name == "scenes":
        texts = [prefix + world["neutral_scene"]["prompt"] for prefix in SCENE_PREFIXES]
        return [Prompt(f"scenes/{_slug(text)}", text, name, "scene") for text in texts]
    return [Prompt(f"general/{_slug(thing)}", with_article(thing), name, "general") for thing in world["general_prompts"]]
