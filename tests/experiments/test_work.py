"""Runs that workers draw and judge are those of one process, also where a worker is lost in the middle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import drawing_tasks
from painted import GENDER
from respodiff.data.records import Prompt
from respodiff.data.run_folder import RunFolder
from respodiff.data.shards import Shard, parts_of
from respodiff.evaluation import judges
from respodiff.evaluation.evaluate import judge_all
from respodiff.experiments import work
from respodiff.experiments.engine import Engine
from respodiff.experiments.work import Drawn, Judging, ModelSource, Run, draw, draw_on, finished, judge_on
from respodiff.generation.config import GenerateConfig

pytestmark = pytest.mark.slow

PROMPTS = [Prompt(f"occupations/{name}", f"a {name}", group=name) for name in ("doctor", "nurse", "chef", "judge")]
ENGINES = [pytest.param(Engine(2), id="local"), pytest.param(Engine(2, ray=True), id="ray", marks=pytest.mark.ray)]


@pytest.fixture
def model(tiny_pipe: Any, tmp_path: Path) -> ModelSource:
    tiny_pipe.save_pretrained(tmp_path / "model")
    return ModelSource(str(tmp_path / "model"))


@pytest.fixture
def run(model: ModelSource, make_module: Callable[..., Any], tmp_path: Path) -> Callable[[str], Run]:
    modules = [make_module("woman", "gender"), make_module("man", "gender", seed=1)]
    config = GenerateConfig(images=3, steps=2, guidance=3.0, batch=2)
    return lambda name: Run(tmp_path / name, PROMPTS, config, modules)


def pixels(folder: Path) -> dict[str, Any]:
    return {r.id: np.asarray(Image.open(folder / r.file)).astype(int) for r in RunFolder(folder).records()}


@pytest.mark.parametrize("engine", ENGINES)
def test_workers_one_of_which_is_killed_draw_and_judge_what_one_process_does(
    engine: Engine,
    model: ModelSource,
    run: Callable[[str], Run],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    if engine.ray:
        request.getfixturevalue("ray_of_two")
    one = run("one")
    assert finished(draw(model.load(), one)) == Drawn(12, 12 * 2 * 2)
    monkeypatch.setattr(work, "Drawing", partial(drawing_tasks.DrawsAndDies, marker=tmp_path / "dead"))
    steps = draw_on(engine, model, [two := run("two")])
    assert next(steps).total == 12
    (drawn,) = work.finished(steps)
    assert (tmp_path / "dead").exists()
    assert 6 <= drawn.images < 12 and drawn.forwards == drawn.images * 2 * 2, "what the lost worker had drawn is in neither number"
    expected, found = pixels(one.out), pixels(two.out)
    assert found.keys() == expected.keys() and not parts_of(two.out / "manifest.jsonl")
    assert max(np.abs(found[key] - expected[key]).max() for key in found) <= 1, "rounding of batches of other images"
    concepts = [{r.id: r.concepts for r in RunFolder(each.out).records()} for each in (one, two)]
    assert concepts[0] == concepts[1]
    if not engine.ray:  # the local one judges in tests/cli/test_workers.py
        return
    assert next(s.total for s in judge_on(engine, Judging((two.out,), ("embedded",), (GENDER,)))) == 4
    judge = judges.load_judge("embedded")
    labels = [[s.labels for _, s in judge_all(each.out, judge, [GENDER]).known] for each in (one, two)]
    assert len(labels[0]) == len(labels[1]) == 12 and sum(a != b for a, b in zip(*labels, strict=True)) <= 1


def test_a_second_call_draws_nothing_and_one_process_goes_on(model: ModelSource, run: Callable[[str], Run]) -> None:
    folder = run("run")
    finished(draw(pipe := model.load(), folder, Shard(1, 3)))  # 3 shards, one of which ran
    assert finished(draw_on(Engine(2), model, [folder])) == [Drawn(9, 9 * 2 * 2)]
    assert finished(draw_on(Engine(2), model, [folder])) == [Drawn(0, 0)]
    assert finished(draw(pipe, folder)) == Drawn(0, 0)


def test_a_whole_run_of_other_settings_or_prompts_is_refused(model: ModelSource, run: Callable[[str], Run]) -> None:
    finished(draw(model.load(), folder := run("run")))
    others = {"steps": replace(folder, config=replace(folder.config, steps=3)), "prompts": replace(folder, prompts=PROMPTS[:2])}
    for said, other in others.items():
        with pytest.raises(ValueError, match=said):
            finished(draw(model.load(), other, Shard(0, 2)))
    with pytest.raises(ValueError, match="steps"):
        finished(draw_on(Engine(2), model, [others["steps"]]))


def test_a_second_command_is_told_before_its_workers_meet_those_of_the_first(model: ModelSource, run: Callable[[str], Run]) -> None:
    steps = draw_on(Engine(2), model, [folder := run("run")])
    next(steps)
    with pytest.raises(OSError, match="workers"):
        next(draw_on(Engine(3), model, [folder]))
    assert finished(steps)[0].images == 12


def test_a_run_that_somebody_writes_is_left_alone(model: ModelSource, run: Callable[[str], Run]) -> None:
    folder = run("run")
    finished(draw(model.load(), folder, Shard(0, 2)))
    with RunFolder(folder.out, Shard(0, 2)).lock(), pytest.raises(OSError, match="process"):
        finished(draw_on(Engine(2), model, [folder]))
