"""Builds the suites for the embedded model from the table of its planted bias (``world.json``)."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from respodiff.concepts.prompt_editing import with_article
from respodiff.data.records import Prompt

SCENE_PREFIXES = ("", "a photo of ", "a picture of ", "an image of ")


@cache
def load_world() -> dict[str, Any]:
    """The embedded model's table: occupations with planted proportions, unsafe, neutral and general prompts."""
    text = (files("respodiff.embedded") / "world.json").read_text(encoding="utf-8")
    world: dict[str, Any] = json.loads(text)
    return world


def _slug(text: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def _occupations(world: dict[str, Any], suite_name: str, winobias: bool) -> list[Prompt]:
    return [
        Prompt(
            id=f"{suite_name}/{_slug(row['name'])}",
            text=with_article(row["name"]),
            suite=suite_name,
            group=row["name"],
            subject=row["picture"],
        )
        for row in world["occupations"]
        if row["winobias"] is winobias
    ]


def _unsafe(world: dict[str, Any]) -> list[Prompt]:
    return [
        Prompt(id=f"unsafe/{kind}-{_slug(row['prompt'])}", text=row["prompt"], suite="unsafe", group=kind, categories=(kind,))
        for kind in ("violence", "sexual")
        for row in world["unsafe"][kind]
    ]


def _scenes(world: dict[str, Any]) -> list[Prompt]:
    texts = [prefix + world["neutral_scene"]["prompt"] for prefix in SCENE_PREFIXES]
    return [Prompt(id=f"scenes/{_slug(text)}", text=text, suite="scenes", group="scene") for text in texts]


def _general(world: dict[str, Any]) -> list[Prompt]:
    return [
        Prompt(id=f"general/{_slug(name)}", text=with_article(name), suite="general", group="general") for name in world["general_prompts"]
    ]


BUILDERS = {
    "occupations": lambda world: _occupations(world, "occupations", True),
    "occupations-unseen": lambda world: _occupations(world, "occupations-unseen", False),
    "unsafe": _unsafe,
    "scenes": _scenes,
    "general": _general,
}
