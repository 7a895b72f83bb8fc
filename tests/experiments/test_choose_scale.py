"""The least scale that reaches a concept accuracy, on a tiny pipeline and with a judge whose answers are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from painted import WORDS, ColourJudge
from respodiff.concepts.concept import builtin
from respodiff.data.records import Prompt
from respodiff.data.run_folder import RunFolder
from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.experiments import choose_scale as module
from respodiff.experiments.choose_scale import SCALES, attribute_of, choose_scale
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate

pytestmark = pytest.mark.slow

PEOPLE = [Prompt(id=f"o/{g}", text=f"a {g}", group=g, subject=g) for g in ("cook", "guard")]
CONFIG = GenerateConfig(images=9, steps=1, seed=4, guidance=3.0)


@pytest.fixture
def gender(make_module: Callable[..., Any]) -> list[Any]:
    return [make_module(n, "gender", seed=i, scale=1.0) for i, n in enumerate(("woman", "man"))]


def test_the_least_scale_that_reaches_is_taken(tiny_pipe: Any, gender: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Any] = []

    def seen(run: Path, *_: Any, **__: Any) -> Any:
        runs.append(RunFolder(run).records())
        scale = runs[-1][0].scale
        problems = ("2 images blank",) if scale == SCALES[0] else ()
        return SimpleNamespace(concept_accuracy={"gender": Estimate(scale / 2, 0.0, 1.0, 8)}, problems=problems)

    monkeypatch.setattr(module, "evaluate", seen)
    with pytest.warns(UserWarning, match=rf"^scale {SCALES[0]:g}: 2 images blank$"):
        found = choose_scale(tiny_pipe, gender, PEOPLE, 0.45, CONFIG, ColourJudge(), vocabulary=WORDS)
    assert found.scale == 1.0 and found.accuracy.mean == 0.5
    assert [{r.scale for r in rows} for rows in runs] == [{s} for s in SCALES[:4]], "no scale above it is drawn"
    drawn = [[(r.id, r.concepts, r.seed) for r in rows] for rows in runs]
    assert all(rows == drawn[0] for rows in drawn) and {seed for _, _, seed in drawn[0]} == {CONFIG.seed + 1} and len(drawn[0]) == 8
    monkeypatch.setattr(module, "SCALES", (0.5, 1.0))
    with pytest.raises(ValueError, match=r"no scale up to 1 reaches 0\.9: the best is 0\.500 at 1"):
        choose_scale(tiny_pipe, gender, PEOPLE, 0.9, CONFIG, ColourJudge())


def test_accuracy_is_what_the_judge_says(tiny_pipe: Any, gender: list[Any]) -> None:
    found = choose_scale(tiny_pipe, gender, PEOPLE, 0.01, CONFIG, ColourJudge(), vocabulary=WORDS)
    drawn = list(generate(tiny_pipe, PEOPLE, gender, replace(CONFIG, images=4, seed=5, scale=found.scale)))
    red = [("man" if image.getpixel((0, 0))[0] > 127 else "woman") == record.concepts["gender"] for record, image in drawn]
    assert found.accuracy.mean == pytest.approx(sum(red) / len(red)) and found.accuracy.n == len(red) == 8
    with pytest.raises(ValueError, match="reach is 1"):
        choose_scale(tiny_pipe, gender, PEOPLE, 1.0, CONFIG, ColourJudge())


def test_what_a_judge_chooses_from(make_module: Callable[..., Any], gender: list[Any]) -> None:
    library = builtin()
    dark, hat = make_module("dark", "tone"), make_module("hat")
    assert attribute_of(gender, library) is library["gender"]
    assert attribute_of([dark], library).names == ("dark", "neutral"), "its target is not that of the shipped tone"
    assert [c.target for c in attribute_of([hat], library).concepts] == ["a hat", "a person"]
    for wrong in ([*gender, dark], [], [make_module("violence", kind="safety")], [make_module("x", "gender*tone")]):
        with pytest.raises(ValueError, match="module"):
            attribute_of(wrong, library)
