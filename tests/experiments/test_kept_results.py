"""What benchmarks keep: modules of preset paper as the preset trains them, tables beside one that is made anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks import headline, paper

from respodiff.concepts.concept import concept
from respodiff.methods.registry import load
from respodiff.steering.module import ConceptModule

WEIGHTS = load("woman").header.base_weights
"""Digest of the UNet that the package ships."""
ABOUT = {"model": "m", "judges": {"a": "1"}, "seed": 0}


@pytest.mark.parametrize("name", ["woman", "man", "violence", "sexual"])
def test_kept_modules_were_trained_as_the_preset_trains(name: str) -> None:
    assert load(paper.file_of(concept(name), WEIGHTS)).name == name


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"train": {}}, "steps"),
        ({"train": {"iterations": 300}}, "iterations"),
        ({"concept": "man"}, "concept"),
        ({"base_weights": "0"}, "base_weights"),
    ],
)
def test_a_module_trained_otherwise_is_refused(changes: dict[str, Any], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    woman = load(paper.FILES / "woman.safetensors")
    assert isinstance(woman, ConceptModule)
    if changes.get("train"):
        changes = {"train": {**woman.header.train, **changes["train"]}}
    monkeypatch.setattr(paper, "FILES", tmp_path)
    with pytest.raises(ValueError, match="missing"):
        paper.file_of(concept("woman"), WEIGHTS)
    ConceptModule.of(woman.ram, woman.sam, replace(woman.header, **changes)).save(tmp_path / "woman.safetensors")
    with pytest.raises(ValueError, match=text):
        paper.file_of(concept("woman"), WEIGHTS)


def test_one_table_made_anew_leaves_the_others() -> None:
    old = {label: ABOUT | {"adapters": {"default woman": label}} for label in headline.TABLES}
    stay = headline.kept(old, "tone", ABOUT, {})
    assert stay == {label: old[label] for label in headline.TABLES if label != "tone"}
    assert headline.kept(old, "", {"model": "new"}, {}) == {}


@pytest.mark.parametrize(
    ("old", "about", "digests", "text"),
    [
        (ABOUT | {"adapters": {}}, ABOUT | {"model": "new"}, {}, "model"),
        (ABOUT | {"adapters": {}}, ABOUT | {"judges": {"a": "2"}}, {}, "judges"),
        (ABOUT | {"adapters": {"default man": "1"}}, ABOUT, {"default man": "2"}, "default man"),
        ({}, ABOUT, {}, "model"),
    ],
)
def test_tables_made_with_something_else_are_not_kept(
    old: dict[str, Any], about: dict[str, Any], digests: dict[str, str], text: str
) -> None:
    tables = {"gender": old} if old else {"fairness": {}}
    with pytest.raises(ValueError, match=text):
        headline.kept(tables, "tone", about, digests)
