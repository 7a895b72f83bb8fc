"""Products of attributes: names, prompts and shares of their cells."""

from __future__ import annotations

from pathlib import Path

import pytest

from respodiff.concepts.concept import Attribute, Concept, attribute, concept, intersection_of, load_concepts
from respodiff.concepts.intersections import alternatives, asked, is_intersection, marginals, split, subgroups
from respodiff.concepts.prompt_editing import composed


@pytest.mark.parametrize(
    ("targets", "neutral", "prompt"),
    [
        (["a woman", "a person with dark skin"], "a person", "a woman with dark skin"),
        (["a person with dark skin", "a woman"], "a person", "a woman with dark skin"),
        (["an old person", "a man", "a person with light skin"], "a person", "an old man with light skin"),
        (["a young person", "a person with dark skin"], "a person", "a young person with dark skin"),
        (["a Asian-race person", "a woman"], "a person", "an Asian-race woman"),
        (["someone old", "someone in a hat"], "someone", "someone old in a hat"),
        (["a chef in a personal apron", "a chef with a hat"], "a chef", "a chef in a personal apron with a hat"),
        (["a personal friend", "an old person"], "a person", "an old personal friend"),
    ],
)
def test_a_cell_has_one_prompt_that_says_all_of_its_parts(targets: list[str], neutral: str, prompt: str) -> None:
    assert composed(targets, neutral) == prompt


def test_the_product_of_gender_and_tone() -> None:
    whole = attribute("gender*tone")
    assert whole.names == ("woman*light", "woman*medium", "woman*dark", "man*light", "man*medium", "man*dark")
    assert whole.proportions == ()
    cell = whole.concepts[2]
    assert (cell.target, cell.neutral, cell.attribute, cell.kind) == ("a woman with dark skin", "a person", "gender*tone", "fairness")
    assert cell.opposites == tuple(c.target for c in whole.concepts if c is not cell) and len(cell.opposites) == 5


def test_a_product_and_its_cells_have_one_name_each() -> None:
    assert attribute("tone*gender") == attribute("gender*tone") == intersection_of([attribute("tone"), attribute("gender")])
    assert concept("dark*woman") == concept("woman*dark") == attribute("gender*tone").concepts[2]
    assert concept("old*man").attribute == "age*gender"
    assert len(attribute("tone*age*gender").names) == 12 and attribute("tone*age*gender").name == "age*gender*tone"


def test_shares_of_a_product_are_products_of_shares(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(
        '[a]\nconcepts = { x = "an x person", y = "a y person" }\nproportions = [0.2, 0.8]\n'
        '[b]\nconcepts = { u = "a person u", v = "a person v" }\n'
    )
    whole = attribute("a*b", load_concepts(file))
    assert whole.proportions == pytest.approx((0.1, 0.1, 0.4, 0.4)) and whole.names == ("x*u", "x*v", "y*u", "y*v")


def test_prompts_of_cells_of_ones_own_go_first(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(
        '[gender]\nconcepts = { woman = "a woman", man = "a man" }\n[coat]\nconcepts = { red = "a red person", blue = "a blue person" }\n'
        '["coat*gender"]\nconcepts = { "red*woman" = "a lady in red", "red*man" = "a sir in red" }\nproportions = [0.7, 0.3]\n'
    )
    library = load_concepts(file)
    assert concept("woman*red", library).target == "a lady in red" and attribute("gender*coat", library).proportions == (0.7, 0.3)
    with pytest.raises(ValueError, match=r"concept 'blue\*man' is unknown; known: red\*woman, red\*man"):
        concept("blue*man", library)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("woman*wombat", "concept 'wombat' is unknown"),
        ("woman*man", r"intersection 'gender\*gender' has an attribute twice"),
        ("woman*violence", "attribute 'violence' is unknown"),
    ],
)
def test_cells_that_are_none(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        concept(name)


def test_products_that_cannot_be_made() -> None:
    one = Attribute("one", (Concept("a", "a cat"), Concept("b", "a dog")))
    two = Attribute("two", (Concept("c", "a tall person"), Concept("d", "a bird")))
    chef = Attribute("chef", (Concept("e", "a chef in red", "a chef"), Concept("f", "a chef in blue", "a chef")))
    with pytest.raises(ValueError, match="'a cat' and 'a bird' cannot be made one: neither says anything of the neutral prompt's 'person'"):
        intersection_of([one, two])
    with pytest.raises(ValueError, match=r"intersection 'chef\*one' has the neutral prompts 'a chef' and 'a person'"):
        intersection_of([one, chef])
    with pytest.raises(ValueError, match=r"intersection 'one' has an attribute twice or fewer than two"):
        intersection_of([one])
    with pytest.raises(ValueError, match="attribute 'hat' is unknown"):
        attribute("gender*hat")


def test_names_are_taken_apart_and_joined() -> None:
    names = subgroups([["x", "y"], ["u", "v"]])
    assert (
        names == ["x*u", "x*v", "y*u", "y*v"]
        and is_intersection("a*b", names)
        and not is_intersection("a*b", ["x"])
        and not is_intersection("a", ["x"])
    )
    assert alternatives("a*b", names) == {"a": ["x", "y"], "b": ["u", "v"]}
    assert split({"a*b": "x*u", "c*d": "odd"}) == {"a": "x", "b": "u", "c*d": "odd"}
    for concepts in ({"a": "x", "b": "u"}, {"a*b": "x*u"}, {"b": "u", "a": "x", "c": "z"}):
        assert asked(concepts, "a*b") == "x*u"
    assert asked({"a": "x"}, "a*b") is None and asked({"c*d": "odd"}, "c*d") == "odd"


def test_margins_of_shares_of_cells() -> None:
    found = marginals({"a*b": {"x*u": 0.1, "x*v": 0.2, "y*u": 0.3, "y*v": 0.4}, "b": {"u": 0.5, "v": 0.5}})
    assert found["a"] == pytest.approx({"x": 0.3, "y": 0.7}) and found["b"] == {"u": 0.5, "v": 0.5}
