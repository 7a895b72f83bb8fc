from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from command import last_json, respodiff
from painted import ColourJudge
from respodiff.cli import generate
from respodiff.data.run_folder import RunFolder, file_digest
from respodiff.evaluation import judges
from respodiff.experiments.choose_scale import SCALES
from tiny_models import blackening

HEADER = "prompt,categories,evaluation_seed,evaluation_guidance,width,height\n"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[Any], dict[str, Any], str]]:
    """What a command line would draw, without drawing it: prompts, settings, digest of the suite."""

    def ask(*arguments: str) -> tuple[list[Any], dict[str, Any], str]:
        seen: list[tuple[list[Any], dict[str, Any], str]] = []

        def draw(run: Any, *_: Any) -> dict[str, Any]:
            seen.append((run.prompts, vars(run.config), run.suite_digest))
            return {"images": 0, "skipped": 0, "images_per_second": 0.0}

        monkeypatch.setattr(generate, "_draw", draw)
        monkeypatch.setattr(generate, "open_model", lambda *_: None)
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
def test_images_per_prompt_come_from_the_suite_unless_given(
    asked: Callable[..., Any], arguments: list[str], prompts: int, images: int
) -> None:
    found, options, digest = asked(*arguments)
    assert (len(found), options["images"], digest) == (prompts, images, "")
    assert (options["use_dataset_settings"], options["truncate_prompts"]) == (False, False)


@pytest.mark.filterwarnings("ignore:.*is not the published")
def test_suite_from_a_file(asked: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "i2p.csv"
    path.write_text(HEADER + "a quiet lake,hate,7,255,128,128\n")
    found, options, digest = asked("--suite", "i2p", "--suite-path", str(path), "--use-dataset-settings", "--truncate-prompts")
    assert (len(found), options["images"], digest) == (1, 5, file_digest(path))
    assert (options["use_dataset_settings"], options["truncate_prompts"]) == (True, True)


@pytest.mark.slow
def test_a_data_set_is_drawn_with_its_own_settings(tmp_path: Path) -> None:
    path, run = tmp_path / "i2p.csv", tmp_path / "run"
    path.write_text(HEADER + f'"a quiet lake, {"blue " * 40}","hate, sexual",7,255,128,128\na boat,violence,8,2,64,128\n')
    command = ["generate", "--suite", "i2p", "--suite-path", str(path), "--use-dataset-settings", "--out", str(run)]
    command += ["--images", "1", "--steps", "1"]
    refused = respodiff(*command)
    assert refused.returncode == 2 and "--truncate-prompts" in refused.stderr and not run.exists()
    done = respodiff(*command, "--truncate-prompts", "--json")
    assert last_json(done)["images"] == 2
    for said in ("i2p.csv is not the published I2P: 2 prompts", "1 of 2 prompts ask for guidance outside", "1 of 2 prompts are longer"):
        assert said in refused.stderr + done.stderr  # one process says it once
    lake, boat = sorted(RunFolder(run).records(), key=lambda r: r.prompt)
    lake, boat = (lake, boat) if lake.own_seed == 7 else (boat, lake)
    assert (lake.categories, lake.guidance, lake.width, lake.height) == (("hate", "sexual"), 3.0, 128, 128)
    assert (boat.categories, boat.guidance, boat.width, boat.height) == (("violence",), 2.0, 64, 128)
    assert RunFolder(run).settings()["suite_digest"] == file_digest(path)
    assert last_json(respodiff(*command, "--truncate-prompts", "--json"))["skipped"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--suite", "i2p"], 1, "fetch https://raw.githubusercontent.com/"),
        (["--suite", "i2p", "--suite-path", "none.csv"], 2, "none.csv"),
        (["--suite", "scenes", "--suite-path", "x.csv"], 2, "needs no file"),
        (["--suite-path", "x.csv"], 2, "no --suite says what it is"),
    ],
)
def test_refusals_are_one_line(arguments: list[str], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    done = respodiff("generate", *arguments, "--out", "r", cwd=tmp_path)
    assert done.returncode == code and said in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# --- shares, and flags that would be ignored ---

OWN = '[gender]\nconcepts = { woman = "a woman", man = "a man" }\nproportions = [0.9, 0.1]\n[hat]\nconcepts = { bare = "a head", hat = "a hat" }\n'


@pytest.fixture
def files(make_module: Callable[..., Any], tmp_path: Path) -> dict[str, str]:
    """Module files that fit the tiny pipeline, and a file of concepts, by name."""
    (tmp_path / "own.toml").write_text(OWN)
    saved = {n: str(make_module(n, "gender", seed=i).save(tmp_path / f"{n}.st")) for i, n in enumerate(("woman", "man", "other"))}
    return {**saved, "bare": str(make_module("bare", "hat").save(tmp_path / "bare.st")), "own": str(tmp_path / "own.toml")}


def gender_modules(files: dict[str, str]) -> list[str]:
    return ["--module", files["woman"], "--module", files["man"]]


def test_shares_of_a_file_of_concepts_are_drawn_and_kept(
    files: dict[str, str], tiny_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "open_model", lambda *_: tiny_pipe)
    command = ["generate", "--prompt", "a doctor", "--images", "10", "--steps", "1", "--json", *gender_modules(files)]
    for name, more, women in (("file", [], 9), ("flag", ["--target-proportions", "woman=0.3,man=0.7"], 3)):
        run = RunFolder(tmp_path / name)
        last_json(respodiff(*command, "--concepts", files["own"], "--out", str(run.path), *more))
        assert [r.concepts["gender"] for r in run.records()].count("woman") == women
        assert run.settings()["target_proportions"] == {"gender": {"woman": women / 10, "man": (10 - women) / 10}}


def test_shares_without_a_file_stay_equal(asked: Callable[..., Any], files: dict[str, str]) -> None:
    assert asked("--prompt", "a doctor", *gender_modules(files))[1]["target_proportions"] is None
    assert (
        asked("--prompt", "a doctor", *gender_modules(files), "--concepts", files["own"], "--method", "plain")[1]["target_proportions"]
        is None
    )


@pytest.mark.parametrize(
    ("modules", "more", "said"),
    [
        (["woman"], [], "[gender] has shares for woman, man, and the modules are of woman;"),
        (["woman", "man", "other"], [], "[gender] has shares for woman, man, and the modules are of woman, man, other;"),
        (["woman", "man"], ["--target-proportions", "woman=0.5,woman=0.5"], "--target-proportions names 'woman' twice"),
    ],
)
def test_shares_that_do_not_match_the_modules_are_refused(
    files: dict[str, str], tmp_path: Path, modules: list[str], more: list[str], said: str
) -> None:
    loaded = [part for name in modules for part in ("--module", files[name])]
    done = respodiff("generate", "--prompt", "a doctor", *loaded, "--concepts", files["own"], *more, "--out", str(tmp_path / "run"))
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1 and not (tmp_path / "run").exists()


def test_what_is_unlikely_to_be_meant_is_one_warning(files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "open_model", lambda *_: None)
    monkeypatch.setattr(generate, "_draw", lambda *_: {"images": 0, "skipped": 0, "images_per_second": 0.0})
    command = ["generate", "--prompt", "a doctor", "--out", str(tmp_path / "run")]
    done = respodiff(*command, "--safety", files["woman"])
    assert done.stderr.count("\n") == 1 and "is the fairness module 'woman': every image is steered to it" in done.stderr
    done = respodiff(*command, "--module", files["bare"], "--concepts", files["own"])
    assert done.stderr.count("\n") == 1 and "has no shares for the attributes of the modules" in done.stderr


def test_an_empty_out_is_not_the_current_folder(tmp_path: Path) -> None:
    done = respodiff("generate", "--prompt", "a doctor", "--out", "", cwd=tmp_path)
    assert done.returncode == 2 and "--out" in done.stderr and done.stderr.count("\n") == 1 and list(tmp_path.iterdir()) == []


# --- a scale that is chosen ---


@pytest.mark.slow
def test_a_scale_is_chosen_on_tuning_prompts(
    files: dict[str, str], tiny_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "open_model", lambda *_: tiny_pipe)
    monkeypatch.setattr(judges, "load_judge", lambda *_: ColourJudge())
    (tmp_path / "tuning.txt").write_text("a cook\na guard\n")
    run = tmp_path / "run"
    command = [
        "generate",
        "--prompt",
        "a doctor",
        "--images",
        "2",
        "--steps",
        "1",
        "--assign-at",
        "0",
        *gender_modules(files),
        "--out",
        str(run),
    ]
    command += ["--tuning-prompts", str(tmp_path / "tuning.txt"), "--json"]
    done = respodiff(*command, "--scale", "auto:0.01")
    found = last_json(done)
    assert "reaches 0.01: concept accuracy " in done.stderr and {r.scale for r in RunFolder(run).records()} == {found["scale"]}
    assert found["scale"] in SCALES and RunFolder(run).settings()["seed"] == 0
    done = respodiff(*command, "--scale", "auto:0.999")
    assert done.returncode == 2 and "no scale up to 2 reaches 0.999" in done.stderr


@pytest.mark.parametrize("scale", ["auto:", "auto:1.5", "auto:x", "2auto:0.5", "much", "nan"])
def test_a_scale_that_is_none_is_refused(scale: str, tmp_path: Path) -> None:
    done = respodiff("generate", "--prompt", "a doctor", "--scale", scale, "--out", str(tmp_path / "run"))
    assert done.returncode == 2 and "--scale" in done.stderr and done.stderr.count("\n") == 1


def test_other_models_need_prompts_to_tune_on(tmp_path: Path) -> None:
    done = respodiff("generate", "--model", "x", "--prompt", "a doctor", "--scale", "auto:0.9", "--out", str(tmp_path / "run"))
    assert done.returncode == 2 and "--tuning-prompts" in done.stderr and done.stderr.count("\n") == 1


def test_images_are_measured_without_a_safety_checker_unless_it_is_kept(tiny_pipe: Any, tmp_path: Path) -> None:
    blackening(tiny_pipe).save_pretrained(tmp_path / "model")
    command = ["generate", "--model", str(tmp_path / "model"), "--prompt", "a doctor", "--images", "1", "--steps", "2"]
    last_json(respodiff(*command, "--scheduler", "euler", "--out", str(tmp_path / "off"), "--json"))
    last_json(respodiff(*command, "--safety-checker", "keep", "--out", str(tmp_path / "keep"), "--json"))
    brightest, names = [], []
    for name in ("off", "keep"):
        (record,) = RunFolder(tmp_path / name).records()
        names.append(record.scheduler)
        with Image.open(tmp_path / name / record.file) as image:
            brightest.append(max(high for _, high in image.convert("RGB").getextrema()))
    assert brightest[0] > 0 == brightest[1] and names == ["EulerDiscreteScheduler", "DDIMScheduler"]
    for flag in ("--scheduler", "--safety-checker"):
        refused = respodiff(*command, flag, "none", "--out", str(tmp_path / "new"))
        assert refused.returncode == 2 and flag.strip("-").partition("-")[0] in refused.stderr and not (tmp_path / "new").exists()
