"""Shards of one run: together they hold what one process would have made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from respodiff.data.records import ImageRecord, Prompt
from respodiff.data.run_folder import RunFolder
from respodiff.data.shards import WHOLE, Shard
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate

PROMPTS = [Prompt(f"occupations/{name}", f"a {name}", group=name) for name in ("doctor", "nurse", "chef", "judge", "guard")]


@pytest.fixture
def run(tiny_pipe: Any, make_module: Callable[..., Any], tmp_path: Path) -> Callable[..., dict[str, ImageRecord]]:
    """Generates a run by shards into a folder: image id -> record without its place in a batch."""
    modules = [make_module("woman", "gender"), make_module("man", "gender", seed=1)]

    def make(name: str, *shards: Shard, **changes: Any) -> dict[str, ImageRecord]:
        config = GenerateConfig(**({"images": 3, "steps": 2, "guidance": 3.0, "batch": 1} | changes))
        for shard in shards:
            list(generate(tiny_pipe, PROMPTS, modules, config, out=tmp_path / name, shard=shard))
        return {r.id: r for r in RunFolder(tmp_path / name).records()}

    return make


@pytest.mark.parametrize("changes", [{}, {"policy": "random"}, {"assign_at": 0.5}])
def test_the_union_of_shards_is_the_run_of_one_process(run: Callable[..., Any], changes: dict[str, Any]) -> None:
    one = run("one", WHOLE, **changes)
    two = run("two", Shard(1, 2), Shard(0, 2), **changes)
    assert len(one) == 15 and two == one, "concepts, margins and the bytes of every image"


def test_a_shard_makes_all_images_of_its_prompts(run: Callable[..., Any]) -> None:
    made = run("part", Shard(1, 2))
    assert {r.group for r in made.values()} == {"nurse", "judge"} and len(made) == 6
    assert run("part", Shard(0, 2)).items() > made.items()


def test_more_shards_than_prompts(run: Callable[..., Any]) -> None:
    assert len(run("many", *(Shard(i, 8) for i in range(8)))) == 15


def test_one_process_draws_what_shards_have_not(run: Callable[..., Any]) -> None:
    made = run("run", Shard(0, 2))
    assert run("run", WHOLE) == run("one", WHOLE) and made.items() < run("run", WHOLE).items()


def test_a_shard_with_other_settings_is_refused(run: Callable[..., Any], tmp_path: Path) -> None:
    run("run", Shard(0, 2))
    with pytest.raises(ValueError, match="steps"):
        run("run", Shard(1, 2), steps=3)
    assert len(RunFolder(tmp_path / "run").records()) == 9
