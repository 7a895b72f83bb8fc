from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, ModelCard

from respodiff.steering.hub import Bundle
from respodiff.steering.module import ConceptModule


def test_saved_and_read_back_from_a_folder(make_module: Any, tmp_path: Path) -> None:
    woman, man = make_module("woman", base_model="someone/sd"), make_module("man", seed=1, base_model="someone/sd")
    Bundle([woman, man], statistics={"DevRat": "0.22 [0.14, 0.30], n = 432"}, license="apache-2.0").save_pretrained(tmp_path / "repo")
    assert sorted(p.name for p in (tmp_path / "repo").iterdir() if p.suffix != ".json") == [
        "README.md",
        "man.safetensors",
        "woman.safetensors",
    ]
    found = Bundle.from_pretrained(str(tmp_path / "repo")).modules
    assert {n: m.digest for n, m in found.items()} == {"woman": woman.digest, "man": man.digest}


def test_the_card_names_base_model_prompts_figures_and_limits(make_module: Any) -> None:
    card = Bundle([make_module("woman", base_model="someone/sd")], statistics={"DevRat": "0.22, n = 432"}, license="mit").card()
    data = ModelCard(card).data.to_dict()
    assert data["base_model"] in ("someone/sd", ["someone/sd"]) and data["library_name"] == "respodiff" and data["license"] == "mit"
    assert data["pipeline_tag"] == "text-to-image"
    for text in ("a woman", "a person", "| DevRat | 0.22, n = 432 |", "never facts about people", 'modules["woman"]'):
        assert text in card
    local = Bundle([make_module("woman", base_model="my-folder")]).card()
    assert "base_model" not in ModelCard(local).data.to_dict(), "a folder's name is no hub id"
    assert "None were given" in local


def test_push_to_hub_uploads_that_folder(make_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(HfApi, "create_repo", lambda _self, **k: type("Repo", (), {"repo_id": k["repo_id"]}))

    def upload(_self: HfApi, **k: Any) -> str:
        seen.update(k, files=sorted(p.name for p in Path(k["folder_path"]).iterdir()))
        return "done"

    monkeypatch.setattr(HfApi, "upload_folder", upload)
    Bundle([make_module("woman")]).push_to_hub("someone/modules", token="none")
    assert seen["repo_id"] == "someone/modules" and {"README.md", "woman.safetensors"} <= set(seen["files"])


def test_refusals(make_module: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two modules are called 'woman'"):
        Bundle([make_module("woman"), make_module("woman")])
    for name in ("../evil", "a/b", ".hidden", ""):
        with pytest.raises(ValueError, match="cannot be a file name"):
            Bundle([ConceptModule.of(make_module().ram, make_module().sam, make_module(name or "x").header.__class__(name, "a", "b"))])
    with pytest.raises(ValueError, match="the bundle is empty"):
        Bundle().save_pretrained(tmp_path / "empty")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="holds no module file"):
        Bundle.from_pretrained(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="modules 'someone/absent' cannot be had"):
        Bundle.from_pretrained("someone/absent")
