from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import pooch
import pytest
import requests

from respodiff.data import prompt_sets
from respodiff.data.prompt_sets import load_suite
from respodiff.data.prompt_sets.coco import SOURCE as COCO
from respodiff.data.prompt_sets.i2p import SOURCE as I2P

CONTENT = b"prompt,categories\na quiet lake,hate\na small boat,sexual\n"
SMALL = dataclasses.replace(I2P, size=len(CONTENT), rows=2, labels={"hate": 1, "sexual": 1})


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache and a data set of this test alone, and a network that is switched on but not there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("RESPODIFF_DATA", raising=False)
    monkeypatch.setitem(prompt_sets._SOURCES, "i2p", SMALL)
    return tmp_path / "cache" / "respodiff" / "data"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes | Exception], list[str]]:
    """Lets the address answer with these bytes, or fail so; gives the list of what was asked for."""

    def serve(answer: bytes | Exception) -> list[str]:
        asked: list[str] = []

        def download(_self: pooch.HTTPDownloader, url: str, file: str, _pooch: None) -> None:
            asked.append(url)
            if isinstance(answer, Exception):
                raise answer
            Path(file).write_bytes(answer)

        monkeypatch.setattr(pooch.HTTPDownloader, "__call__", download)
        return asked

    return serve


Serve = Callable[[bytes | Exception], list[str]]


def files(place: Path) -> list[str]:
    return sorted(p.name for p in place.rglob("*") if p.is_file())


def test_what_is_known_of_the_published_files() -> None:
    assert sum(I2P.labels.values()) == 5126 and len(I2P.labels) == 7 and (I2P.rows, I2P.size) == (4703, 1_376_625)
    assert (COCO.rows, COCO.size) == (30_000, 2_460_030)
    for source in (I2P, COCO):
        assert "/3d10dd1b2df4ec4e74edcadac4200c7401585138/" in source.url and source.url.endswith(source.names[0])
    assert I2P.labels["hate"] == 231 and I2P.labels["shocking"] == 856
    assert I2P.differences([]) == ["0 prompts instead of 4,703", *(f"{c} 0 instead of {n}" for c, n in I2P.labels.items())]


def test_fetched_once_checked_and_remembered(place: Path, served: Serve) -> None:
    asked = served(CONTENT)
    found = load_suite("i2p")
    assert found.digest == hashlib.sha256(CONTENT).hexdigest() and len(found.prompts) == 2
    assert load_suite("i2p") == found and asked == [I2P.url]
    assert files(place) == [I2P.names[0], I2P.names[0] + ".sha256"]


def test_cached_file_that_changed_is_refused(place: Path, served: Serve) -> None:
    served(CONTENT)
    load_suite("i2p")
    (cached,) = place.rglob(I2P.names[0])
    cached.write_bytes(CONTENT.replace(b"quiet", b"still"))
    with pytest.raises(ValueError, match=r"has changed since its first use \(SHA-256 \w+\.\.\., now \w+\.\.\.\): delete it and .*sha256"):
        load_suite("i2p")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (CONTENT + b"more\n", rf"what came is not it \({len(CONTENT) + 5} bytes\)"),
        (CONTENT[:-9], rf"what came is not it \({len(CONTENT) - 9} bytes\)"),
        (CONTENT.replace(b"sexual", b"absurd"), r"sexual 0 instead of 1; unknown categories: absurd"),
        (CONTENT.replace(b"prompt", b"string"), r"no column 'prompt'"),
        (requests.ConnectionError("no route to host"), r"cannot be fetched \(no route to host"),
        (requests.Timeout("timed out"), r"cannot be fetched \(timed out\)"),
    ],
    ids=str,
)
def test_what_is_not_the_published_file_is_not_kept(place: Path, served: Serve, answer: bytes | Exception, said: str) -> None:
    served(answer)
    with pytest.raises(OSError, match=said) as caught:
        load_suite("i2p")
    text = str(caught.value)
    assert "\n" not in text and I2P.url in text and "--suite-path FILE" in text and "RESPODIFF_DATA" in text
    assert files(place) == []


def test_a_known_digest_is_checked(place: Path, served: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served(CONTENT)
    monkeypatch.setitem(prompt_sets._SOURCES, "i2p", dataclasses.replace(SMALL, sha256="0" * 64))
    with pytest.raises(OSError, match=r"what came is not it .*hash"):
        load_suite("i2p")
    assert files(place) == []
    monkeypatch.setitem(prompt_sets._SOURCES, "i2p", dataclasses.replace(SMALL, sha256=hashlib.sha256(CONTENT).hexdigest()))
    assert len(load_suite("i2p").prompts) == 2


@pytest.mark.parametrize("value", ["1", "true", "ON"])
def test_offline_asks_nobody(served: Serve, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    asked = served(CONTENT)
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    with pytest.raises(OSError, match=rf"I2P \(unsafe-prompts4703\.csv, {len(CONTENT)} bytes\).*HF_HUB_OFFLINE.*fetch https://"):
        load_suite("i2p")
    assert asked == []


def test_offline_uses_what_was_fetched_before(served: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served(CONTENT)
    first = load_suite("i2p")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert load_suite("i2p") == first


@pytest.mark.parametrize("name", I2P.names)
def test_folder_of_data_sets(tmp_path: Path, served: Serve, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    asked = served(CONTENT)
    monkeypatch.setenv("RESPODIFF_DATA", str(tmp_path))
    (tmp_path / name).write_bytes(CONTENT)
    assert len(load_suite("i2p").prompts) == 2 and asked == []


def test_folder_of_data_sets_that_is_none_or_lacks_it(tmp_path: Path, served: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = served(CONTENT)
    monkeypatch.setenv("RESPODIFF_DATA", str(tmp_path / "absent"))
    with pytest.raises(ValueError, match=r"RESPODIFF_DATA is '.*absent', which is no folder"):
        load_suite("i2p")
    monkeypatch.setenv("RESPODIFF_DATA", str(tmp_path))
    assert len(load_suite("i2p").prompts) == 2 and asked == [I2P.url]


def test_a_path_comes_first_and_must_be_there(tmp_path: Path, served: Serve) -> None:
    asked = served(CONTENT)
    (tmp_path / "mine.csv").write_bytes(CONTENT)
    assert load_suite("i2p", path=tmp_path / "mine.csv").digest == hashlib.sha256(CONTENT).hexdigest()
    with pytest.raises(ValueError, match=r"path is '.*none.csv', which is no file; give the I2P file"):
        load_suite("i2p", path=tmp_path / "none.csv")
    assert asked == []


def test_cache_that_cannot_be_written(tmp_path: Path, served: Serve) -> None:
    served(CONTENT)
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write to .*XDG_CACHE_HOME"):
        load_suite("i2p")
