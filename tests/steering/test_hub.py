from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, ModelCard
from tests.drawing import apart, draw, module, same
from tests.tiny_models import sd

from respodiff.steering.fuse import fused
from respodiff.steering.hub import AdapterManager, Bundle
from respodiff.steering.module import ConceptModule
from respodiff.steering.steer import steer


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


# --- adapters on a pipeline for longer than a block ---


@pytest.fixture
def pipe() -> Any:
    return sd()


def hooks(pipe: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.unet.modules())


def test_load_set_enable_disable_delete_unload(pipe: Any) -> None:
    a, b, plain = module(pipe, 1), module(pipe, 2), draw(pipe)
    manager = AdapterManager(pipe)
    assert manager.load(a) == ["concept-1"] and manager.load(b, "b") == ["b"] and manager.names == ["concept-1", "b"]
    same(draw(pipe), plain, "loaded, nothing set")
    manager.set_adapters("concept-1")
    with steer(sd(), a):
        pass
    steered = draw(pipe)
    assert apart(steered, plain) > 1e-3
    manager.disable()
    same(draw(pipe), plain, "disabled")
    manager.enable()
    same(draw(pipe), steered, "enabled")
    manager.set_adapters({"b": 0.5})
    manager.delete_adapter("concept-1")
    other = draw(pipe)
    assert apart(other, plain) > 1e-3, "what is not in use can be deleted"
    manager.delete_adapter("b")
    same(draw(pipe), plain, "deleted")
    manager.unload()
    assert hooks(pipe) == 0
    same(draw(pipe), plain, "unloaded")


def test_what_is_set_is_what_steer_does(pipe: Any) -> None:
    a, b = module(pipe, 1), module(pipe, 2)
    with steer(pipe, [[a.scale(0.7), b.scale(0.3)]] * 2):
        mixed = draw(pipe, images=2)
    with steer(pipe, [a, [a.scale(0.5), b]]):
        rows = draw(pipe, images=2)
    with AdapterManager(pipe) as manager:
        manager.load(a, "a")
        manager.load(b, "b")
        manager.set_adapters(["a", "b"], [0.7, 0.3])
        same(draw(pipe, images=2), mixed, "weights as in set_adapters")
        manager.set_adapters({"a": 0.7, "b": 0.3})
        same(draw(pipe, images=2), mixed, "mapping")
        manager.set_adapters(["a", {"a": 0.5, "b": 1.0}])
        same(draw(pipe, images=2), rows, "one entry an image")
        manager.set_adapters(None)
        plain = draw(pipe, images=2)
    assert hooks(pipe) == 0
    same(draw(pipe, images=2), plain, "afterwards")


def test_fuse_and_unfuse(pipe: Any) -> None:
    flat, plain = module(pipe).channels(), draw(pipe)
    with fused(pipe, [flat], scale=2.0):
        expected = draw(pipe)
    with AdapterManager(pipe) as manager:
        manager.load(flat, "flat")
        manager.fuse("flat", 2.0)
        same(draw(pipe), expected, "fused")
        manager.unfuse()
        same(draw(pipe), plain, "unfused")
        manager.fuse(["flat"])
    same(draw(pipe), plain, "unload unfuses")


def test_files_and_folders_are_loaded(pipe: Any, tmp_path: Path) -> None:
    a, b = module(pipe, 1), module(pipe, 2)
    Bundle([a, b]).save_pretrained(tmp_path / "repo")
    with AdapterManager(pipe) as manager:
        assert manager.load(tmp_path / "repo") == ["concept-1", "concept-2"]
        assert manager.load(a.save(tmp_path / "a.safetensors"), "again") == ["again"]
        with pytest.raises(ValueError, match="an adapter 'again' is loaded already"):
            manager.load(tmp_path / "a.safetensors", "again")
        with pytest.raises(ValueError, match="holds concept-1, concept-2; leave it out"):
            manager.load(tmp_path / "repo", "x")


def test_refusals_of_the_manager(pipe: Any) -> None:
    with AdapterManager(pipe) as manager:
        manager.load(module(pipe), "a")
        with pytest.raises(ValueError, match="adapter 'b' is not loaded; loaded: a"):
            manager.set_adapters("b")
        with pytest.raises(ValueError, match="1 names, but 2 weights"):
            manager.set_adapters(["a"], [1.0, 2.0])
        with pytest.raises(ValueError, match="has 7 channels"):
            manager.load(module(pipe, shape=(7, 4, 4)), "narrow")
