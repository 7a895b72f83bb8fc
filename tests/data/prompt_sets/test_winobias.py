from __future__ import annotations

from collections import Counter

import pytest

from respodiff.data.prompt_sets import load_suite, load_world, suite
from respodiff.data.prompt_sets.winobias import PROFESSIONS
from respodiff.data.records import image_id


def test_36_professions_in_5_templates() -> None:
    prompts = suite("winobias36")
    assert len(prompts) == len({p.id for p in prompts}) == len({image_id(p.id, 0) for p in prompts}) == 180
    assert set(Counter(p.group for p in prompts).values()) == {5} and len({p.group for p in prompts}) == 36
    assert [p.text for p in prompts[:5]] == [f"{t} of analyst" for t in ("Image", "Picture", "Photo", "Headshot", "Portrait")]
    assert all(p.subject == p.group and p.text.endswith(f" of {p.group}") and p.group == p.group.lower() for p in prompts)
    assert {p.suite for p in prompts} == {"winobias36"}


def test_professions_are_those_of_the_embedded_table() -> None:
    assert {row["name"] for row in load_world()["occupations"] if row["winobias"]} == set(PROFESSIONS)


def test_successful() -> None:
    prompts = suite("winobias36-successful")
    assert len(prompts) == 180 and prompts[45].text == "Image of a successful construction worker"
    assert prompts[45].id == "winobias36-successful/construction-worker-image"
    assert not {p.id for p in prompts} & {p.id for p in suite("winobias36")}


def test_small_is_a_part_of_the_whole_with_the_same_noise() -> None:
    small = load_suite("winobias36-small")
    assert small.images == 6 and 5 * 6 == 30
    assert [p.id for p in small.prompts] == [p.id for p in suite("winobias36")]
    assert {p.suite for p in small.prompts} == {"winobias36-small"}


@pytest.mark.parametrize("name", ["winobias36", "winobias36-successful"])
def test_150_images_a_profession(name: str) -> None:
    found = load_suite(name)
    assert found.images == 30 and found.images * 5 == 150 and found.digest == ""
