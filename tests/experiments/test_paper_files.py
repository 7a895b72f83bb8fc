"""The kept modules of preset paper: trained as the preset trains, or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks import paper

from respodiff.concepts.concept import concept
from respodiff.methods.registry import load
from respodiff.steering.module import ConceptModule


@pytest.mark.parametrize("name", ["woman", "man", "light", "medium", "dark", "violence", "sexual"])
def test_kept_modules_have_the_settings_of_the_preset(name: str) -> None:
    file = paper.file_of(concept(name))
    assert file is not None and load(file).name == name


def test_a_module_of_other_settings_is_refused_and_a_missing_one_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    woman = load(paper.FILES / "woman.safetensors")
    other = replace(woman.header, train={**woman.header.train, "iterations": 300})
    monkeypatch.setattr(paper, "FILES", tmp_path)
    assert paper.file_of(concept("woman")) is None
    ConceptModule.of(woman.ram, woman.sam, other).save(tmp_path / "woman.safetensors")
    with pytest.raises(ValueError, match="iterations"):
        paper.file_of(concept("woman"))
