"""Modules of folders and of a hub, named as `load`, `steer` and `--module` take them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from hub_stub import Hub, local_hub
from respodiff import attach, load, load_all, steer
from respodiff.steering.hub import CARD, HubId, fetch, publish
from respodiff.steering.shipped import files_of


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with local_hub(tmp_path / "cache", monkeypatch) as found:
        yield found


@pytest.fixture
def contents(make_module: Any, tmp_path: Path) -> dict[str, bytes]:
    """The files of a repository: two modules, a card, and what is never fetched."""
    found = {"README.md": b"---\nlibrary_name: respodiff\n---\n", "pytorch_model.bin": b"a pickle", "old/woman.safetensors": b"older"}
    for i, name in enumerate(("woman", "man")):
        found[f"{name}.safetensors"] = make_module(name, "gender", seed=i).save(tmp_path / f"{name}.safetensors").read_bytes()
    return found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("me/gender", HubId("me/gender")),
        ("me/gender@v1.0", HubId("me/gender", "v1.0")),
        ("me/gender@refs/pr/1:woman", HubId("me/gender", "refs/pr/1", "woman")),
        (Path("me/gender:woman.safetensors"), HubId("me/gender", "", "woman.safetensors")),
        *((text, None) for text in ("gender", "a/b/c", "./a", "../a", "~/a", "/a/b", "runs/woman.safetensors", "a/b:c/d", "a/b@", "ä/b")),
    ],
)
def test_what_a_text_can_be(text: str | Path, found: HubId | None) -> None:
    assert HubId.of(text) == found


def test_all_modules_of_a_repository_and_nothing_else(hub: Hub, contents: dict[str, bytes]) -> None:
    hub.add("me/gender", contents)
    assert [file.name for file in files_of("me/gender")] == ["man.safetensors", "woman.safetensors"]
    assert [m.name for m in load_all("me/gender")] == ["man", "woman"]
    assert [m.weight for m in load_all("me/gender:0.5")] == [0.5, 0.5]
    fetched = {path.rpartition("/")[2] for _, path in hub.asked if "/resolve/" in path}
    assert fetched == {"README.md", "man.safetensors", "woman.safetensors"}
    with pytest.raises(ValueError, match=r"me/gender.*2 modules \(man, woman\).*OWNER/NAME:FILE"):
        load("me/gender")


def test_a_file_and_a_revision(hub: Hub, contents: dict[str, bytes], make_module: Any, tmp_path: Path) -> None:
    hub.add("me/gender", contents, "v1")
    other = make_module("woman", "gender", seed=7)
    hub.add("me/gender", {**contents, "woman.safetensors": other.save(tmp_path / "other.safetensors").read_bytes()})
    assert load("me/gender:woman").digest == load("me/gender:woman.safetensors").digest == other.digest
    assert load("me/gender@v1:woman").digest == make_module("woman", "gender").digest
    assert load_all("me/gender@v1:woman:-2")[0].weight == -2


def test_hub_ids_in_place_of_modules(hub: Hub, contents: dict[str, bytes], tiny_pipe: Any, make_module: Any) -> None:
    hub.add("me/gender", contents)

    def draw() -> torch.Tensor:
        start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
        found: torch.Tensor = tiny_pipe("a doctor", latents=start, num_inference_steps=2, output_type="latent").images
        return found

    with steer(tiny_pipe, make_module("woman", "gender")):
        expected = draw()
    with steer(tiny_pipe, "me/gender:woman.safetensors"):
        assert torch.equal(draw(), expected)
    adapters = attach(tiny_pipe)
    assert adapters.load_weights("me/gender") == ["man", "woman"]
    adapters.set_adapters("woman")
    assert torch.equal(draw(), expected)
    adapters.unload_weights()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("me/absent", "no such repository"),
        ("me/gen--der", "allows no such id"),
        ("me/gender@v9", "no such revision"),
        ("me/gender:child", "has man.safetensors, woman.safetensors, but no 'child'"),
        ("me/empty", "no module file"),
    ],
)
def test_what_the_hub_has_not_is_one_line(hub: Hub, contents: dict[str, bytes], name: str, reason: str) -> None:
    hub.add("me/gender", contents)
    hub.add("me/empty", {"pytorch_model.bin": b"a pickle"})
    with pytest.raises(ValueError, match=reason) as caught:
        load_all(name)
    assert repr(name) in str(caught.value) and "\n" not in str(caught.value)
    assert not [path for _, path in hub.asked if path.endswith(".bin")]


def test_offline_the_cache_is_read_and_what_it_lacks_is_one_line(
    hub: Hub, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("me/gender", contents)
    expected = load("me/gender:woman").digest
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load("me/gender:woman").digest == expected and len(fetch("me/gender")) == 2, "one file brings its alternatives"
    with pytest.raises(ValueError, match=r"HF_HUB_OFFLINE is set.*respodiff pull me/other --out DIR") as caught:
        load("me/other")
    assert "\n" not in str(caught.value) and not hub.asked


def test_a_path_wins_and_a_repository_that_was_fetched_is_told(hub: Hub, contents: dict[str, bytes], make_module: Any) -> None:
    own = make_module("woman", "gender", seed=9)
    own.save("me/gender/woman.safetensors")
    assert load("me/gender").digest == own.digest and not hub.asked
    hub.add("me/gender", contents)
    assert load("me/gender@main:woman").digest == make_module("woman", "gender").digest
    with pytest.warns(UserWarning, match=r"'me/gender' is read from here.*me/gender@main"):
        assert load("me/gender").digest == own.digest


def test_a_folder_stands_for_its_module_files(make_module: Any, tmp_path: Path) -> None:
    for i, name in enumerate(("woman", "man")):
        make_module(name, "gender", seed=i).save(tmp_path / f"{name}.safetensors")
    (tmp_path / "notes.txt").write_text("not a module")
    assert [m.name for m in load_all(tmp_path)] == ["man", "woman"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is a folder without a module file"):
        load_all(tmp_path / "empty")


# --- publish ---


@pytest.fixture
def folder(contents: dict[str, bytes], tmp_path: Path) -> Path:
    for name in ("woman.safetensors", CARD):
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(contents[name])
    return tmp_path / "folder"


def test_a_folder_becomes_a_repository(hub: Hub, folder: Path) -> None:
    assert publish(folder, "me/gender", private=True).endswith("/me/gender")
    repo = hub.repos["me/gender"]
    assert repo.private and repo.revisions["main"].keys() == {".gitattributes", CARD, "woman.safetensors"}
    assert load("me/gender").name == "woman"
    publish(folder, "me/gender", private=True)


def test_a_repository_that_must_not_be_written_stays_as_it_is(
    hub: Hub, folder: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("me/gender", contents)
    with pytest.raises(ValueError, match=r"--private.*public already"):
        publish(folder, "me/gender", private=True)
    with pytest.raises(ValueError, match=r"'me/gender' holds 'man.safetensors'"):
        publish(folder, "me/gender")
    for repo in ("gender", "me/gender:woman", "me/gender@v1", "/me/gender"):
        with pytest.raises(ValueError, match="--to is"):
            publish(folder, repo)
    hub.fails = 403
    with pytest.raises(ValueError, match="log in with a token that may write"):
        publish(folder, "me/other")
    hub.fails = 400
    with pytest.raises(OSError, match=r"'me/other' cannot be written: .*; try again later") as caught:
        publish(folder, "me/other")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        publish(folder, "me/other")
    assert hub.repos.keys() == {"me/gender"} and hub.repos["me/gender"].revisions["main"] == contents
