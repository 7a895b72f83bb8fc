"""Exact counts over prompts, groups and the run: deviations from the quotas, bias, and what counts do not depend on."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmarks.counts import GENDER, TONE, deviations, targets

from respodiff.data.prompt_sets import suite
from respodiff.data.records import Prompt
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate
from respodiff.generation.policies import Target, assign, assign_run, prompt_seed


@pytest.mark.parametrize("n", [1, 2, 5, 12])
@pytest.mark.parametrize("names", [GENDER, {**GENDER, **TONE}], ids=" ".join)
@pytest.mark.parametrize("sizes", [(5,), (1, 2, 3, 5)])
def test_every_prompt_group_and_run_is_within_one_image_of_its_target(names: dict[str, list[str]], n: int, sizes: tuple[int, ...]) -> None:
    wanted = targets(sizes)
    for seed in range(3):
        found = deviations(names, n, wanted, assign_run(names, n, "exact", wanted, seed))
        assert max(found.values()) < 1 - 1e-9, found
        assert max(d for (_, size), d in found.items() if size == 0) < 1e-9, "n images of every prompt"


def test_one_image_a_prompt_follows_the_shares_over_a_run() -> None:
    wanted = {p.id: Target(p.group, {"gender": {"woman": 0.3, "man": 0.7}}) for p in suite("winobias36")}
    rows = assign_run(GENDER, 1, "exact", wanted)
    assert Counter(row["gender"] for (row,) in rows.values()) == {"woman": 54, "man": 126}
    for group in {t.group for t in wanted.values()}:
        assert sum(rows[p][0]["gender"] == "woman" for p, t in wanted.items() if t.group == group) in (1, 2)


def test_three_attributes_are_within_two_images_and_their_concepts_in_the_run_within_one() -> None:
    names = {**GENDER, **TONE, "age": ["young", "old"]}
    wanted = targets((5,))
    found = deviations(names, 2, wanted, assign_run(names, 2, "exact", wanted))
    assert found["run", 1] < 1 and max(found.values()) < 2


@pytest.mark.slow
def test_over_many_seeds_every_count_is_its_quota() -> None:
    names, wanted, seeds = (
        {**GENDER, **TONE},
        {p: t for p, t in targets((1, 2, 3, 5)).items() if t.group in ("group 0", "group 1", "group 2", "group 3")},
        800,
    )
    total: Counter[Any] = Counter()
    for seed in range(seeds):
        for p, rows in assign_run(names, 1, "exact", wanted, seed).items():
            total.update((key, *row.values()) for row in rows for key in (p, ""))
    quotas: Counter[Any] = Counter()
    for p, t in wanted.items():
        for (gender, share), tone in itertools.product(t.proportions["gender"].items(), TONE["tone"]):
            quotas[p, gender, tone] += share / 3
            quotas["", gender, tone] += share / 3
    for key, quota in quotas.items():
        odd = quota % 1  # how often the odd image is there
        assert total[key] / seeds == pytest.approx(quota, abs=4 * math.sqrt(odd * (1 - odd) / seeds) + 1e-9), key


def test_counts_depend_on_the_set_of_prompts_and_not_on_their_order() -> None:
    wanted = targets((1, 2, 3, 5))
    rows = assign_run(GENDER, 1, "exact", wanted, seed=4)
    assert rows == assign_run(GENDER, 1, "exact", dict(reversed(wanted.items())), seed=4)
    assert rows != assign_run(GENDER, 1, "exact", wanted, seed=5)


def test_whole_quotas_keep_the_order_of_earlier_versions() -> None:
    for names, order in (
        (GENDER, "wmmwmwmwwwmm"),
        (TONE, "dmldmdlmllmd"),
        ({**GENDER, **TONE}, "mmmdmlwmmdwlmlwdmmwlwdwm"),
    ):
        prompt = "occupations/doctor"
        rows = assign_run(names, 12, "exact", {prompt: Target("doctor"), "other": Target("other")})[prompt]
        assert "".join(c[0] for row in rows for c in row.values()) == order
        assert rows == assign(names, 12, seed=prompt_seed(0, prompt))


def test_skipped_attributes_are_counted_over_the_prompts_that_are_left() -> None:
    wanted = {f"p{i}": Target("g", {"gender": {"woman": 0.25, "man": 0.75}}, ["gender"] if i % 2 else []) for i in range(16)}
    rows = assign_run({**GENDER, **TONE}, 1, "exact", wanted)
    assert Counter(row.get("gender") for (row,) in rows.values()) == {None: 8, "woman": 2, "man": 6}
    assert all("tone" in row for (row,) in rows.values())
    assert all("gender" not in row for row in assign_run(GENDER, 2, "random", wanted)["p1"])


def test_a_captions_set_takes_seconds() -> None:
    wanted = {str(i): Target("captions") for i in range(3000)}
    rows = assign_run({**GENDER, **TONE}, 1, "exact", wanted)
    assert set(Counter(tuple(row.values()) for (row,) in rows.values()).values()) == {500}


# --- runs ---


@pytest.fixture
def gender(make_module: Callable[..., Any]) -> list[Any]:
    return [make_module("woman", "gender"), make_module("man", "gender", seed=1)]


def concepts(pipe: Any, prompts: list[Prompt], modules: list[Any], out: Path | None = None, take: int | None = None, **more: Any) -> Any:
    config = GenerateConfig(**{"images": 1, "steps": 1, "batch": 1, "target_proportions": {"gender": {"woman": 0.25, "man": 0.75}}, **more})
    found = itertools.islice(generate(pipe, prompts, modules, config, out=out), take)
    return {record.id: record.concepts for record, _ in found}


def test_a_resumed_run_has_the_counts_of_one_that_was_not_stopped(tiny_pipe: Any, gender: list[Any], tmp_path: Path) -> None:
    prompts = [Prompt(id=f"p{i}", text=f"a nurse {i}", group="nurse") for i in range(8)]
    whole = concepts(tiny_pipe, prompts, gender)
    assert Counter(c["gender"] for c in whole.values()) == {"woman": 2, "man": 6}
    first = concepts(tiny_pipe, prompts, gender, tmp_path / "run", take=3)
    assert first | concepts(tiny_pipe, prompts[::-1], gender, tmp_path / "run") == whole


@pytest.mark.parametrize("assign_at", [0.0, 0.5])
def test_images_that_got_other_concepts_are_not_counted_in(tiny_pipe: Any, gender: list[Any], tmp_path: Path, assign_at: float) -> None:
    prompts = [Prompt(id=f"p{i}", text=f"a nurse {i}", group="nurse") for i in range(8)]
    wanted, more = concepts(tiny_pipe, prompts, gender), {"assign_at": assign_at}
    parts = (prompts[:k] for k in range(1, 8))
    changed = next(part for part in parts if not concepts(tiny_pipe, part, gender).items() <= wanted.items())
    concepts(tiny_pipe, changed, gender, tmp_path / "run", **more)
    with pytest.raises(ValueError, match="got other concepts"):
        concepts(tiny_pipe, prompts, gender, tmp_path / "run", **more)
    whole = more | {"target_proportions": None, "images": 2}
    concepts(tiny_pipe, changed, gender, tmp_path / "whole", **whole)
    assert concepts(tiny_pipe, prompts, gender, tmp_path / "whole", **whole), "whole quotas of a prompt are met with any other prompts"
