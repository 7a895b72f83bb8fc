from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command import last_json, respodiff
from respodiff import cli_generate
from respodiff.records import RunFolder, file_digest

HEADER = "prompt,categories,evaluation_seed,evaluation_guidance,width,height\n"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[Any], dict[str, Any], str]]:
    """What a command line would draw, without drawing it: prompts, settings, digest of the suite."""

    def ask(*arguments: str) -> tuple[list[Any], dict[str, Any], str]:
        seen: list[tuple[list[Any], dict[str, Any], str]] = []

        def draw(_out: Path, prompts: list[Any], _m: Any, _s: Any, options: dict[str, Any], _model: Any, digest: str) -> dict[str, Any]:
            seen.append((prompts, options, digest))
            return {"images": 0, "skipped": 0, "images_per_second": 0.0}

        monkeypatch.setattr(cli_generate, "_draw", draw)
        last_json(respodiff("generate", "--out", "nowhere", *arguments, "--json"))
        return seen[0]

    return ask


@pytest.mark.parametrize(
    ("arguments", "prompts", "images"),
    [
        (["--suite", "winobias36"], 180, 30),
        (["--suite", "winobias36-successful"], 180, 30),
        (["--suite", "winobias36-small"], 180, 6),
        (["--suite", "winobias36", "--images", "2"], 180, 2),
        (["--suite", "occupations"], 36, 10),
        (["--prompt", "a doctor"], 1, 10),
    ],
)
def test_pictures_per_prompt_come_from_the_suite_unless_given(
    asked: Callable[..., Any], arguments: list[str], prompts: int, images: int
) -> None:
    found, options, digest = asked(*arguments)
    assert (len(found), options["images"], digest) == (prompts, images, "")
    assert (options["own_settings"], options["long_prompts"]) == (False, "refuse")


@pytest.mark.filterwarnings("ignore:.*is not the published")
def test_suite_from_a_file(asked: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "i2p.csv"
    path.write_text(HEADER + "a quiet lake,hate,7,255,128,128\n")
    found, options, digest = asked("--suite", "i2p", "--suite-path", str(path), "--own-settings", "--long-prompts", "cut")
    assert (len(found), options["images"], digest) == (1, 5, file_digest(path))
    assert (options["own_settings"], options["long_prompts"]) == (True, "cut")


def test_a_data_set_is_drawn_with_its_own_settings(tmp_path: Path) -> None:
    path, run = tmp_path / "i2p.csv", tmp_path / "run"
    path.write_text(HEADER + f'"a quiet lake, {"blue " * 40}","hate, sexual",7,255,128,128\na boat,violence,8,2,64,128\n')
    command = ["generate", "--suite", "i2p", "--suite-path", str(path), "--own-settings", "--out", str(run)]
    command += ["--images", "1", "--steps", "1"]
    refused = respodiff(*command)
    assert refused.returncode == 2 and "--long-prompts cut" in refused.stderr and not run.exists()
    done = respodiff(*command, "--long-prompts", "cut", "--json")
    assert last_json(done)["images"] == 2
    for said in ("i2p.csv is not the published I2P: 2 prompts", "1 of 2 prompts ask for guidance outside", "1 of 2 prompts are longer"):
        assert said in refused.stderr + done.stderr  # one process says it once
    lake, boat = sorted(RunFolder(run).records(), key=lambda r: r.prompt)
    lake, boat = (lake, boat) if lake.own_seed == 7 else (boat, lake)
    assert (lake.categories, lake.guidance, lake.width, lake.height) == (("hate", "sexual"), 3.0, 128, 128)
    assert (boat.categories, boat.guidance, boat.width, boat.height) == (("violence",), 2.0, 64, 128)
    assert RunFolder(run).settings()["suite_digest"] == file_digest(path)
    assert last_json(respodiff(*command, "--long-prompts", "cut", "--json"))["skipped"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--suite", "i2p"], 1, "fetch https://raw.githubusercontent.com/"),
        (["--suite", "i2p", "--suite-path", "none.csv"], 2, "none.csv"),
        (["--suite", "scenes", "--suite-path", "x.csv"], 2, "needs no file"),
        (["--suite-path", "x.csv"], 2, "no --suite says what it is"),
        (["--prompt", "a doctor", "--long-prompts", "trim"], 2, "refuse, cut"),
    ],
)
def test_refusals_are_one_line(arguments: list[str], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    done = respodiff("generate", *arguments, "--out", "r", cwd=tmp_path)
    assert done.returncode == code and said in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
