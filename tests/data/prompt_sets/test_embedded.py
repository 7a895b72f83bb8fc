from __future__ import annotations

import hashlib
import re
from collections import Counter

import pytest

from respodiff.cli.generate import SUITE_HELP
from respodiff.concepts.prompt_editing import with_article
from respodiff.data.prompt_sets import SUITES, load_suite, load_world, suite
from respodiff.data.records import image_id

IDS = {
    "occupations": "146b8f048e8b",
    "occupations-unseen": "b7cf1e6f2590",
    "unsafe": "33f6ac283ae1",
    "scenes": "779180cd02f9",
    "general": "b7faf45eb211",
    "winobias36": "6d53ebcbf938",
    "winobias36-successful": "24650d1e9639",
}


@pytest.mark.parametrize(
    ("name", "size"), [("occupations", 36), ("occupations-unseen", 49), ("unsafe", 30), ("scenes", 4), ("general", 50)]
)
def test_sizes_and_unique_ids(name: str, size: int) -> None:
    prompts = suite(name)
    assert len(prompts) == len({p.id for p in prompts}) == len({image_id(p.id, 0) for p in prompts}) == size
    assert all(p.suite == name and p.id.startswith(f"{name}/") and p.group and p.text for p in prompts)
    assert prompts == suite(name)


def test_occupations() -> None:
    by_id = {p.id: p for p in suite("occupations")}
    doctor = by_id["occupations/doctor"]
    assert (doctor.text, doctor.group, doctor.subject) == ("a doctor", "doctor", "health worker")
    assert by_id["occupations/analyst"].text == "an analyst"
    assert by_id["occupations/construction-worker"].text == "a construction worker"
    assert by_id["occupations/ceo"].text == "a ceo"


def test_seen_and_unseen_occupations_are_apart() -> None:
    seen, unseen = ({p.group for p in suite(name)} for name in ("occupations", "occupations-unseen"))
    assert not seen & unseen
    assert len(seen | unseen) == len(load_world()["occupations"])


def test_unsafe_is_grouped_by_kind_and_has_no_subject() -> None:
    prompts = suite("unsafe")
    assert Counter(p.group for p in prompts) == {"violence": 20, "sexual": 10}
    assert {p.subject for p in prompts} == {None}


def test_scenes_are_neutral() -> None:
    texts = [p.text for p in suite("scenes")]
    assert texts == ["a scene", "a photo of a scene", "a picture of a scene", "an image of a scene"]


def test_own_world() -> None:
    world = {"occupations": [{"name": "Ice Seller", "picture": "cook", "winobias": True}]}
    (only,) = suite("occupations", world)
    assert (only.id, only.text, only.group) == ("occupations/ice-seller", "an ice seller", "Ice Seller")


def test_unknown_suite_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"one of occupations, .*i2p.*got 'winobias'"):
        suite("winobias")
    assert "occupations" in SUITES


def test_ids_are_the_same_in_every_version() -> None:
    """Noise comes from the id: a change here breaks every old run."""
    digests = {}
    for name in ("occupations", "occupations-unseen", "unsafe", "scenes", "general", "winobias36", "winobias36-successful"):
        digests[name] = hashlib.sha256("\n".join(p.id for p in suite(name)).encode()).hexdigest()[:12]
    assert digests == IDS


def test_suites_of_the_embedded_model_need_no_file() -> None:
    found = load_suite("occupations")
    assert (found.name, found.images, found.digest, found.prompts) == ("occupations", None, "", suite("occupations"))
    with pytest.raises(ValueError, match=r"path is 'x.csv', but suite 'scenes' needs no file; allowed with: i2p, coco30k, i2p-700, coco1k"):
        suite("scenes", path="x.csv")


def test_help_of_the_command_lists_every_suite() -> None:
    assert all(re.search(rf"\b{name}[,;. ]", SUITE_HELP) for name in SUITES)


def test_articles_and_the_neutral_prompt() -> None:
    assert with_article("Ice seller") == "an ice seller" and load_world()["neutral"]["prompt"] == "a person"
