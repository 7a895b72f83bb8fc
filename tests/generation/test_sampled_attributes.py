"""Even cells, drawn by one module of the cell or by one of every part; the same images are asked for the same cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command import last_json, respodiff
from respodiff.cli import generate as cli_generate
from respodiff.concepts.intersections import subgroups
from respodiff.data.run_folder import RunFolder
from respodiff.evaluation.evaluate import wanted_proportions
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate
from respodiff.generation.policies import assign, attribute_of_concept, missing_concepts, sampled_attributes

GENDER, TONE = ["woman", "man"], ["light", "medium", "dark"]
SIX = subgroups([GENDER, TONE])


@pytest.fixture
def parts(make_module: Callable[..., Any]) -> list[Any]:
    modules = [make_module(name, "gender", seed=i) for i, name in enumerate(GENDER)]
    return modules + [make_module(name, "tone", seed=10 + i) for i, name in enumerate(TONE)]


@pytest.fixture
def joint(make_module: Callable[..., Any]) -> list[Any]:
    return [make_module(name, "gender*tone", seed=20 + i) for i, name in enumerate(SIX)]


def drawn(pipe: Any, modules: list[Any], **config: Any) -> list[Any]:
    settings = GenerateConfig(**{"images": 12, "steps": 1, "guidance": 1.0, **config})
    return [record for record, _ in generate(pipe, ["a doctor", "a nurse"], modules, settings)]


@pytest.mark.parametrize("policy", ["exact", "random"])
def test_both_ways_ask_the_same_of_a_image_and_apply_what_was_drawn(
    tiny_pipe: Any, parts: list[Any], joint: list[Any], policy: str
) -> None:
    composed, together = drawn(tiny_pipe, parts, policy=policy), drawn(tiny_pipe, joint, policy=policy)
    assert [r.concepts for r in composed] == [r.concepts for r in together]
    digests = {m.name: m.digest for m in (*parts, *joint)}
    for one, both in zip(composed, together, strict=True):
        gender, tone = one.concepts["gender"], one.concepts["tone"]
        assert one.modules == [digests[gender], digests[tone]] and both.modules == [digests[f"{gender}*{tone}"]]
        assert both.asked("gender*tone") == f"{gender}*{tone}"
    if policy == "exact":
        for prompt in ("a doctor", "a nurse"):
            counts = Counter((r.concepts["gender"], r.concepts["tone"]) for r in together if r.prompt == prompt)
            assert set(counts.values()) == {2} and len(counts) == 6


def test_shares_of_cells_are_counts_of_cells_both_ways(tiny_pipe: Any, parts: list[Any], joint: list[Any]) -> None:
    # No product of margins: women dark, men light.
    proportions = {"gender*tone": {"woman*dark": 0.5, "man*light": 0.25, "man*dark": 0.25}}
    for modules in (parts, joint):
        for prompt in ("a doctor", "a nurse"):
            rows = [r for r in drawn(tiny_pipe, modules, target_proportions=proportions, images=8) if r.prompt == prompt]
            assert Counter(r.asked("gender*tone") for r in rows) == {"woman*dark": 4, "man*light": 2, "man*dark": 2}


def test_what_is_drawn_follows_from_what_is_loaded() -> None:
    both = {"gender": GENDER, "tone": TONE}
    assert sampled_attributes(both, None) == both and sampled_attributes({"gender*tone": SIX}, None) == both
    assert sampled_attributes({"gender*tone": SIX[:4]}, None) == {"gender*tone": SIX[:4]}, "a part of the cells is drawn as it is"
    assert sampled_attributes({"gender*tone": SIX}, {"gender*tone": {}}) == {"gender*tone": SIX}
    assert sampled_attributes(both | {"hat": ["bare"]}, {"gender*tone": {}}) == {"hat": ["bare"], "gender*tone": SIX}
    assert sampled_attributes(both, {"gender": {"woman": 1.0}}) == both
    with pytest.raises(ValueError, match=r"modules of 'tone' and of others both steer 'tone'"):
        sampled_attributes({"gender*tone": SIX, "tone": TONE}, None)
    with pytest.raises(ValueError, match=r"both steer 'gender'"):
        sampled_attributes({"gender": GENDER, "gender*tone": SIX[:4]}, None)
    with pytest.raises(ValueError, match=r"proportions are given for 'gender\*hat'"):
        assign(sampled_attributes(both, {"gender*hat": {}}), 4, proportions={"gender*hat": {}})


def test_names_of_shares_find_their_attribute() -> None:
    both = {"gender": GENDER, "tone": TONE}
    assert [attribute_of_concept(both, n) for n in ("man", "woman*dark", "man*woman", "man*odd", "odd")] == [
        "gender",
        "gender*tone",
        None,
        None,
        None,
    ]
    assert [attribute_of_concept({"gender*tone": SIX}, n) for n in ("man", "woman*dark")] == ["gender", "gender*tone"]


def test_what_is_missing_is_attribute_of_concept() -> None:
    assert missing_concepts({"gender*tone": SIX[:4]}, "gender*tone", SIX) == SIX[4:]
    assert missing_concepts({"gender": GENDER, "tone": TONE[:2]}, "gender*tone", SIX) == ["dark"]
    assert missing_concepts({"gender": ["man"]}, "gender", GENDER) == ["woman"]
    assert missing_concepts({"gender": GENDER, "tone": TONE}, "gender*tone", SIX) == []


def test_a_run_for_shares_of_cells_is_held_against_their_margins(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "r").create({"target_proportions": {"gender*tone": {"woman*dark": 0.25, "man*dark": 0.75}}})
    found = wanted_proportions(run)
    assert found["gender"] == {"woman": 0.25, "man": 0.75} and found["tone"] == {"dark": 1.0}
    other = RunFolder(tmp_path / "other").create({"target_proportions": {"tone*gender": {"dark*woman": 0.25, "dark*man": 0.75}}})
    assert wanted_proportions(other) == found, "in whatever order it was asked for"


# --- the command line ---


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, parts: list[Any], joint: list[Any], tmp_path: Path) -> Callable[..., Any]:
    """The shares that a command line would draw with modules by name; ``six`` are those of the cells."""
    files = {m.name: m.save(tmp_path / f"{m.name.replace('*', '-')}.safetensors") for m in (*parts, *joint)}
    (tmp_path / "own.toml").write_text(
        '[gender]\nconcepts = { woman = "a woman", man = "a man" }\nproportions = [0.25, 0.75]\n'
        '["gender*tone"]\nconcepts = { "woman*dark" = "x", "man*dark" = "y" }\nproportions = [0.4, 0.6]\n'
    )
    seen: list[Any] = []

    def draw(*given: Any) -> dict[str, Any]:
        seen.append(given[0].config.target_proportions)
        return {"images": 0, "skipped": 0, "images_per_second": 0.0}

    monkeypatch.setattr(cli_generate, "_draw", draw)

    def ask(names: list[str], *more: str) -> Any:
        modules = [part for name in names for part in ("--module", str(files[name]))]
        done = respodiff("generate", "--prompt", "a doctor", "--out", "nowhere", *modules, *more, "--json", cwd=tmp_path)
        return (last_json(done), seen[-1])[1] if done.returncode == 0 else done.stderr

    return ask


def test_an_attribute_that_must_be_even(asked: Callable[..., Any]) -> None:
    assert asked([*GENDER, *TONE], "--attribute", "gender*tone") is None, "even cells are what is drawn anyway"
    assert asked(SIX, "--attribute", "tone*gender") is None
    said = asked(SIX[:5], "--attribute", "gender*tone")
    assert "no --module has 'man*dark'" in said and "respodiff train --concept 'man*dark' --out man-dark.safetensors" in said
    assert "no --module has 'dark'" in asked([*GENDER, *TONE[:2]], "--attribute", "gender*tone")


@pytest.mark.slow
def test_shares_of_cells_from_flags_and_files(asked: Callable[..., Any]) -> None:
    cells_wanted = {"gender*tone": {"woman*dark": 0.5, "man*light": 0.5}}
    for names in ([*GENDER, *TONE], SIX):
        assert asked(names, "--target-proportions", "woman*dark=.5,man*light=.5") == cells_wanted
        assert asked(names, "--target-proportions", "woman=.3,man=.7") == {"gender": {"woman": 0.3, "man": 0.7}}
        assert asked(names, "--attribute", "gender*tone", "--concepts", "own.toml", "--target-proportions", "woman=.3,man=.7") == {
            "gender": {"woman": 0.3, "man": 0.7}
        }
        assert "'gender' and subgroups of 'gender*tone'" in asked(names, "--target-proportions", "woman=.5,woman*dark=.5")
    assert asked([*GENDER, "dark"], "--concepts", "own.toml") == {"gender": {"woman": 0.25, "man": 0.75}}
    assert asked(["woman*dark", "man*dark"], "--concepts", "own.toml") == {"gender*tone": {"woman*dark": 0.4, "man*dark": 0.6}}
