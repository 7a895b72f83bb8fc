"""The interface: registry, files and their refusals, mixed entries, run folders, and a pipeline that is as it was."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file

from method_tools import MAKE, MAN, VIOLENCE, WOMAN, close, latents, noise, state, strong, unchanged
from respodiff.data.run_folder import RunFolder
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import counted, generate
from respodiff.methods.lora import LowRankAdapter
from respodiff.methods.registry import NAMES, get_method, load
from respodiff.steering.adapter import Adapter, header_of
from respodiff.steering.module import ConceptModule
from respodiff.steering.serialization import HEADER_KEY, Header, checksum
from respodiff.training.config import Settings

CONFIG = GenerateConfig(images=4, steps=2, guidance=3.0, batch=4)


@pytest.fixture
def pipe() -> Any:
    return strong(MAKE["sd"]())


def filled(pipe: Any, name: str = "plain") -> Adapter:
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(2)}
    return get_method(name).adapter(header_of(pipe, name, WOMAN, Settings()), tensors)


# --- registry ---


def test_every_name_is_a_method_of_that_name() -> None:
    for name in NAMES:
        found = get_method(name)
        assert found.name == name and found.kinds and issubclass(found.adapter, Adapter)


def test_bad_input_is_one_line(pipe: Any) -> None:
    for call, said in (
        (lambda: get_method("magic"), "method is 'magic'; allowed: plain, prompt, prompt-switch,"),
        (lambda: get_method("prompt").settings(scale=2), "setting 'scale' is unknown; method 'prompt' has: switch"),
        (lambda: get_method("prompt").fit(pipe, VIOLENCE), "method 'prompt' takes fairness concepts, 'violence' is a safety concept"),
        (lambda: get_method("sld-max").fit(pipe, WOMAN), "method 'sld-max' takes safety concepts, 'woman' is a fairness concept"),
        (lambda: get_method("prompt-switch").settings(switch=2), "switch is 2; allowed: 0 to 1"),
        (lambda: latents(pipe, ["x"], [[7]]), "adapters holds 7; give adapters, names of module files, or None"),
        (lambda: latents(pipe, ["x"], []), "adapters is empty"),
        (lambda: latents(pipe, ["x"], get_method("prompt").fit(pipe, WOMAN).scale(0.5)), "scale of prompt 'woman' is 0.5; allowed: 0 or 1"),
        (lambda: filled(pipe).scale(float("nan")), "scale is nan"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            call()
        assert "\n" not in str(error.value)


def test_methods_that_would_disturb_each_other_are_refused(pipe: Any, make_module: Callable[..., ConceptModule]) -> None:
    sld, negative = get_method("sld-weak").fit(pipe, VIOLENCE), get_method("negative").fit(pipe, VIOLENCE)
    with pytest.raises(ValueError, match="'sld-weak' calls the model once more per step, which 'negative' would act on"):
        latents(pipe, ["x"], [[sld, negative]])
    with pytest.raises(ValueError, match="which 'respodiff' would act on"):
        latents(pipe, ["x"], [[sld, make_module(shape=(32, 4, 4))]])


# --- files ---


def test_a_file_says_what_it_holds(pipe: Any, tmp_path: Path) -> None:
    made = filled(pipe)
    with safe_open(made.save(tmp_path / "a.safetensors"), "pt") as file:
        header = json.loads(file.metadata()[HEADER_KEY])
    assert header["method"] == "plain" and header["digest"] == made.digest
    assert {"concept", "target", "base_model", "base_digest", "base_weights", "library", "train"} <= set(header)


def test_a_module_of_ram_and_sam_is_read_too(make_module: Callable[..., ConceptModule], tmp_path: Path) -> None:
    module = make_module()
    found = load(module.save(tmp_path / "m.safetensors"))
    assert isinstance(found, ConceptModule) and found.digest == module.digest and found.header.method == "respodiff"


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], object]) -> Path:
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()[HEADER_KEY])
    tensors = load_file(path)
    change(tensors, header)
    header["checksum"] = checksum({k: v for k, v in header.items() if k != "checksum"})
    save_file(tensors, path, metadata={HEADER_KEY: json.dumps(header)})
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t, h: t["a"].add_(1), "is damaged: its header says digest"),
        (lambda t, h: h.update(train={"rank": 9}), "is damaged: its header says digest"),
        (lambda t, h: h.update(method="magic"), "is of method 'magic'; this version knows plain, prompt"),
        (lambda t, h: h.update(format="respodiff-9"), "has format 'respodiff-9'; this version reads 'respodiff-1'"),
        (lambda t, h: t["a"].fill_(float("nan")), "is damaged"),
        (lambda t, h: h.pop("target"), "has a header without 'target'"),
    ],
)
def test_files_that_are_wrong_are_refused(pipe: Any, change: Any, said: str, tmp_path: Path) -> None:
    path = rewrite(filled(pipe).save(tmp_path / "a.safetensors"), change)
    with pytest.raises(ValueError, match=said) as error:
        load(path)
    assert "a.safetensors" in str(error.value) and "\n" not in str(error.value)


def test_other_files_are_refused(pipe: Any, tmp_path: Path) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no")
    for name, said in (("other", "no respodiff header"), ("text", "not a safetensors file")):
        with pytest.raises(ValueError, match=said):
            load(tmp_path / f"{name}.safetensors")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="cannot be used: plain 'woman' is no module of RAM and SAM"):
        ConceptModule.load(filled(pipe).save(tmp_path / "a.safetensors"))


@pytest.mark.parametrize(("name", "setting"), [("sld-medium", "text"), ("prompt", "suffix"), ("bact", "proportions"), ("slider", "plan")])
def test_settings_that_the_method_has_not_are_refused(pipe: Any, name: str, setting: str, tmp_path: Path) -> None:
    method = get_method(name)
    made = method.adapter(header_of(pipe, name, WOMAN, method.settings()))
    assert load(made.save(tmp_path / "a.safetensors")).digest == made.digest
    other = replace(made, header=replace(made.header, train={**made.settings, setting: ""}))
    with pytest.raises(
        ValueError, match=rf"a.safetensors' has setting '{setting}', which method '{name}' of this version has not"
    ) as error:
        load(other.save(tmp_path / "a.safetensors"))
    assert "\n" not in str(error.value)


def test_layers_that_the_model_lacks_are_refused(pipe: Any) -> None:
    header = header_of(pipe, "slider", WOMAN, get_method("slider").settings())
    made = LowRankAdapter(header, {"up.attn2.to_q.a": torch.ones(1, 1), "up.attn2.to_q.b": torch.ones(1, 1)})
    with pytest.raises(
        ValueError,
        match=r"slider 'woman' changes layer 'up\.attn2\.to_q', which this model lacks or has in another size; make it for this model",
    ):
        latents(pipe, ["x"], made)


def test_an_adapter_of_another_model_is_refused_and_names_both(pipe: Any) -> None:
    other = MAKE["sd"](layers_per_block=2)
    with pytest.raises(
        ValueError, match=r"plain 'woman' was made for '' \(config [0-9a-f]{16}\), this pipeline is '' \(config [0-9a-f]{16}\)"
    ):
        latents(other, ["x"], filled(pipe))


def test_the_digest_tells_prompts_settings_and_methods_apart(pipe: Any) -> None:
    made = [get_method("prompt").fit(pipe, c) for c in (WOMAN, MAN)]
    made += [get_method("prompt-switch").fit(pipe, WOMAN), get_method("plain").fit(pipe, WOMAN)]
    assert len({a.digest for a in made}) == 4
    assert made[0].digest == get_method("prompt").fit(pipe, WOMAN).digest


# --- entries ---


def test_respodiff_and_others_in_one_batch_and_on_one_image(pipe: Any, make_module: Callable[..., ConceptModule]) -> None:
    module, female, negative = (
        make_module(shape=(32, 4, 4)),
        get_method("prompt").fit(pipe, WOMAN),
        get_method("negative").fit(pipe, VIOLENCE),
    )
    entries = [module, female, None, [module, female, negative]]
    z, prompts = noise(pipe, 4), ["a cook"] * 4
    together = latents(pipe, prompts, entries)
    for i, entry in enumerate(entries):
        assert close(together[i], latents(pipe, ["a cook"], [entry], start=z[i : i + 1])[0], 1e-3)
    assert not close(together[3], together[1], 1e-3) and not close(together[3], together[0], 1e-3)


def test_the_number_of_entries_must_be_that_of_images(pipe: Any) -> None:
    before = state(pipe)
    with pytest.raises(ValueError, match="given 2 entries, but the pipeline generates 3 images"):
        latents(pipe, ["a", "b", "c"], [get_method("prompt").fit(pipe, WOMAN), None])
    assert unchanged(before, state(pipe))


# --- run folders ---


@pytest.mark.parametrize("name", ["plain", "prompt", "prompt-switch"])
def test_images_with_a_policy_on_the_same_noise(pipe: Any, name: str, tmp_path: Path) -> None:
    entries = [get_method(name).fit(pipe, c) for c in (WOMAN, MAN)]
    drawn = {r.id: (r, i) for r, i in generate(pipe, ["a doctor", "a nurse"], entries, CONFIG, out=tmp_path / "run")}
    assert len(drawn) == 8 and {r.method for r, _ in drawn.values()} == {name}
    for prompt in ("a doctor", "a nurse"):
        assert Counter(r.concepts["gender"] for r, _ in drawn.values() if r.prompt == prompt) == {"woman": 2, "man": 2}
    plain = {r.id: i for r, i in generate(pipe, ["a doctor", "a nurse"], [], CONFIG)}
    same = [plain[k].tobytes() == i.tobytes() for k, (_, i) in drawn.items()]
    assert all(same) if name == "plain" else not any(same)
    rows = RunFolder(tmp_path / "run").records()
    assert {tuple(r.modules) for r in rows} == {(e.digest,) for e in entries}
    assert list(generate(pipe, ["a doctor", "a nurse"], entries, CONFIG, out=tmp_path / "run")) == [], "resumed"


def test_an_image_is_that_of_its_own_prompt(pipe: Any) -> None:
    woman = get_method("prompt").fit(pipe, WOMAN)
    from respodiff.data.records import Prompt

    found = [i for _, i in generate(pipe, [Prompt("d", "a doctor")], [woman], CONFIG)]
    wanted = [i for _, i in generate(pipe, [Prompt("d", "a female doctor")], [], CONFIG)]
    assert all(max(abs(a - b) for a, b in zip(x.tobytes(), y.tobytes(), strict=True)) <= 1 for x, y in zip(found, wanted, strict=True))


@pytest.mark.parametrize("name", ["prompt", "negative", "sld-max", "uce", "slider", "esd-x"])
def test_run_folders_of_sdxl_and_what_an_image_costs(name: str, tmp_path: Path) -> None:
    xl = strong(MAKE["sdxl"]())
    concept = WOMAN if get_method(name).kinds[0] == "fairness" and name != "uce" else VIOLENCE
    more = {"iterations": 1, "batch": 1, "steps": 2, "rollouts": 1} if name in ("slider", "esd-x") else {}
    made = get_method(name).fit(xl, concept, get_method(name).settings(concept.kind, **more))
    before = state(xl)
    with counted(xl.unet) as forwards:
        modules, safety = ([], [made]) if made.header.kind == "safety" else ([made], [])
        drawn = list(generate(xl, ["a street"], modules, CONFIG, safety=safety, out=tmp_path / "run"))
    assert forwards[0] == 4 * CONFIG.steps * (3 if name.startswith("sld") else 2) and unchanged(before, state(xl))
    plain = [i.tobytes() for _, i in generate(xl, ["a street"], [], CONFIG)]
    assert len(drawn) == 4 and {r.method for r, _ in drawn} == {name}
    assert name in ("slider", "esd-x") or all(i.tobytes() != p for (_, i), p in zip(drawn, plain, strict=True))


def test_safety_methods_are_on_every_image_and_named(pipe: Any, make_module: Callable[..., ConceptModule]) -> None:
    module = make_module("woman", "gender", shape=(32, 4, 4))
    rows = [r for r, _ in generate(pipe, ["a doctor"], [module], CONFIG, safety=[get_method("negative").fit(pipe, VIOLENCE)])]
    assert {r.method for r in rows} == {"respodiff+negative"} and all(len(r.modules) == 2 for r in rows)
    rows = [r for r, _ in generate(pipe, ["a doctor"], [], CONFIG, safety=[get_method("sld-weak").fit(pipe, VIOLENCE)])]
    assert {r.method for r in rows} == {"sld-weak"} and all(r.concepts == {} for r in rows)


def test_what_a_method_made_of_an_attribute_is_on_every_image(pipe: Any) -> None:
    whole = get_method("plain").adapter(Header("gender", "a woman", "a person", kind="attribute", method="plain", train={"x": 1}))
    rows = [r for r, _ in generate(pipe, ["a doctor"], [whole], CONFIG)]
    assert all(r.concepts == {} and r.modules == [whole.digest] for r in rows)
