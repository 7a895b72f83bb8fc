"""The search for a scale on curves that are known, against fits made elsewhere; then with images of a tiny pipeline."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from command import last_json, respodiff
from painted import WORDS, ColourJudge
from respodiff.cli import scale as cli_strength
from respodiff.concepts.concept import builtin
from respodiff.data.run_folder import Prompt, RunFolder
from respodiff.evaluation import judges
from respodiff.experiments.strength import Point, choose, crossing, isotonic
from respodiff.experiments.tuning import attribute_of, tune
from respodiff.generation.config import GenerateConfig

GROUPS = tuple(f"g{i % 12}" for i in range(48))
Curve = Callable[[float], float]


def drawn(curve: Curve, seen: list[float] | None = None) -> Callable[[float], Point]:
    """48 images of 12 groups, of which the curve's share shows what was asked for, spread over the groups."""

    def measure(scale: float) -> Point:
        if seen is not None:
            seen.append(scale)
        return Point(scale, GROUPS, tuple(i < round(48 * curve(scale)) for i in range(48)))

    return measure


def rising(s: float) -> float:
    return min(1.0, 0.5 + 0.4 * s)


def breaking(s: float) -> float:
    return 0.5 + 0.5 * s if s <= 1 else 1 - 0.6 * (s - 1)


# --- the search ---


def test_isotonic_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        values, weights = rng.random(9), rng.integers(1, 50, 9)
        expected = IsotonicRegression().fit_transform(np.arange(9), values, sample_weight=weights)
        assert isotonic(values.tolist(), weights.tolist()) == pytest.approx(expected.tolist())
    assert isotonic([], []) == []


def test_where_a_fit_reaches() -> None:
    assert crossing([0, 1, 2], [0.5, 0.9, 1.0], 0.95) == pytest.approx(1.5)
    assert crossing([0, 1], [0.5, 0.9], 0.95) == math.inf and crossing([0, 1], [0.96, 1.0], 0.95) == 0


def test_a_rising_curve_is_halved_down_to_the_least_scale_that_reaches() -> None:
    seen: list[float] = []
    found = choose(drawn(rising, seen), 0.95)
    assert seen == [0.0, 2.0, 1.0, 1.5, 1.25, 1.125, 1.0625]  # 46 of 48 at 1.125, 44 of 48 at 1.0625
    assert found.scale == 1.125 and found.concept_accuracy.mean == pytest.approx(46 / 48) and found.concept_accuracy.n == 48
    assert [p.scale for p in found.points] == sorted(seen) and list(found.fit) == pytest.approx([rising_of(s) for s in sorted(seen)])
    assert found.low <= 1.125 and found.high is not None and found.high >= 1.125


def rising_of(s: float) -> float:
    return round(48 * rising(s)) / 48


def test_bisection_stops_when_scales_are_close() -> None:
    seen: list[float] = []
    found = choose(drawn(rising, seen), 0.95, rounds=30)
    assert found.scale == 1.125 and seen[-1] == 1.09375 and len(seen) == 8, "1.125 - 1.09375 is below .05"


def test_a_curve_that_falls_again_is_searched_on_its_rising_part() -> None:
    found = choose(drawn(breaking), 0.95)
    assert found.scale == 0.9375 and found.fit[-1] is None, "46 of 48 at .9375; at 2 images are broken"
    assert all(f is not None for p, f in zip(found.points, found.fit, strict=True) if p.scale <= 1)


def test_chance_that_makes_a_point_fall_is_smoothed_away() -> None:
    dip = {0.0: 24, 2.0: 48, 1.0: 45, 1.5: 47, 1.25: 44, 1.375: 46}
    found = choose(lambda s: Point(s, GROUPS, tuple(i < dip[s] for i in range(48))), 0.95, rounds=5)
    assert [p.scale for p in found.points] == sorted(dip) and found.scale == 1.375
    assert list(found.fit) == pytest.approx([24 / 48, 89 / 96, 89 / 96, 46 / 48, 47 / 48, 1.0])


def test_what_no_scale_reaches_is_refused_with_the_best() -> None:
    seen: list[float] = []
    with pytest.raises(
        ValueError, match=r"no scale up to 2 reaches concept accuracy 0\.95: the best is 0\.896 at 2 \(n = 48\); train longer"
    ):
        choose(drawn(lambda s: 0.5 + 0.2 * s, seen), 0.95)
    assert seen == [0.0, 2.0, 1.0, 0.5, 1.5]


def test_what_is_reached_without_steering_needs_no_scale() -> None:
    assert choose(drawn(lambda _s: 1.0), 0.95).scale == 0.0


def test_the_interval_is_of_the_crossing() -> None:
    alike = choose(lambda s: Point(s, GROUPS, (rising_of(s) >= 0.95,) * 48), 0.95)
    assert alike.low == alike.high == alike.scale or alike.low < alike.scale, "groups that agree leave nothing to resample"
    rng = np.random.default_rng(1)
    level = {g: rng.normal(1.0, 0.5) for g in set(GROUPS)}
    wide = choose(lambda s: Point(s, GROUPS, tuple(level[g] <= s for g in GROUPS)), 0.7, most=4.0)
    assert wide.high is not None and wide.low < sorted(level.values())[8] < wide.high, "9 of 12 groups are there"
    alone = choose(lambda s: Point(s, ("g",) * 48, tuple(i < round(48 * rising(s)) for i in range(48))), 0.95)
    assert alone.low < alone.scale, "pictures of a lone group are resampled instead"


@pytest.mark.parametrize("settings", [{"reach": 1.0}, {"reach": 0.0}, {"most": 0.0}, {"most": math.inf}, {"rounds": 0}])
def test_settings_that_make_no_sense(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="allowed: reach between 0 and 1, most above 0, rounds 1 or more"):
        choose(drawn(rising), **settings)


def test_nothing_judged_is_said() -> None:
    with pytest.raises(ValueError, match="no image that the judge could label"):
        choose(lambda s: Point(s, (), ()), 0.95)


# --- images ---


@pytest.fixture
def gender(make_module: Callable[..., Any]) -> list[Any]:
    return [make_module(n, "gender", seed=i, scale=1.0) for i, n in enumerate(("woman", "man"))]


PEOPLE = [Prompt(id=f"o/{g}", text=f"a {g}", group=g, subject=g) for g in ("cook", "guard")]


def test_every_scale_is_drawn_from_the_same_noise(tiny_pipe: Any, gender: list[Any], tmp_path: Path) -> None:
    told: list[float] = []
    with pytest.raises(ValueError, match=r"no scale up to 2 reaches concept accuracy 0\.999"):
        tune(
            tiny_pipe,
            gender,
            PEOPLE,
            ColourJudge(),
            GenerateConfig(images=2, steps=1),
            out=tmp_path,
            vocabulary=WORDS,
            told=told.append,
            reach=0.999,
        )
    assert told == [0.0, 2.0, 1.0, 0.5, 1.5]
    runs = {s: RunFolder(tmp_path / f"scale-{s:g}").records() for s in told}
    assert {s: {r.scale for r in rows} for s, rows in runs.items()} == {s: {s} for s in told}
    assert all([(r.id, r.concepts, r.seed) for r in rows] == [(r.id, r.concepts, r.seed) for r in runs[0.0]] for rows in runs.values())
    found = tune(tiny_pipe, gender, PEOPLE, ColourJudge(), GenerateConfig(images=2, steps=1), out=tmp_path, vocabulary=WORDS, reach=0.01)
    assert found.scale == 0.0 and found.points[0].drift is not None and found.points[0].drift["mean"] == pytest.approx(0.0, abs=1e-6)
    assert found.points[0].kept is not None and found.points[0].kept["n"] == 4


def test_what_a_judge_chooses_from(make_module: Callable[..., Any], gender: list[Any]) -> None:
    library = builtin()
    dark, hat = make_module("dark", "tone"), make_module("hat")
    assert attribute_of(gender, library) is library["gender"]
    assert attribute_of([dark], library).names == ("dark", "neutral"), "its target is not that of the shipped tone"
    assert [c.target for c in attribute_of([hat], library).concepts] == ["a hat", "a person"]
    with pytest.raises(ValueError, match="modules are of gender, tone; give the alternatives of one attribute"):
        attribute_of([*gender, dark], library)
    with pytest.raises(ValueError, match="module 'violence' is no alternative"):
        attribute_of([make_module("violence", kind="safety")], library)


def test_the_command(tiny_pipe: Any, gender: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_strength, "open_model", lambda *_: tiny_pipe)
    monkeypatch.setattr(judges, "load", lambda *_: ColourJudge())
    files = [str(m.save(tmp_path / f"{m.name}.st")) for m in gender]
    command = ["scale", *files, "--prompt", "a cook", "--prompt", "a guard", "--images", "2", "--steps", "1"]
    found = last_json(respodiff(*command, "--reach", "0.01", "--json"))
    assert found["scale"] == 0.0 and [p["scale"] for p in found["points"]] == [0.0] and found["reach"] == 0.01
    done = respodiff(*command, "--reach", "0.01")
    assert done.stdout.splitlines()[0].split() == ["scale", "concept_accuracy", "fit", "kept", "drift"]
    assert "scale 0 reaches concept accuracy 0.01: " in done.stdout
    done = respodiff(*command, "--reach", "0.999", "--rounds", "1")
    assert done.returncode == 2 and done.stderr.splitlines()[-1].count("no scale up to 2 reaches concept accuracy 0.999: the best is") == 1
    done = respodiff("scale", files[0], "--model", "somewhere")
    assert done.returncode == 2 and "no prompts; give --prompt TEXT" in done.stderr and done.stderr.count("\n") == 1
