from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import ModelCard

from respodiff.experiments.model_card import is_card, model_card
from respodiff.steering.adapter import Adapter
from respodiff.steering.serialization import Header, Stored


def stored(module: Any) -> Stored:
    return Stored(module.header, {k: v.numpy() for k, v in module.tensors.items()}, module.weight, module.digest)


def test_the_card_says_what_the_files_are_and_how_to_use_them(make_module: Any, tmp_path: Any) -> None:
    woman = make_module("woman", "gender", base_model="someone/sd", train={"iterations": 50}, timesteps=(400, 1000)).scale(0.5)
    card = model_card("me/gender", {"woman.safetensors": stored(woman)}, license="mit")
    for text in (
        "# me/gender",
        "| woman.safetensors | woman | fairness | gender | a woman | a person | - | someone/sd |",
        "| woman.safetensors | respodiff | constant | mid_block | 400 to 1000 | 0.5 | 2,048 |",
        "iterations 50",
        'respodiff.load_pipeline("someone/sd")',
        'respodiff.steer(pipe, "me/gender:woman.safetensors")',
        "--module me/gender",
        "None were given. Measure before you rely on these files",
        "can skew as well as balance",
        "what an automatic judge perceives",
    ):
        assert text in card.text
    compile(card.text.partition("```python\n")[2].partition("```")[0], "card", "exec")
    card.save(tmp_path / "README.md")
    assert is_card(tmp_path / "README.md") and "model-index" not in ModelCard.load(tmp_path / "README.md").data.to_dict()


def test_texts_of_a_file_stay_texts(make_module: Any) -> None:
    module = make_module("a|b <script> ![](http://x)", base_model='x"); import os #')
    with pytest.warns(UserWarning, match="--base-model"):
        text = model_card("me/odd", {"odd.safetensors": stored(module)}, license="mit").text
    assert "<script>" not in text and "](http://x" not in text and "import os" not in text.partition("## Use")[2]


def test_safety_modules_and_other_methods_are_used_by_their_own_lines(make_module: Any) -> None:
    safety = make_module("violence", kind="safety", base_model="embedded")
    with pytest.warns(UserWarning, match="the files name embedded, no hub id"):
        card = model_card("me/safe", {"violence.safetensors": stored(safety)}, license="mit")
    assert "--safety me/safe" in card.text and 'load_pipeline("embedded")' in card.text
    assert card.data.to_dict()["tags"][-1] == "safety" and "base_model" not in card.data.to_dict()
    other = stored(Adapter(Header("woman", "a woman", "a person", method="esd-x", base_model="a/b")))
    text = model_card("me/x", {"woman.safetensors": other}, license="mit").text
    assert 'respodiff.load("me/x:woman.safetensors")' in text and "is changed or contained" in card.text
    assert "is changed or contained" not in text


def test_modules_of_two_kinds_are_used_by_file(make_module: Any) -> None:
    files = {"violence.safetensors": make_module("violence", kind="safety"), "woman.safetensors": make_module("woman", "gender")}
    card = model_card("me/both", {k: stored(m) for k, m in files.items()}, license="mit", base_model="someone/sd")
    assert "--safety me/both:violence.safetensors" in card.text and "--module me/both " not in card.text


def test_base_models(make_module: Any) -> None:
    files = {f"{name}.safetensors": stored(make_module(name, base_model=name)) for name in ("a/one", "b/two")}
    data = model_card("me/both", files, license="mit").data.to_dict()
    assert data["base_model"] == ["a/one", "b/two"] and data["base_model_relation"] == "adapter"
    local = {"w.safetensors": stored(make_module(base_model="folder/sd.safetensors"))}
    with pytest.warns(UserWarning, match="no hub id"):
        assert "base_model" not in model_card("me/w", local, license="mit").data.to_dict()
    assert model_card("me/w", local, license="mit", base_model="someone/sd").data.to_dict()["base_model"] == "someone/sd"
    with pytest.raises(ValueError, match="--base-model is 'my folder'"):
        model_card("me/w", local, license="mit", base_model="my folder")
    for changes, message in (({"base_model": "c/three"}, "--base-model"), ({"license": ""}, "--license")):
        with pytest.raises(ValueError, match=message):
            model_card("me/both", files, **{"license": "mit", **changes})
    with pytest.raises(ValueError, match="files is empty"):
        model_card("me/none", {}, license="mit")
