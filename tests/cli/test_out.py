"""What verbs may replace: their own earlier output. A stranger's file, a link or a folder of other files is refused and stays as it is."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from command import respodiff
from painted import GENDER, WORDS, ColourJudge, coloured, paint
from respodiff.evaluation.evaluate import evaluate
from respodiff.evaluation.judges.base import FlagJudge
from respodiff.generation import generate as generation
from respodiff.steering.convert import RAM_KEY, SAM_KEY
from respodiff.steering.fuse import LDM_BIAS
from respodiff.training import respodiff as training

pytestmark = pytest.mark.slow

Command = Callable[[Path], list[str]]
"""The command of a verb, whose inputs are in a folder, but for --out."""


def _train(_: Path) -> list[str]:
    quick = {"iterations": 3, "batch": 2, "steps": 3, "rollouts": 2, "rollout_batch": 2}
    return ["train", "--concept", "woman", *(part for k, v in quick.items() for part in ("--set", f"{k}={v}"))]


def _report(place: Path) -> list[str]:
    run = paint(place / "painted", [("cook", "woman", (0, 0, 0)), ("cook", "man", (1, 0, 0))])
    evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS)
    return ["report", str(run.path)]


def _calibrate(place: Path) -> list[str]:
    for name in ("woman", "man"):
        coloured((0, 0, 99 if name == "man" else 255), (64, 64)).save(place / f"{name}.png")
    (place / "labels.csv").write_text("file,gender\nwoman.png,woman\nman.png,man\n")
    return ["calibrate", str(place / "labels.csv")]


def _official(place: Path) -> Path:
    torch.save({k: torch.ones(1280 * 64, 10) for k in (RAM_KEY, SAM_KEY)}, place / "official.pth")
    return place / "official.pth"


def _convert(place: Path) -> list[str]:
    return ["convert", str(_official(place)), "--concept", "woman", "--base", "x"]


def _convert_back(place: Path) -> list[str]:
    assert respodiff(*_convert(place), "--out", str(place / "m.safetensors")).returncode == 0
    return ["convert", str(place / "m.safetensors"), "--to", "pt"]


def _q16(place: Path) -> list[str]:
    (place / "prompts.p").write_bytes(pickle.dumps(np.ones((2, 8), np.float16), 3))
    return ["convert", str(place / "prompts.p"), "--q16"]


def _fuse(place: Path) -> list[str]:
    save_file({LDM_BIAS: torch.zeros(1280)}, place / "sd.safetensors")
    assert respodiff(*_convert(place), "--out", str(place / "m.safetensors")).returncode == 0
    return ["fuse", "--module", str(place / "m.safetensors"), "--channel-mean", "--checkpoint", str(place / "sd.safetensors")]


FILES: dict[str, tuple[Command, str]] = {
    "train": (_train, "out.safetensors"),
    "report": (_report, "out.html"),
    "calibrate": (_calibrate, "out.json"),
    "convert": (_convert, "out.safetensors"),
    "convert --to pt": (_convert_back, "out.pt"),
    "convert --q16": (_q16, "out.safetensors"),
    "fuse --checkpoint": (_fuse, "out.safetensors"),
}


@pytest.fixture(autouse=True)
def tiny(tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for verb in ("train", "generate", "models", "experiments"):
        monkeypatch.setattr(f"respodiff.cli.{verb}.open_model", lambda *_: tiny_pipe)


def held(folder: Path) -> dict[str, bytes | str]:
    """All that is in a folder: files by their bytes, links by their targets."""
    found = ((path, path.relative_to(folder).as_posix()) for path in folder.rglob("*"))
    return {name: os.readlink(p) if p.is_symlink() else p.read_bytes() if p.is_file() else "" for p, name in found}  # noqa: PTH115


@pytest.mark.parametrize("verb", FILES)
def test_a_file_of_ours_is_made_again_and_no_other_is_replaced(verb: str, tmp_path: Path) -> None:
    make, name = FILES[verb]
    (place := tmp_path / "place").mkdir()
    (inputs := tmp_path / "inputs").mkdir()
    command, out = make(inputs), place / name
    call = [*command, "--out", str(out)]
    stranger = place / "stranger"
    save_file({"theirs": torch.ones(3)}, stranger)
    for kind in ("file", "link", "dangling", "fifo"):
        if kind == "file":
            out.write_bytes(stranger.read_bytes())
        elif kind == "fifo":
            os.mkfifo(out)
        else:
            out.symlink_to(stranger if kind == "link" else place / "absent")
        before = held(place)
        done = respodiff(*call)
        assert done.returncode == 2 and done.stderr.count("error:") == 1 and "out" in done.stderr and name in done.stderr, (
            kind,
            done.stderr,
        )
        assert held(place) == before, kind
        done = respodiff(*call, "--force")
        if kind == "fifo":
            assert done.returncode == 2 and held(place) == before
        else:
            assert done.returncode == 0, (kind, done.stderr)
            assert (
                not out.is_symlink() and out.is_file() and held(place)["stranger"] == before["stranger"] and not (place / "absent").exists()
            )
            done = respodiff(*call)
            assert done.returncode == 0, done.stderr
        for path in place.iterdir():
            if path != stranger:
                path.unlink()
    assert held(inputs).keys() >= {Path(part).name for part in command if part.startswith(str(inputs))}, "no input is lost"


def test_tables_of_a_report_replace_those_of_a_report_alone(tmp_path: Path) -> None:
    call = [*_report(tmp_path), "--out", str(tmp_path / "x.html")]
    (tmp_path / "x.json").write_text("theirs")
    done = respodiff(*call)
    assert done.returncode == 2 and "x.json" in done.stderr and not (tmp_path / "x.html").exists()
    assert respodiff(*call, "--force").returncode == 0 and json.loads((tmp_path / "x.json").read_text())["seed"] == 0


def test_a_link_to_a_module_of_ours_is_no_output(tmp_path: Path) -> None:
    first, link = tmp_path / "first.safetensors", tmp_path / "link.safetensors"
    call = _convert(tmp_path)
    assert respodiff(*call, "--out", str(first)).returncode == 0
    link.symlink_to(first)
    done = respodiff(*call, "--out", str(link))
    assert done.returncode == 2 and "link" in done.stderr and link.is_symlink()


def _import(place: Path) -> list[str]:
    coloured((9, 9, 9)).save(place / "a.png")
    (place / "t.csv").write_text("file,prompt\na.png,a cook\n")
    return ["import", str(place), "--csv", str(place / "t.csv")]


FOLDERS: dict[str, Command] = {
    "generate": lambda _: ["generate", "--prompt", "a doctor", "--images", "1", "--steps", "1"],
    "import": _import,
    "audit": lambda _: ["audit", "--prompt", "a doctor", "--images", "2", "--steps", "1", "--judge", "embedded", "--attributes", "gender"],
    "compare": lambda _: ["compare", "--prompts", "1", "--images", "1", "--steps", "1", "--methods", "prompt", "--judge", "embedded"],
    "demo": lambda _: ["demo", "--images", "4"],
}


@pytest.mark.parametrize("verb", FOLDERS)
def test_nothing_is_written_into_a_folder_of_something_else(verb: str, tmp_path: Path) -> None:
    (inputs := tmp_path / "inputs").mkdir()
    (theirs := tmp_path / "theirs").mkdir()
    command = [*FOLDERS[verb](inputs), "--out", str(theirs)]
    for name, text in (("notes/thesis.tex", "theirs"), ("manifest.jsonl", '{"audio": "a.wav"}'), ("run.json", "[1]"), ("audit.html", "x")):
        file = theirs / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        before = held(theirs)
        done = respodiff(*command)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "theirs" in done.stderr and file.name in done.stderr, done.stderr
        assert held(theirs) == before, name
        file.unlink()
    if verb in ("generate", "import"):
        (theirs / ".DS_Store").touch()  # a folder that looks empty is
        assert respodiff(*command).returncode == 0
        (theirs / "notes.txt").write_text("my own, beside my run")
        assert respodiff(*command).returncode == 0


def test_a_fused_unet_replaces_one_and_no_other_model(make_module: Any, tmp_path: Path) -> None:
    path, out = make_module(shape=(64, 1, 1)).save(tmp_path / "m.safetensors"), tmp_path / "unet"
    call = ["fuse", "--module", str(path), "--out", str(out)]
    out.mkdir()
    (out / "config.json").write_text("theirs")
    done = respodiff(*call)
    assert done.returncode == 2 and "config.json" in done.stderr and held(out) == {"config.json": b"theirs"}
    assert respodiff(*call, "--force").returncode == 0
    assert respodiff(*call).returncode == 0, "made again"
    assert sorted(held(out)) == ["config.json", "diffusion_pytorch_model.safetensors", "fused.json", "run.toml"]


# --- a folder that is deleted while it is written ---


def deleting(folder: Path, real: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which at its second call first deletes the folder, as somebody else might."""
    calls = []

    def run(*given: Any, **more: Any) -> Any:
        calls.append(None)
        if len(calls) == 2:
            shutil.rmtree(folder)
        return real(*given, **more)

    return run


def test_generation_says_that_its_folder_was_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr(generation, "run_sampler", deleting(out, generation.run_sampler))
    call = ["generate", "--prompt", "a doctor", "--images", "4", "--steps", "1", "--batch", "1", "--out", str(out)]
    done = respodiff(*call)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "deleted" in done.stderr and str(out) in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []
    assert respodiff(*call).returncode == 0


class Flags(FlagJudge):
    """Finds nothing unsafe."""

    name, digest, version, threshold, rule = "flags", "f" * 16, "1", 0.5, "none"

    def score_batch(self, images: Sequence[Any]) -> list[float]:
        return [0.0 for _ in images]


@pytest.mark.parametrize("kind", ["vectors", "flags"])
def test_evaluation_says_that_its_folder_was_deleted(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = paint(tmp_path / "run", [("cook", "woman", (0, 0, 0)), ("cook", "man", (1, 0, 0))] * 40)
    judge = ColourJudge() if kind == "vectors" else Flags()
    monkeypatch.setattr(judge, "score", deleting(run.path, judge.score))
    monkeypatch.setattr("respodiff.cli.evaluate.load_judges", lambda *_: [judge])
    done = respodiff("evaluate", str(run.path), "--judge", "x")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "deleted" in done.stderr and str(run.path) in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_training_says_that_its_folder_was_deleted_and_makes_it_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "modules" / "woman.safetensors"
    monkeypatch.setattr(training, "adam_step", deleting(out.parent, training.adam_step))
    monkeypatch.setattr("respodiff.cli.train.SAVE_EVERY", 0.0)
    done = respodiff(*_train(tmp_path), "--out", str(out))
    (line,) = (line for line in done.stderr.splitlines() if "projection" not in line)
    assert done.returncode == 0 and "deleted" in line and str(out.parent) in line
    assert sorted(path.name for path in out.parent.iterdir()) == [out.name, f"{out.name}.run.toml"]
