"""Provides the suites: prompts for the embedded model, WinoBias professions, I2P, COCO captions, and what other packages add.

I2P and COCO are not shipped but read from a file or downloaded (`respodiff.data.prompt_sets.download`). A preset is a part of a suite. Its prompts
keep their ids, so that the noise of an image is the same in both.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from respodiff import _plugins
from respodiff.concepts.prompt_editing import with_article
from respodiff.data.prompt_sets import coco, i2p, winobias
from respodiff.data.prompt_sets.download import locate
from respodiff.data.records import Prompt
from respodiff.data.run_folder import file_digest

__all__ = ["SUITES", "Suite", "load_suite", "load_world", "names", "suite"]

SUITES = (
    *("occupations", "occupations-unseen", "unsafe", "scenes", "general"),
    *("winobias36", "winobias36-successful", "winobias36-small"),
    *("i2p", "i2p-700", "coco30k", "coco1k"),
)
"""Names of the built-in suites; docs/data.md says what each is. The first five are for the embedded model."""
SCENE_PREFIXES = ("", "a photo of ", "a picture of ", "an image of ")

_SOURCES = {"i2p": i2p.SOURCE, "coco30k": coco.SOURCE}
_PRESETS = {"i2p-700": ("i2p", i2p.preset), "coco1k": ("coco30k", coco.preset)}


@dataclass(frozen=True)
class Suite:
    """The prompts of a suite and what travels with them.

    Attributes:
        name: one of `names`. prompts: in a fixed order, with stable ids.
        images: images per prompt that the published protocol asks for, or None where there is none.
        digest: SHA-256 of the file the prompts were read from, "" for suites that need no file.
    """

    name: str
    prompts: list[Prompt]
    images: int | None = None
    digest: str = ""


def names() -> tuple[str, ...]:
    """Names of all suites: the built-in ones, then those of other packages."""
    return (*SUITES, *_plugins.names("suites", SUITES))


def needs_file(name: str) -> bool:
    """Whether a suite is read from a file that is not shipped."""
    return name in _SOURCES or name in _PRESETS


def load_suite(name: str, world: dict[str, Any] | None = None, *, path: str | Path | None = None) -> Suite:
    """A suite. A file that differs from the published one is used, with a warning that says how.

    Args:
        name: one of `names`.
        world: for the suites of the embedded model, a table like its own; None takes that.
        path: for I2P and COCO, a file to read; None as for `respodiff.data.prompt_sets.download.locate`.

    Raises:
        OSError: the file is not here and cannot be downloaded.
        ValueError: the name is unknown, the file cannot be read or lacks columns, or the suite of another package cannot be used.
    """
    if name not in names():
        raise ValueError(f"suite must be one of {', '.join(names())}, got {name!r}")
    if needs_file(name):
        return _from_file(name, path)
    if path is not None:
        allowed = ", ".join([*_SOURCES, *_PRESETS])
        raise ValueError(f"path is {os.fspath(path)!r}, but suite {name!r} needs no file; allowed with: {allowed}; leave it out")
    if name not in SUITES:
        return Suite(name, list(_added(name)))
    if name.startswith("winobias36"):
        return Suite(name, winobias.prompts(name), 6 if name == "winobias36-small" else 30)
    return Suite(name, _for_embedded(name, load_world() if world is None else world))


def suite(name: str, world: dict[str, Any] | None = None, *, path: str | Path | None = None) -> list[Prompt]:
    """The prompts of one suite; arguments and errors as for `load_suite`.

    >>> suite("occupations")[0].text
    'an attendant'
    >>> suite("winobias36")[0].text
    'Image of analyst'
    """
    return load_suite(name, world, path=path).prompts


@cache
def _added(name: str) -> tuple[Prompt, ...]:
    """The prompts of a suite of another package."""
    found = tuple(_plugins.load("suites", name, callable, "a function that returns a list of Prompt")())
    if not found or not all(isinstance(p, Prompt) for p in found):
        raise ValueError(f"suite {name!r}, which another package adds, gave {found[:1]}; needed: a list of Prompt")
    return tuple(replace(p, suite=name) for p in found)


@cache
def load_world() -> dict[str, Any]:
    """The table of the bias planted in the embedded model: occupations with proportions, unsafe, neutral and general prompts."""
    world: dict[str, Any] = json.loads((files("respodiff") / "embedded" / "world.json").read_text(encoding="utf-8"))
    return world


def _for_embedded(name: str, world: dict[str, Any]) -> list[Prompt]:
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


def _slug(text: str) -> str:
    return re.sub(r"[\W_]+", "-", text.lower()).strip("-")


def _from_file(name: str, path: str | Path | None) -> Suite:
    home, preset = _PRESETS.get(name, (name, None))
    source = _SOURCES[home]
    file = locate(source, path)
    rows = source.read(file)
    if differences := source.differences(rows):
        warnings.warn(f"{file.name} is not the published {source.title}: {'; '.join(differences)}; used as it is", stacklevel=4)
    prompts = [p for p in rows if p.text]
    if len(prompts) < len(rows):
        warnings.warn(f"{file.name}: {len(rows) - len(prompts)} rows without a prompt are left out", stacklevel=4)
    if preset:
        prompts = [replace(p, suite=name) for p in preset(prompts)]
    if not prompts:
        raise ValueError(f"{file.name} holds no prompt; give the {source.title} file, or a part of it")
    return Suite(name, prompts, source.images, file_digest(file))
