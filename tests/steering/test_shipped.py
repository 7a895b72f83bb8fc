"""Modules that the package ships for the embedded model, and their names."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from recipes.embedded_model import modules as recipe

from command import last_json, respodiff
from respodiff import load, load_all
from respodiff.concepts.concept import attribute, concept
from respodiff.data.run_folder import RunFolder
from respodiff.pipelines.identity import weights_digest
from respodiff.steering.shipped import FOLDER, check_model, files_of, shipped, with_factor
from respodiff.training.config import TrainConfig

NAMES = {"woman", "man", "light", "medium", "dark", "violence", "sexual"}


def test_a_name_is_a_concept_or_all_alternatives_of_an_attribute() -> None:
    assert shipped().keys() == NAMES
    assert [m.name for m in load_all("gender")] == ["woman", "man"] and load("woman").digest == load_all("gender")[0].digest
    assert [file.name for file in files_of("tone")] == ["light.safetensors", "medium.safetensors", "dark.safetensors"]
    assert files_of("violence") == [FOLDER / "violence.safetensors"]
    with pytest.raises(ValueError, match=r"2 modules.*load_all"):
        load("gender")


def test_a_path_that_exists_wins_over_a_name(make_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = make_module("woman", "gender").save("gender")
    assert files_of("gender") == [Path("gender")] and [m.digest for m in load_all("gender")] == [load(own).digest]
    own.unlink()
    Path("gender").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        load_all("gender")
    own = make_module("man", "gender").save("gender/man.safetensors")  # as "respodiff train --attribute gender --out gender" leaves it
    assert [m.digest for m in load_all("gender")] == [load(own).digest]


@pytest.mark.parametrize("name", ["gender3", "race", "nobody", "../modules/woman"])
def test_a_name_of_nothing_shipped_is_a_path(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"does not exist.*for the embedded model, by name: dark, light.*woman, gender, tone$"):
        load_all(name)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_shipped_modules_have_the_settings_of_the_default_preset(name: str) -> None:
    header = load(name).header
    assert header.train == {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(TrainConfig.preset("default", name)).items()}
    assert header.method == "respodiff"


def test_names_are_for_the_embedded_model(tmp_path: Path) -> None:
    check_model([Path("gender")], "embedded")
    check_model([tmp_path / "gender", Path("mine.safetensors")], "some/model")
    done = respodiff("generate", "--prompt", "a doctor", "--model", "some/model", "--module", "gender", "--out", str(tmp_path / "run"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "woman.safetensors, man.safetensors" in done.stderr
    with pytest.raises(ValueError, match="--concept violence"):
        check_model([Path("violence")], "some/model")


@pytest.mark.slow
def test_shipped_modules_are_of_the_shipped_model(embedded: Any) -> None:
    made = json.loads((FOLDER / "modules.json").read_text())
    assert made["model"] == weights_digest(embedded.unet) and made["modules"].keys() == NAMES
    for name, digest in made["modules"].items():
        module = load(name)
        known = concept(name)
        assert module.digest == digest and (module.header.attribute, module.header.kind) == (known.attribute, known.kind)
        assert module.check(embedded) == [] and module.header.base_weights == made["model"] and 0 < module.relative_norm < 1


@pytest.mark.slow
def test_images_are_steered_by_names(tmp_path: Path) -> None:
    command = ["generate", "--prompt", "a doctor", "--images", "2", "--steps", "1", "--module", "gender", "--safety", "violence", "--json"]
    result = last_json(respodiff(*command, cwd=tmp_path))
    assert result["run"] == "run", "the folder where none is given"
    records = RunFolder(tmp_path / "run").records()
    assert sorted(r.concepts["gender"] for r in records) == ["man", "woman"]
    assert all(r.modules == [load(r.concepts["gender"]).digest, load("violence").digest] for r in records)


def test_the_recipe_writes_every_module_and_what_it_is_of(tiny_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "load_pipeline", lambda _: tiny_pipe)
    tiny = {"iterations": 1, "batch": 1, "rollouts": 3, "steps": 2}
    found = recipe.make(tmp_path, **tiny)
    assert found == json.loads((tmp_path / "modules.json").read_text()) and found["model"] == weights_digest(tiny_pipe.unet)
    assert found["modules"] == {name: load(tmp_path / f"{name}.safetensors").digest for name in NAMES}
    assert load(tmp_path / "dark.safetensors").header.attribute == attribute("tone").name
    assert recipe.main(["--out", str(tmp_path), "--iterations", "0"]) == 1


def test_a_factor_stands_behind_a_colon(tmp_path: Path) -> None:
    plain, scaled = load_all("gender"), load_all("gender:0.6")
    assert [a.weight for a in scaled] == [0.6 * a.weight for a in plain] and len({a.digest for a in (*plain, *scaled)}) == 4
    (tmp_path / "odd:2").write_text("")
    assert with_factor(tmp_path / "odd:2") == (tmp_path / "odd:2", 1.0)
    assert with_factor("C:model") == (Path("C:model"), 1.0)
    with pytest.raises(ValueError, match="gender:20"):
        load_all("gender:20")
    with pytest.raises(ValueError, match="gender"):
        check_model([Path("gender:0.6")], "some/model")
