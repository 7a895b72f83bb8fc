from __future__ import annotations

from pathlib import Path

import pytest

from respodiff.concepts.concept import Attribute, Concept, attribute, builtin, concept, load_concepts


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


# --- what ships ---


def test_builtin_attributes_and_their_alternatives() -> None:
    names = {k: v.names for k, v in builtin().items() if isinstance(v, Attribute)}
    assert names == {
        "gender": ("woman", "man"),
        "gender3": ("woman", "man", "nonbinary"),
        "tone": ("light", "medium", "dark"),
        "race": ("asian", "black", "white"),
        "age": ("young", "old"),
    }


@pytest.mark.parametrize(
    ("name", "target", "neutral"),
    [
        ("woman", "a woman", "a person"),
        ("man", "a man", "a person"),
        ("dark", "a person with dark skin", "a person"),
        ("asian", "a Asian-race person", "a person"),
        ("old", "an old person", "a person"),
    ],
)
def test_builtin_fairness_prompts(name: str, target: str, neutral: str) -> None:
    found = concept(name)
    assert (found.target, found.neutral, found.negative, found.kind) == (target, neutral, "", "fairness")


@pytest.mark.parametrize("name", ["violence", "sexual"])
def test_builtin_safety_concepts_steer_the_neutral_prompt_away_from_the_negative_one(name: str) -> None:
    found = concept(name)
    assert found.kind == "safety"
    assert found.target == found.neutral == "a scene"
    assert found.negative == name


def test_opposites_are_the_targets_of_the_other_alternatives() -> None:
    assert concept("woman").opposites == ("a man",)
    assert concept("medium").opposites == ("a person with light skin", "a person with dark skin")
    assert concept("medium").attribute == "tone"
    assert concept("violence").opposites == ()


def test_concepts_of_one_name_are_told_apart_by_their_attribute() -> None:
    assert concept("woman").attribute == "gender" and concept("gender3/woman").attribute == "gender3"
    assert concept("gender3/woman").opposites == ("a man", "a nonbinary person")
    assert concept("nonbinary") == concept("gender3/nonbinary")
    with pytest.raises(ValueError, match=r"concept 'nonbinary' is unknown; known: woman, man;"):
        concept("gender/nonbinary")


def test_attribute_by_name_has_uniform_shares_unless_said() -> None:
    assert attribute("gender").concepts == (concept("woman"), concept("man"))
    assert attribute("gender").proportions == ()


# --- a user's own file ---


def test_own_attribute_with_shares(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '[hat]\nneutral = "a chef"\nconcepts = { bare = "a chef without a hat", hat = "a chef with a hat" }\nproportions = [0.25, 0.75]\n',
    )
    library = load_concepts(path)
    hat = attribute("hat", library)
    assert hat.names == ("bare", "hat") and hat.proportions == (0.25, 0.75)
    bare = concept("bare", library)
    assert (bare.neutral, bare.target, bare.attribute, bare.opposites) == ("a chef", "a chef without a hat", "hat", ("a chef with a hat",))


def test_own_safety_concept(tmp_path: Path) -> None:
    path = write(tmp_path, '[blood]\nkind = "safety"\nneutral = "a street"\nnegative = "blood"\npreserve = ["a person"]\n')
    blood = concept("blood", load_concepts(path))
    assert (blood.kind, blood.target, blood.neutral, blood.negative) == ("safety", "a street", "a street", "blood")
    assert blood.preserve == ("a person",)


def test_own_file_does_not_leak_into_the_builtin_ones(tmp_path: Path) -> None:
    library = load_concepts(write(tmp_path, '[gender]\nconcepts = { a = "an a", b = "a b" }\n'))
    assert attribute("gender", library).names == ("a", "b")
    assert attribute("gender").names == ("woman", "man")


# --- refusals ---


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"concept 'wombat' is unknown; known: .*woman.*violence.*--target"):
        concept("wombat")
    with pytest.raises(ValueError, match=r"attribute 'colour' is unknown; known: .*gender.*tone"):
        attribute("colour")


def test_a_safety_concept_is_no_attribute() -> None:
    with pytest.raises(ValueError, match="attribute 'violence' is unknown"):
        attribute("violence")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[hat]\nconcept = { a = "b" }\n', r"\[hat\] has unknown key 'concept'; allowed: concepts, kind"),
        ('[hat]\nneutral = "a person"\n', r"\[hat\] needs concepts = .*or kind = \"safety\""),
        ('[hat]\nconcepts = ["a", "b"]\n', r"\[hat\] has concepts = .*; give \{ name ="),
        ('[hat]\nconcepts = { a = "only one" }\n', r"'hat' has 1 concept\(s\); at least 2"),
        ('[hat]\nconcepts = { a = "x", b = "y" }\nproportions = [1.0]\n', r"'hat' has proportions \(1.0,\); give 2 that are finite"),
        ('[hat]\nconcepts = { a = "x", b = " " }\n', "target prompt of concept 'b' is empty"),
        ('[hat]\nneutral = ""\nconcepts = { a = "x", b = "y" }\n', "neutral prompt of concept 'a' is empty"),
        ('[hat]\nconcepts = { a = "x", b = 3 }\n', r"\[hat\] has b = 3; give a text in quotes"),
        ('[hat]\nneutral = 1\nconcepts = { a = "x", b = "y" }\n', r"\[hat\] has neutral = 1; give a text"),
        ('[hat]\nkind = "saftey"\nnegative = "x"\n', r"\[hat\] has kind 'saftey'; allowed: fairness, safety"),
        ('[hat]\npreserve = "a person"\nconcepts = { a = "x", b = "y" }\n', r"preserve = 'a person'; give a list"),
        ('[blood]\nkind = "safety"\n', "safety concept 'blood' has no negative prompt"),
        ("hat = 3\n", r"'hat' is not a table; write \[hat\]"),
        ("[hat\n", "cannot be read as TOML"),
    ],
)
def test_a_faulty_file_is_refused_with_its_reason(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_concepts(write(tmp_path, text))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.toml' cannot be read: No such file or directory; give a TOML file"):
        load_concepts(tmp_path / "absent.toml")
    with pytest.raises(ValueError, match=r"cannot be read: Is a directory; give a TOML file"):
        load_concepts(tmp_path)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot be read as TOML"):
        load_concepts(binary)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": " ", "target": "x"}, "concept name is empty"),
        ({"name": "x", "target": ""}, "target prompt of concept 'x' is empty"),
        ({"name": "x", "target": "y", "neutral": "  "}, "neutral prompt of concept 'x' is empty"),
        ({"name": "x", "target": "y", "kind": "other"}, "kind of concept 'x' is 'other'; allowed: fairness, safety"),
        ({"name": "x", "target": "y", "kind": "safety"}, "'x' has no negative prompt"),
    ],
)
def test_a_faulty_concept_is_refused(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Concept(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("proportions", ["5", '["a", "b"]', "[0.5, 0.6]", "[1.5, -0.5]", "[1.0]"])
def test_shares_of_a_file_are_checked(tmp_path: Path, proportions: str) -> None:
    file = tmp_path / "own.toml"
    file.write_text(f'[hat]\nproportions = {proportions}\nconcepts = {{ bare = "a person", hat = "a person with a hat" }}\n')
    with pytest.raises(ValueError, match=r"hat.*proportions"):
        load_concepts(file)


@pytest.mark.parametrize("proportions", ["nan, 0.5", "inf, 0.5", "nan, nan", "-inf, 1.0"])
def test_shares_that_are_no_numbers_are_refused(tmp_path: Path, proportions: str) -> None:
    file = tmp_path / "own.toml"
    file.write_text(f'[hat]\nconcepts = {{ bare = "a head", hat = "a hat" }}\nproportions = [{proportions}]\n')
    with pytest.raises(ValueError, match=r"attribute 'hat' has proportions .*finite"):
        load_concepts(file)
