"""The prompt filter: words looked for, and images that must be those of the plain model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from command import last_json, respodiff
from method_tools import MAN, WOMAN
from respodiff.cli import generate as cli_generate
from respodiff.data.records import parse_row
from respodiff.data.run_folder import RunFolder
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate
from respodiff.generation.prompt_filter import filter_explicit, forms_of, listed, person_in, reasons, stated_in
from respodiff.methods.prompting import PromptAdapter
from respodiff.steering.module import ConceptModule
from respodiff.steering.serialization import Header
from respodiff.steering.steer import steer

Make = Callable[..., ConceptModule]
STATED, NOBODY, ASKED = "a male nurse", "a red car on a beach", "a nurse"


@pytest.fixture
def gender(make_module: Make) -> list[ConceptModule]:
    modules = [make_module("woman", "gender"), make_module("man", "gender", seed=1)]
    return [ConceptModule.of(m.ram, m.sam, Header(m.name, f"a {m.name}", "a person", attribute="gender")) for m in modules]


def quiet_draw(*args: Any, **kwargs: Any) -> dict[str, tuple[Any, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {record.id: (record, image) for record, image in generate(*args, **kwargs)}


# --- words ---


@pytest.mark.parametrize(
    ("attribute", "stating", "silent"),
    [
        (
            "gender",
            ["a male nurse", "a nurse who is a WOMAN", "a photo of a boy", "a doctor and her dog", "a non-binary cook"],
            ["a nurse"],
        ),
        ("gender", ["a gender-neutral chef", "two queens", "a businessman"], ["a manager", "a human", "a doctor from germany", "a shelf"]),
        ("tone", ["a dark-skinned doctor", "a doctor with dark skin", "a Black doctor"], ["a doctor in a black coat", "a dark room"]),
        ("age", ["an old farmer", "an elderly chef", "a young female judge"], ["a farmer in an old house", "a new teacher"]),
    ],
)
def test_words_that_state_an_attribute(attribute: str, stating: list[str], silent: list[str]) -> None:
    assert all(stated_in(text, listed(attribute)) for text in stating)
    assert not any(stated_in(text, listed(attribute)) for text in silent)


def test_words_for_people() -> None:
    assert all(person_in(t) for t in (ASKED, STATED, "two ceos", "a portrait of the families", "a beekeeper", "a woman's face"))
    assert not any(person_in(t) for t in (NOBODY, "a list of things", "a deer at dawn", "a snowman", "a scene"))


@pytest.mark.parametrize(
    ("rule", "people", "things"),
    [
        (
            "sports",
            ["a skateboarder jumps", "two snowboarders", "the umpire", "skate boarders", "a glassblower"],
            ["a dresser", "a keyboard"],
        ),
        ("noun after it", ["a passenger waits", "a rider and horse", "a man, dog and cat"], ["a passenger train", "the driver seat"]),
        (
            "animals",
            ["a baby in a crib", "a male in a hat"],
            ["a baby elephant", "an adult brown bear", "a mother and baby zebra", "a male lion"],
        ),
        ("rooms", ["the men in a room"], ["a men's restroom", "the ladies room"]),
        ("phrases", ["a fighter in a ring"], ["a silver jet fighter", "a cd player", "a street with no people", "a king size bed"]),
        ("of", ["a family of four", "a couple on a bench"], ["a family of ducks", "a couple of cakes"]),
        ("other words", ["a pitcher on the mound", "a batter at the plate"], ["a pitcher and a glass", "cake batter in a bowl"]),
        ("pronouns", ["she is skiing"], ["a dog and his bone"]),
        ("endings", ["a cellist", "a wakeboarder", "a goalkeeper"], ["a deer", "a tractor", "a screwdriver", "a beach ottoman"]),
    ],
)
def test_each_rule_for_people(rule: str, people: list[str], things: list[str]) -> None:
    assert not [text for text in people if not person_in(text)], rule
    assert not [text for text in things if person_in(text)], rule


def test_words_of_races_and_ages_that_state_neither() -> None:
    assert not any(stated_in(text, listed("tone")) for text in ("a man in a race", "a race car driver", "a skier on a descent"))
    assert not stated_in("a guard of an aged building", listed("age")) and stated_in("an aged guard", listed("age"))


def test_an_attribute_of_ones_own_is_stated_by_what_its_prompts_add() -> None:
    hat = forms_of("hat", [("a person with a hat", "a person"), ("a bald person", "a person")])
    assert [bool(stated_in(t, hat)) for t in ("a nurse with a hat", "a bald nurse", "a nurse", "a bald tyre")] == [True, True, False, False]
    three = forms_of("gender3", [("a woman", "a person"), ("a nonbinary person", "a person")])
    assert stated_in("a boy", three) and not stated_in("a nurse", three), "it knows the words of gender by its targets"


def test_the_reason_is_said() -> None:
    gender = [PromptAdapter(Header.of(c, method="prompt", site="")) for c in (WOMAN, MAN)]
    assert reasons([STATED, NOBODY, ASKED], gender) == [{"gender": "states gender: 'male'"}, {"gender": "no person"}, {}]


# --- images ---


def test_gated_images_are_those_of_the_plain_model(tiny_pipe: Any, gender: list[ConceptModule], tmp_path: Path) -> None:
    prompts = [STATED, ASKED, NOBODY]
    plain = quiet_draw(tiny_pipe, prompts, (), GenerateConfig(images=2, steps=2))
    steered = quiet_draw(tiny_pipe, prompts, gender, GenerateConfig(images=2, steps=2, skip_explicit_prompts=True), out=tmp_path)
    for key, (record, image) in steered.items():
        same = np.array_equal(np.asarray(image), np.asarray(plain[key][1]))
        left = record.prompt != ASKED
        assert same == left and (set(record.concepts) == set()) == left and (record.modules == []) == left
        assert (record.method == "plain") == left and set(record.skipped_attributes) == ({"gender"} if left else set())
    kept = {r.prompt: r.skipped_attributes for r in RunFolder(tmp_path).records()}
    assert kept == {STATED: {"gender": "states gender: 'male'"}, ASKED: {}, NOBODY: {"gender": "no person"}}


def test_each_attribute_has_a_gate_of_its_own(tiny_pipe: Any, gender: list[ConceptModule], make_module: Make) -> None:
    tones = [make_module(n, "tone", seed=5 + i) for i, n in enumerate(("light", "dark"))]
    violence = make_module("violence", kind="safety", seed=7)
    found = quiet_draw(
        tiny_pipe, [STATED, NOBODY], [*gender, *tones], GenerateConfig(images=2, steps=1, skip_explicit_prompts=True), safety=[violence]
    )
    for record, _ in found.values():
        assert set(record.concepts) == ({"tone"} if record.prompt == STATED else set())
        assert record.modules[-1] == violence.digest, "safety is for every prompt"
    assert sorted(r.concepts["tone"] for r, _ in found.values() if r.concepts) == ["dark", "light"], "still exact"


def test_modules_of_subgroups_are_left_out_as_a_whole(tiny_pipe: Any, make_module: Make) -> None:
    joint = [make_module(name, "gender*tone", seed=i) for i, name in enumerate(("woman*dark", "woman*light", "man*dark", "man*light"))]
    texts = ("a woman with dark skin", "a woman with light skin", "a man with dark skin", "a man with light skin")
    modules = [
        ConceptModule.of(m.ram, m.sam, Header(m.name, text, "a person", attribute="gender*tone"))
        for m, text in zip(joint, texts, strict=True)
    ]
    found = quiet_draw(tiny_pipe, [STATED, ASKED], modules, GenerateConfig(images=2, steps=1, skip_explicit_prompts=True))
    for record, _ in found.values():
        assert (set(record.concepts), set(record.skipped_attributes)) == (
            (set(), {"gender*tone"}) if record.prompt == STATED else ({"gender", "tone"}, set())
        )


def test_what_was_made_of_a_whole_attribute_is_gated_too(tiny_pipe: Any) -> None:
    prompt = PromptAdapter(replace(Header.of(WOMAN, method="prompt", site=""), kind="attribute", train={"switch": 0.0}))
    plain = quiet_draw(tiny_pipe, [STATED, ASKED], (), GenerateConfig(images=1, steps=1))
    found = quiet_draw(tiny_pipe, [STATED, ASKED], [prompt], GenerateConfig(images=1, steps=1, skip_explicit_prompts=True))
    same = {r.prompt: np.array_equal(np.asarray(i), np.asarray(plain[k][1])) for k, (r, i) in found.items()}
    assert same == {STATED: True, ASKED: False}


def test_the_gate_of_a_run_cannot_change_on_the_way(tiny_pipe: Any, gender: list[ConceptModule], tmp_path: Path) -> None:
    quiet_draw(tiny_pipe, [ASKED], gender, GenerateConfig(images=1, steps=1), out=tmp_path)
    with pytest.raises(ValueError, match="was made with skip_explicit_prompts=False, now asked for skip_explicit_prompts=True"):
        quiet_draw(tiny_pipe, [ASKED], gender, GenerateConfig(images=1, steps=1, skip_explicit_prompts=True), out=tmp_path)


def test_gated_for_direct_calls(tiny_pipe: Any, gender: list[ConceptModule], make_module: Make) -> None:
    woman, man = gender
    violence = make_module("violence", kind="safety", seed=7)
    prompts = [ASKED, STATED]
    assert filter_explicit(prompts, woman) == [woman, None]
    assert filter_explicit(prompts, [woman, man, [man, violence], None]) == [woman, man, (violence,), None]
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def draw() -> Any:
        return tiny_pipe(prompts, latents=latents, num_inference_steps=2, output_type="np").images

    plain = draw()
    with steer(tiny_pipe, filter_explicit(prompts, woman)):
        steered = draw()
        assert np.array_equal(steered[1], plain[1]) and not np.array_equal(steered[0], plain[0])
    with pytest.raises(ValueError, match="3 entries for 2 prompts; give one entry per image"):
        filter_explicit(prompts, [woman, man, None])
    with pytest.raises(ValueError, match="prompts is the text"):
        filter_explicit(ASKED, woman)


# --- rows and flags ---


def test_a_row_without_a_gate_has_none() -> None:
    row = b'{"id": "a", "file": "f", "prompt": "p", "prompt_id": "p"'
    assert parse_row(row + b"}").skipped_attributes == {} and parse_row(
        row + b', "skipped_attributes": {"gender": "x"}}'
    ).skipped_attributes == {"gender": "x"}
    with pytest.raises(ValueError, match="skipped_attributes must be an object, each value a text"):
        parse_row(row + b', "skipped_attributes": ["gender"]}')


def test_flags(tiny_pipe: Any, gender: list[ConceptModule], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_generate, "open_model", lambda *_: tiny_pipe)
    modules = [part for m in gender for part in ("--module", str(m.save(tmp_path / f"{m.name}.st")))]
    command = ["generate", "--prompt", STATED, "--prompt", ASKED, "--images", "1", "--steps", "1", "--json", *modules]
    for name, flags, left in (
        ("off", [], []),
        ("auto", ["--skip-explicit-prompts"], [STATED]),
    ):
        done = respodiff(*command, *flags, "--out", str(tmp_path / name))
        last_json(done)
        assert [r.prompt for r in RunFolder(tmp_path / name).records() if r.skipped_attributes] == left
