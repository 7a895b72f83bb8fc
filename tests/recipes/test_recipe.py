"""The recipe of the embedded model: all stages in small, resuming, and what users see when something is wrong."""

from __future__ import annotations

import errno
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes.embedded_model import __main__ as driver
from recipes.embedded_model import card, data, install, loop, stages
from recipes.embedded_model.card import PARTS, weights_folder
from recipes.embedded_model.denoiser import DenoiserTask
from recipes.embedded_model.judge import JudgeTask
from recipes.embedded_model.loop import Loop, save_state
from recipes.embedded_model.settings import read_config
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import worker_tasks
from respodiff.evaluation.judges import ClipJudge

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def miniature(out: Path, *more: str) -> int:
    return driver.main(["--out", str(out), "--miniature", "--device", "cpu", "--images", str(driver.LABELLED), *more])


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def seen_by_judges() -> set[tuple[str, str]]:
    """(subject, style) of every image that a judge was given to learn from; filled by `made`."""
    return set()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, seen_by_judges: set[tuple[str, str]]) -> Path:
    """One run of the whole recipe in miniature."""
    out = tmp_path_factory.mktemp("recipe") / "mini"
    real = JudgeTask.__init__

    def noted(self: JudgeTask, network: Any, tokenizer: Any, images: Any, pixels: Any, captions: Any, keep: Any, *more: Any) -> None:
        seen_by_judges.update((images[i].subject, images[i].style) for i in keep)
        real(self, network, tokenizer, images, pixels, captions, keep, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(JudgeTask, "__init__", noted)
        assert miniature(out) == 0
    return out


def test_all_stages_leave_a_folder_that_the_package_can_ship(made: Path) -> None:
    weights = weights_folder(made / "weights")
    assert all((weights / part).exists() for part in PARTS)
    about = json.loads((weights / "card.json").read_text())
    assert len(about["occupations"]) == 37  # 36 and the neutral prompt
    assert {"mean_abs_error", "tone_mean_abs_error", "subject_accuracy", "explicit", "unsafe", "psnr_db", "size_mib", "judges"} <= set(
        about
    )
    assert [j["name"] for j in about["judges"]] == ["judge", "judge-b"]
    assert about["judges"][0]["kind"] != about["judges"][1]["kind"]
    text = (weights / "CARD.md").read_text()
    assert "| doctor | 1 | 0.85 |" in text and "CC-BY-4.0" in text and str(made) not in text
    assert (made / "card" / "sheet.png").stat().st_size > 10_000


def test_judges_have_errors_counted_on_images_they_never_saw(made: Path, seen_by_judges: set[tuple[str, str]]) -> None:
    held = {tuple(line.split(",")[3:5]) for line in (made / "held_out" / "labels.csv").read_text().splitlines()[1:]}
    assert held and seen_by_judges and not held & seen_by_judges
    for part in ("judge", "judge-b"):
        folder = made / "weights" / part
        accuracy, confusion = (json.loads((folder / name).read_text()) for name in ("accuracy.json", "confusion.json"))
        accuracy = accuracy["held_out"]
        digest = ClipJudge.load(str(folder)).digest
        assert accuracy["gender"]["low"] <= accuracy["gender"]["mean"] <= accuracy["gender"]["high"]
        assert sum(map(sum, confusion[digest]["gender"]["matrix"])) == accuracy["gender"]["n"]


def test_what_is_done_is_not_done_again(made: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (made / "parts").iterdir()}
    assert miniature(made, "--stages", "data,autoencoder,denoiser,judge,judge-b") == 0
    assert {p: p.stat().st_mtime_ns for p in (made / "parts").iterdir()} == before


def test_a_stage_that_was_stopped_in_its_middle_ends_with_the_same_bits(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("data", "recipe.json", "parts", "state"):
        (shutil.copytree if (made / part).is_dir() else shutil.copy)(made / part, tmp_path / part)
    for file in (tmp_path / "parts" / "denoiser.safetensors", tmp_path / "state" / "denoiser.safetensors"):
        file.unlink()
    real, calls = DenoiserTask.__call__, []

    def stopped(self: DenoiserTask, generator: torch.Generator) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return real(self, generator)

    with monkeypatch.context() as patch:
        patch.setattr(DenoiserTask, "__call__", stopped)
        patch.setattr(Loop, "__init__", functools.partialmethod(Loop.__init__, save_every=0.0))
        assert miniature(tmp_path, "--stages", "denoiser") == 130
    assert "goes on from here" in capsys.readouterr().err
    assert not (tmp_path / "parts" / "denoiser.safetensors").exists()
    assert miniature(tmp_path, "--stages", "denoiser") == 0
    assert "denoiser: goes on at step 7" in capsys.readouterr().out
    ours, whole = (load_file(folder / "parts" / "denoiser.safetensors") for folder in (tmp_path, made))
    assert all(torch.equal(ours[k], whole[k]) for k in whole)


def test_a_stage_can_begin_from_an_earlier_run(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, part = tmp_path / "out", made / "parts" / "judge.safetensors"
    shutil.copytree(made / "data", out / "data")
    assert miniature(out, "--stages", "judge", "--start", f"judge={part}") == 0
    fresh, later = load_file(part), load_file(out / "parts" / "judge.safetensors")
    assert fresh.keys() == later.keys() and not all(torch.equal(fresh[k], later[k]) for k in fresh)
    other = made / "parts" / "judge-b.safetensors"
    assert miniature(tmp_path / "b", "--stages", "data,judge", "--start", f"judge={other}") == 1
    assert "--start judge=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--stages", "data,glue"], r"--stages has 'glue'; allowed: data, autoencoder"),
        (["--images", "nowhere"], r"images 'nowhere' has no labels.csv"),
        (["--config", "nowhere.toml"], r"config nowhere.toml cannot be read"),
        (["--images", "src"], r"images 'src' has no labels.csv"),
        (["--device", "cuda:9"], r"--device is 'cuda:9', which is not available"),
        (["--start", "glue=x"], r"--start has 'glue'; allowed: STAGE=FILE with a stage of autoencoder, denoiser, decoder, judge"),
        (["--start", "judge=nowhere", "--stages", "data,judge"], r"--start judge=nowhere cannot be used .*; give a part of an earlier run"),
        (["--stages", "denoiser"], r"stage autoencoder has no fitting result in .*; run it first"),
        (["--base", "src", "--stages", "data,autoencoder"], r"--base is 'src', which has no"),
        (["--autoencoder", "recipes/embedded_model/config.toml", "--stages", "data,autoencoder"], r"autoencoder .* cannot be read"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], text: str) -> None:
    import re

    assert miniature(tmp_path / "out", *more) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error
    assert re.search(text, error), error


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ('registry = "debian"', 'registry = "pypi"', r"\[sources.noto\] has registry 'pypi'; allowed: npm, debian"),
        ('reader = "rasters"', 'reader = "raster"', r"\[sources.3d\] has reader 'raster'; allowed: vectors"),
        ("warmup = 800", "warmups = 800", r"\[train.denoiser\] has 'warmups'; allowed: share, steps, batch"),
        ("captions = 300000", "caption = 300000", r"\[world\] has 'caption'; allowed: captions"),
        ("[card]", "[cards]", r"\[top\] has 'cards'; allowed: seed"),
    ],
)
def test_a_wrong_config_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, text: str) -> None:
    import re

    config, known = tmp_path / "c.toml", (ROOT / "recipes/embedded_model/config.toml").read_text()
    assert old in known
    config.write_text(known.replace(old, new))
    assert driver.main(["--out", str(tmp_path / "o"), "--device", "cpu", "--config", str(config)]) == 1
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and re.search(text + r".*; start from the recipe's own config.toml", error), error


def test_the_smaller_world_says_only_what_differs() -> None:
    own, small = read_config(), read_config(ROOT / "recipes/embedded_model/small.toml")
    assert small["world"]["occupations"] == own["world"]["occupations"] and small["models"] == own["models"]
    assert len(small["world"]["things"]) + len(small["world"]["places"]) == 50 and not own["world"]["things"]


def test_a_run_goes_on_from_the_weights_of_a_pipeline(made: Path, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("[miniature.train]\ndenoiser = { steps = 1, batch = 4, warmup = 1, fast = false, lr = 1e-9 }\n")
    out, base = tmp_path / "out", made / "weights" / "pipeline"
    shutil.copytree(made / "data", out / "data")
    assert miniature(out, "--config", str(tmp_path / "own.toml"), "--base", str(base), "--stages", "autoencoder,denoiser") == 0
    part, start = load_file(out / "parts" / "denoiser.safetensors"), load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.allclose(part[f"unet.{k}"], v.float(), atol=1e-6) for k, v in start.items())


def test_a_folder_that_lost_its_note_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.json").write_text("")
    assert miniature(tmp_path) == 1
    assert "recipe.json cannot be read" in (error := capsys.readouterr().err) and "delete it to go on" in error


def test_a_full_disk_in_any_stage_is_one_line(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(stages.assemble, "write_judge", full)
    assert miniature(made, "--stages", "judge") == 1
    assert "the disk is full at" in (error := capsys.readouterr().err) and "run the same command again" in error


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(*_: Any) -> None:
        raise ImportError("No module named 'resvg_py'", name="resvg_py")

    monkeypatch.setattr(data, "_file", lambda _: missing)
    assert miniature(tmp_path / "o") == 1
    assert "resvg_py is not installed; run: pip install 'respodiff[recipe]'" in capsys.readouterr().err


def test_a_folder_of_other_settings_is_refused(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "config.toml"
    other.write_text((ROOT / "recipes/embedded_model/config.toml").read_text().replace("seed = 0", "seed = 9", 1))
    assert miniature(made, "--config", str(other)) == 1
    assert "was made with other settings" in capsys.readouterr().err


def tiny() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 1)


class Squares:
    """Loss of a line against the sum of its inputs."""

    def __init__(self, network: torch.nn.Module, fail_at: int = 0, value: float = 0.0) -> None:
        self.network, self.fail_at, self.value, self.calls = network, fail_at, value, 0

    def __call__(self, generator: torch.Generator) -> torch.Tensor:
        self.calls += 1
        x = torch.randn(4, 3, generator=generator)
        loss: torch.Tensor = (self.network(x)[:, 0] - x.sum(1)).pow(2).mean()
        return loss * self.value if self.calls == self.fail_at else loss


def test_loop_learns_and_averages(tmp_path: Path) -> None:
    network = tiny()
    Loop("line", tmp_path / "s.safetensors", 0.05, warmup=5, steps=400, ema=0.9, decay=0.0).run(network, Squares(network))
    assert torch.allclose(network.weight, torch.ones(1, 3), atol=0.02)


def test_two_processes_end_with_the_same_weights_from_other_batches(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(worker_tasks.train_a_line, (tmp_path,), nprocs=2)
    weights, batches = ([torch.load(tmp_path / f"{i}{name}.pt") for i in (0, 1)] for name in ("", "-batch"))
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in ("weight", "bias"))
    assert not torch.equal(*batches)
    assert [p.name for p in tmp_path.glob("state*")] == ["state.safetensors"]


def test_loop_turns_seconds_into_steps_and_lowers_them_when_they_no_longer_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    network, pace = tiny(), [1.0]
    task = Squares(network)

    def update(generator: torch.Generator) -> torch.Tensor:
        now[0] += pace[0]
        pace[0] = 1.0 if task.calls < 30 else 4.0
        return task(generator)

    trained = Loop("line", tmp_path / "s.safetensors", 0.01, warmup=10, seconds=100.0, save_every=5.0)
    trained.run(network, update)
    assert trained.step == trained.total
    assert 40 < trained.step < 60  # 100 steps at first; from step 31 on each takes four times as long
    assert now[0] < 120


def test_a_slow_start_does_not_count_as_the_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step compiles for 150 s; then ten steps a second: 400 s hold about 2,500 steps."""
    now = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    network = tiny()
    task = Squares(network)

    def update(generator: torch.Generator) -> torch.Tensor:
        now[0] += 150.0 if task.calls == 0 else 0.1
        return task(generator)

    trained = Loop("line", tmp_path / "s.safetensors", 0.01, warmup=300, seconds=400.0, save_every=60.0)
    trained.run(network, update)
    assert 2450 <= trained.step <= 2510 and now[0] <= 401


def test_loop_says_what_is_wrong(tmp_path: Path) -> None:
    network, path = tiny(), tmp_path / "s.safetensors"
    with pytest.raises(ValueError, match=r"stage line has no budget; give steps or seconds above 0"):
        Loop("line", path, 0.1).run(network, Squares(network))
    with pytest.raises(FloatingPointError, match=r"stage line: the loss is nan at step 2; lower its lr"):
        Loop("line", path, 0.1, warmup=2, steps=4).run(network, Squares(network, 2, float("nan")))
    network = tiny()
    Loop("line", path, 0.1, warmup=1, steps=2).run(network, Squares(network))
    with pytest.raises(ValueError, match=r"state .* does not fit this recipe .*; delete it to start the stage anew"):
        Loop("line", path, 0.1, warmup=1, steps=2).run(torch.nn.Linear(4, 1), Squares(network))
    path.write_bytes(b"no state")
    with pytest.raises(ValueError, match=r"does not fit this recipe"):
        Loop("line", path, 0.1, warmup=1, steps=2).run(network, Squares(network))


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.safetensors"
    save_state(path, {"a": torch.ones(2)})

    def full(tensors: Any, target: Path, metadata: Any = None) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(loop, "save_file", full)
    with pytest.raises(OSError, match=r"the disk is full; make room and run the same command again; what was there before is kept"):
        save_state(path, {"a": torch.zeros(2)})
    assert load_file(path)["a"].tolist() == [1, 1] and list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------- into the package


@pytest.fixture
def package(made: Path, tmp_path: Path) -> Path:
    """A package folder with older data."""
    folder = tmp_path / "embedded"
    shutil.copytree(made / "weights", folder)
    (folder / "world.json").write_text("{}")
    (folder / "__init__.py").write_text("")
    return folder


def test_install_checks_swaps_and_writes_the_card(made: Path, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    assert (
        install.main([str(made / "weights"), "--images", "1", "--steps", "2", "--runs", str(tmp_path / "runs"), "--package", str(package)])
        == 0
    )
    assert (package / "world.json").read_text() == (made / "weights" / "world.json").read_text()
    assert json.loads((package / "card.json").read_text())["images"] == 1
    assert (tmp_path / "docs" / "embedded_model.png").is_file()
    assert {p.name for p in package.iterdir()} == {*PARTS, "CARD.md", "card.json", "__init__.py"}


def _no_judge(folder: Path) -> None:
    shutil.rmtree(folder / "judge-b")


def _broken(folder: Path) -> None:
    (folder / "pipeline/unet/diffusion_pytorch_model.safetensors").write_bytes(b"no tensors")


def _other_errors(folder: Path) -> None:
    shutil.copy(folder / "judge" / "confusion.json", folder / "judge-b" / "confusion.json")


def _no_neutral(folder: Path) -> None:
    world = json.loads((folder / "world.json").read_text())
    del world["neutral"]
    (folder / "world.json").write_text(json.dumps(world))


def _no_images(folder: Path) -> None:
    for file in (folder / "pictures").glob("*.webp"):
        file.unlink()


def _blind(folder: Path) -> None:
    path = folder / "judge" / "model.safetensors"
    found = load_file(path)
    save_file({k: v * float("nan") if "visual_projection" in k else v for k, v in found.items()}, path, metadata={"format": "pt"})


def _no_world(folder: Path) -> None:
    (folder / "world.json").write_text("{}")


@pytest.mark.parametrize(
    ("harm", "text"),
    [
        (_no_judge, "has no judge-b; allowed"),
        (_broken, "cannot be loaded"),
        (_other_errors, "judge-b/confusion.json of .* is of another judge"),
        (_no_world, "world.json of .* has no 'occupations' for suite occupations"),
        (_no_neutral, "world.json of .* has no 'neutral'"),
        (_no_images, "pictures/ are missing or broken"),
        (_blind, "judge of .* gives no numbers; its weights are broken"),
    ],
)
def test_install_refuses_what_is_not_whole_and_keeps_the_old(
    made: Path, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: Any, text: str
) -> None:
    import re

    weights = tmp_path / "weights"
    shutil.copytree(made / "weights", weights)
    harm(weights)
    assert install.main([str(weights), "--package", str(package)]) == 1
    assert re.search(text, capsys.readouterr().err)
    assert (package / "world.json").read_text() == "{}"


def test_a_swap_that_fails_leaves_the_old(made: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(install.shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        install.swap(made / "weights", package)
    assert (package / "world.json").read_text() == "{}" and not (package / ".new").exists()


@pytest.mark.parametrize("at", [1, 4, 9])
def test_a_swap_that_stops_between_renames_is_taken_back(made: Path, package: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    before = {p.relative_to(package): p.read_bytes() for p in package.rglob("*") if p.is_file()}
    real, calls = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == at:
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            install.swap(made / "weights", package)
    assert {p.relative_to(package): p.read_bytes() for p in package.rglob("*") if p.is_file()} == before


def test_the_card_of_a_folder_is_written(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "card"
    assert card.main(["--model", str(made / "weights"), "--images", "1", "--steps", "2", "--out", str(out)]) == 0
    found = json.loads((out / "card.json").read_text())
    assert {"name", "planted", "measured", "low", "high"} <= set(found["occupations"][0])
    assert (out / "CARD.md").is_file() and (out / "sheet.png").is_file()
    assert card.main(["--model", str(tmp_path)]) == 1
    assert "has no pipeline; allowed: 'embedded', or a folder with pipeline, judge" in capsys.readouterr().err
