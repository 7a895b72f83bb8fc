"""``push`` and ``pull`` with a hub on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import save_file

from command import last_json, respodiff
from hub_stub import Hub, local_hub
from painted import GENDER, WORDS, ColourJudge, paint
from respodiff.evaluation.evaluate import evaluate
from respodiff.methods.registry import load
from respodiff.steering.module import ConceptModule

CARD = "README.md"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with local_hub(tmp_path / "cache", monkeypatch) as found:
        yield found


@pytest.fixture
def modules(make_module: Any, tmp_path: Path) -> Path:
    """A folder with woman and man, and files that are nobody's business."""
    for i, name in enumerate(("woman", "man")):
        make_module(name, "gender", seed=i, base_model="someone/sd@" + "a" * 40).save(tmp_path / "modules" / f"{name}.safetensors")
    (tmp_path / "modules" / "secrets.txt").write_text("a password")
    (tmp_path / "modules" / "model.bin").write_bytes(b"a pickle")
    return tmp_path / "modules"


def push(*arguments: object) -> Any:
    return respodiff("push", *map(str, arguments), "--license", "openrail", "--json")


def test_push_uploads_modules_and_their_card_alone(hub: Hub, modules: Path) -> None:
    found = last_json(push(modules, "--to", "me/gender", "--private"))
    assert found["repo"] == "me/gender" and found["url"].endswith("/me/gender") and found["folder"] is None and found["figures"] == 0
    assert found["files"] == ["man.safetensors", "woman.safetensors", CARD]
    assert [(m["file"], m["concept"]) for m in found["modules"]] == [("man.safetensors", "man"), ("woman.safetensors", "woman")]
    repo = hub.repos["me/gender"]
    files = repo.revisions["main"]
    assert repo.private and files.keys() == {".gitattributes", *found["files"]}
    assert files["woman.safetensors"] == (modules / "woman.safetensors").read_bytes()
    data = ModelCard(files[CARD].decode()).data.to_dict()
    assert data == {
        "base_model": "someone/sd",
        "base_model_relation": "adapter",
        "library_name": "respodiff",
        "license": "openrail",
        "pipeline_tag": "text-to-image",
        "tags": ["respodiff", "diffusers", "h-space", "fairness", "gender"],
    }


def test_a_dry_run_writes_what_would_go_up(hub: Hub, modules: Path, tmp_path: Path) -> None:
    out = tmp_path / "push"
    for _ in range(2):  # its own earlier output is replaced
        found = last_json(push(modules / "woman.safetensors", "--to", "me/woman", "--dry-run", "--out", out))
    assert sorted(file.name for file in out.iterdir()) == sorted(found["files"]) == [CARD, "woman.safetensors"]
    assert (found["folder"], found["url"]) == (str(out), None) and not hub.asked
    done = push(modules, "--to", "me/woman", "--dry-run", "--out", modules)
    assert done.returncode == 2 and "--force" in done.stderr and not (modules / CARD).exists()


def test_figures_of_a_run_are_in_the_card(hub: Hub, modules: Path, tmp_path: Path) -> None:
    used = [load(modules / f"{name}.safetensors").digest for name in ("woman", "man")]
    rows = [("cook", ("woman", "man")[i % 2], (i % 2, 0, 0)) for i in range(8)]
    steered = paint(tmp_path / "even", rows, settings={"modules": used, "scale": 1.5}, modules=used)
    plain = paint(tmp_path / "plain", [("cook", None, (1, 0, 0))] * 8, settings={"modules": []}, method="plain")
    other = paint(tmp_path / "other", rows, settings={"modules": ["0" * 16]}, modules=["0" * 16])
    for run in (steered, plain, other):
        evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS)
    found = last_json(push(modules, "--to", "me/gender", "--figures", steered.path, "--figures", plain.path))
    assert found["figures"] == 2
    card = ModelCard(hub.repos["me/gender"].revisions["main"][CARD].decode())
    (index,) = card.data.to_dict()["model-index"]
    (result,) = index["results"]
    assert index["name"] == "gender" and result["task"]["type"] == "text-to-image"
    assert result["dataset"]["config"] == "even", "the unsteered run is no result of these files"
    metrics = {m["name"]: m for m in result["metrics"]}
    assert metrics["DevRat gender"]["value"] == 0 and metrics["concept accuracy gender"]["value"] == 1
    asked = metrics["DevRat gender"]["args"]
    assert asked["n"] == 8 and asked["low"] <= 0 <= asked["high"] and (asked["judge"], asked["scale"]) == ("colour", 1.5)
    assert "| even | yes | DevRat gender | 0.000 [" in card.text and "| plain | no | DevRat gender | 1.000 [" in card.text
    done = push(modules, "--to", "me/gender", "--figures", other.path)
    assert done.returncode == 2 and "--figures" in done.stderr and "0000000000000000" in done.stderr


def test_what_is_no_whole_module_is_not_pushed(hub: Hub, modules: Path, make_module: Any, tmp_path: Path) -> None:
    save_file({"x": make_module().ram}, tmp_path / "other.safetensors")
    raw = bytearray((modules / "woman.safetensors").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(raw)
    twin = make_module("woman", seed=5).save(tmp_path / "twin" / "woman.safetensors")
    (tmp_path / "empty").mkdir()
    for sources, words in (
        ([tmp_path / "other.safetensors"], "has no respodiff header"),
        ([modules, tmp_path / "damaged.safetensors"], "is damaged"),
        ([modules / "model.bin"], "does not end in .safetensors"),
        ([tmp_path / "nothing"], "is no file, folder or shipped module"),
        ([modules, twin], "two files are called 'woman.safetensors'"),
        ([tmp_path / "empty"], "without a module file"),
    ):
        done = push(*sources, "--to", "me/gender")
        assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1
    assert not hub.asked


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--to", "gender", "--license", "mit"), "--to is 'gender'"),
        (("--to", "me/gender", "--license", " "), "--license is empty"),
        (("--to", "me/gender", "--license", "mit", "--base-model", "other/sd"), "--base-model is 'other/sd'"),
        (("--to", "me/gender", "--license", "mit", "--out", "x"), "without --dry-run"),
        (("--to", "me/gender"), "--license"),
    ],
)
def test_push_refuses_flags_before_it_asks_the_hub(hub: Hub, modules: Path, flags: tuple[str, ...], word: str) -> None:
    done = respodiff("push", str(modules), *flags)
    assert done.returncode == 2 and word in done.stderr and not hub.asked


def test_pull_brings_modules_and_card_alone(hub: Hub, modules: Path, tmp_path: Path) -> None:
    last_json(push(modules, "--to", "me/gender"))
    files = hub.repos["me/gender"].revisions["main"]
    commit = hub.add("me/gender", {**files, "weights.bin": b"a pickle"})
    out = tmp_path / "pulled"
    for _ in range(2):
        found = last_json(respodiff("pull", "me/gender", "--out", str(out), "--json"))
    assert sorted(file.name for file in out.iterdir()) == [CARD, "man.safetensors", "run.toml", "woman.safetensors"]
    assert (found["repo"], found["revision"], found["folder"], found["card"]) == ("me/gender", commit, str(out), str(out / CARD))
    assert found["modules"][1] == {
        "file": str(out / "woman.safetensors"),
        "concept": "woman",
        "digest": ConceptModule.load(out / "woman.safetensors").digest,
        "base_model": "someone/sd@" + "a" * 40,
    }
    one = last_json(respodiff("pull", "me/gender@main:woman", "--out", str(tmp_path / "one"), "--json"))
    assert [Path(m["file"]).name for m in one["modules"]] == ["woman.safetensors"]


def test_pull_writes_nothing_that_is_damaged_or_over_what_is_not_ours(hub: Hub, modules: Path, tmp_path: Path) -> None:
    woman, out = (modules / "woman.safetensors").read_bytes(), tmp_path / "pulled"
    hub.add("me/broken", {"man.safetensors": (modules / "man.safetensors").read_bytes(), "woman.safetensors": woman[:-4] + b"1234"})
    done = respodiff("pull", "me/broken", "--out", str(out))
    assert done.returncode == 2 and "is damaged" in done.stderr and not out.exists()
    hub.add("me/good", {"woman.safetensors": woman, CARD: b"# A card by hand"})
    out.mkdir()
    for notes in ("# My notes", "---\nnotes: [\n---\n"):
        (out / CARD).write_text(notes)
        done = respodiff("pull", "me/good", "--out", str(out))
        assert done.returncode == 2 and "--force" in done.stderr and [file.name for file in out.iterdir()] == [CARD]
    for source in ("me/absent", "woman.safetensors"):
        done = respodiff("pull", source, "--out", str(tmp_path / "none"))
        assert done.returncode == 2 and source in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_generate_and_inspect_take_hub_ids_and_folders(hub: Hub, make_module: Any, tmp_path: Path) -> None:
    files = {}
    for i, name in enumerate(("woman", "man")):
        path = make_module(name, "gender", seed=i, shape=(256, 4, 4), scale=0.1).save(tmp_path / "own" / f"{name}.safetensors")
        files[path.name] = path.read_bytes()
    hub.add("me/gender", files)
    digests = {load(tmp_path / "own" / name).digest for name in files}
    for named in ("me/gender", str(tmp_path / "own")):
        out = tmp_path / ("run" + str(len(named)))
        command = ["generate", "--prompt", "a doctor", "--images", "2", "--steps", "1", "--module", named, "--out", str(out), "--json"]
        last_json(respodiff(*command, cwd=tmp_path))
        records = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
        assert {digest for record in records for digest in record["modules"]} == digests
    assert last_json(respodiff("inspect", "me/gender:woman", "--json"))["concept"] == "woman"
