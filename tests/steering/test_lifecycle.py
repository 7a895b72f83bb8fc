from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.drawing import apart, draw, module, same
from tests.tiny_models import sd

from respodiff.steering.fuse import fused
from respodiff.steering.hub import Bundle
from respodiff.steering.lifecycle import Steered
from respodiff.steering.steer import steer


@pytest.fixture
def pipe() -> Any:
    return sd()


def hooks(pipe: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.unet.modules())


def test_load_set_enable_disable_delete_unload(pipe: Any) -> None:
    a, b, plain = module(pipe, 1), module(pipe, 2), draw(pipe)
    modules = Steered(pipe)
    assert modules.load(a) == ["concept-1"] and modules.load(b, "b") == ["b"] and modules.names == ["concept-1", "b"]
    same(draw(pipe), plain, "loaded, nothing set")
    modules.set("concept-1")
    with steer(sd(), a):
        pass
    steered = draw(pipe)
    assert apart(steered, plain) > 1e-3
    modules.disable()
    same(draw(pipe), plain, "disabled")
    modules.enable()
    same(draw(pipe), steered, "enabled")
    modules.set({"b": 0.5})
    modules.delete("concept-1")
    other = draw(pipe)
    assert apart(other, plain) > 1e-3, "what is not in use can be deleted"
    modules.delete("b")
    same(draw(pipe), plain, "deleted")
    modules.unload()
    assert hooks(pipe) == 0
    same(draw(pipe), plain, "unloaded")


def test_what_is_set_is_what_steer_does(pipe: Any) -> None:
    a, b = module(pipe, 1), module(pipe, 2)
    with steer(pipe, a.scale(0.7) + b.scale(0.3)):
        mixed = draw(pipe, images=2)
    with steer(pipe, [a, [a.scale(0.5), b]]):
        rows = draw(pipe, images=2)
    with Steered(pipe) as modules:
        modules.load(a, "a")
        modules.load(b, "b")
        modules.set(["a", "b"], [0.7, 0.3])
        same(draw(pipe, images=2), mixed, "weights as in set_adapters")
        modules.set({"a": 0.7, "b": 0.3})
        same(draw(pipe, images=2), mixed, "mapping")
        modules.set(["a", {"a": 0.5, "b": 1.0}])
        same(draw(pipe, images=2), rows, "one entry an image")
        modules.set(None)
        plain = draw(pipe, images=2)
    assert hooks(pipe) == 0
    same(draw(pipe, images=2), plain, "afterwards")


def test_fuse_and_unfuse(pipe: Any) -> None:
    flat, plain = module(pipe).channels(), draw(pipe)
    with fused(pipe, flat, scale=2.0):
        expected = draw(pipe)
    with Steered(pipe) as modules:
        modules.load(flat, "flat")
        modules.fuse("flat", 2.0)
        same(draw(pipe), expected, "fused")
        with pytest.raises(ValueError, match=r"fused already; unfuse\(\) first"):
            modules.fuse("flat")
        modules.unfuse()
        same(draw(pipe), plain, "unfused")
        modules.fuse(["flat"])
    same(draw(pipe), plain, "unload unfuses")


def test_files_and_folders_are_loaded(pipe: Any, tmp_path: Path) -> None:
    a, b = module(pipe, 1), module(pipe, 2)
    Bundle([a, b]).save_pretrained(tmp_path / "repo")
    with Steered(pipe) as modules:
        assert modules.load(tmp_path / "repo") == ["concept-1", "concept-2"]
        assert modules.load(a.save(tmp_path / "a.safetensors"), "again") == ["again"]
        with pytest.raises(ValueError, match="a module 'again' is loaded already"):
            modules.load(tmp_path / "a.safetensors", "again")
        with pytest.raises(ValueError, match="holds concept-1, concept-2; leave it out"):
            modules.load(tmp_path / "repo", "x")


def test_refusals(pipe: Any) -> None:
    with Steered(pipe) as modules:
        modules.load(module(pipe), "a")
        with pytest.raises(ValueError, match="module 'b' is not loaded; loaded: a"):
            modules.set("b")
        with pytest.raises(ValueError, match="1 names, but 2 weights"):
            modules.set(["a"], [1.0, 2.0])
        with pytest.raises(ValueError, match="has 7 channels"):
            modules.load(module(pipe, shape=(7, 4, 4)), "narrow")
