"""Trainings that are reported while they run: the same module bit by bit, and what trackers are given."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from command import Done, last_json, respodiff
from respodiff.experiments import tracking
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate
from respodiff.methods.registry import load
from respodiff.training.config import TrainConfig
from respodiff.training.respodiff import train

pytestmark = pytest.mark.slow

TINY: dict[str, Any] = {"batch": 2, "steps": 4, "rollouts": 2, "rollout_batch": 2, "refresh_every": 2}
FAST = ["--iterations", "4", *(part for k, v in TINY.items() for part in ("--set", f"{k}={v}"))]
WOMAN = ["train", "--concept", "woman", "--json", *FAST]


class Kept:
    """A tracker that keeps what it is given, and stands for a library such as wandb."""

    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, Any], int]] = []
        self.closed, self.library = 0, SimpleNamespace()

    def scalars(self, values: Any, step: int) -> None:
        self.said.append(("scalars", dict(values), step))

    def images(self, images: Any, step: int) -> None:
        self.said.append(("images", dict(images), step))

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(autouse=True)
def tiny(tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("respodiff.cli.train.open_model", lambda *_: tiny_pipe)


def refused(done: Done, *said: str) -> None:
    assert done.returncode in (1, 2) and done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr
    assert all(word in done.stderr for word in said), done.stderr


def watched(pipe: Any, kept: Kept, prompts: list[str], **more: Any) -> tuple[list[Any], list[dict[str, torch.Tensor]]]:
    """Modules after every iteration of a training that is reported, and its states."""
    log = tracking.TrainingLog(lambda: kept, pipe, prompts, **more) if kept else None
    modules, states = [], []
    for record in train(pipe, "woman", TrainConfig.preset("default", iterations=4, **TINY)):
        if log:
            log(record)
        modules.append(record.module)
        states.append({k: v for k, v in record.state.tensors().items() if k != "counters"})
    if log:
        log.close()
    return modules, states


def test_a_training_is_the_same_bit_by_bit_and_its_images_are_those_of_the_module(tiny_pipe: Any) -> None:
    before, config = tiny_pipe.scheduler, dict(tiny_pipe.scheduler.__dict__)
    expected, states = watched(tiny_pipe, None, [])  # type: ignore[arg-type]
    kept = Kept()
    modules, found = watched(tiny_pipe, kept, ["a doctor", "a nurse"], every=3, seed=5)
    assert [m.digest for m in modules] == [m.digest for m in expected]
    assert all(torch.equal(a[k], b[k]) for a, b in zip(found, states, strict=True) for k in b)
    assert tiny_pipe.scheduler is before and tiny_pipe.scheduler.__dict__ == config
    scalars = [(values, step) for kind, values, step in kept.said if kind == "scalars"]
    assert [step for _, step in scalars] == [1, 2, 3, 4] and kept.closed == 1
    assert [values["relative_norm/woman"] for values, _ in scalars] == [m.relative_norm for m in modules]
    images = {step: values for kind, values, step in kept.said if kind == "images"}
    assert list(images) == [3, 4] and [*images[3]] == ["woman/a doctor", "woman/a nurse"]
    for step, values in images.items():
        for i, (left, right) in enumerate(zip(*(drawn(tiny_pipe, own) for own in ((), (modules[step - 1],))), strict=True)):
            pair = np.asarray([*values.values()][i])
            assert (pair[:, : pair.shape[1] // 2] == left).all() and (pair[:, pair.shape[1] // 2 :] == right).all()


def drawn(pipe: Any, modules: Any) -> list[Any]:
    config = GenerateConfig(images=1, policy="none", seed=5)
    return [np.asarray(image.convert("RGB")) for _, image in generate(pipe, ["a doctor", "a nurse"], config=config, safety=modules)]


def test_a_tracker_that_fails_does_not_stop_a_training(tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept()
    monkeypatch.setattr(kept, "scalars", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match="reported no longer: division by zero") as said:
        modules, _ = watched(tiny_pipe, kept, [])
    assert len(modules) == 4 and not kept.closed and len([w for w in said if "no longer" in str(w.message)]) == 1


def events(folder: Path) -> Any:
    """All that TensorBoard finds in a folder."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (run,) = folder.iterdir()
    found = reader.EventAccumulator(str(run), size_guidance={reader.IMAGES: 0})
    found.Reload()
    return found


def test_tensorboard_from_the_command_line(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    plain, out = tmp_path / "plain.safetensors", tmp_path / "woman.safetensors"
    expected = last_json(respodiff(*WOMAN, "--out", str(plain)))
    flags = ["--report-to", "tensorboard", "--validation-prompt", "a doctor", "--validation-every", "2"]
    found = last_json(respodiff(*WOMAN, *flags, "--out", str(out)))
    assert load(out).digest == load(plain).digest and found["unet_forwards"] == expected["unet_forwards"]
    read = events(tmp_path / "woman.tensorboard")
    losses = read.Scalars("loss")
    assert [e.step for e in losses] == [1, 2, 3, 4] and losses[0].value == pytest.approx(found["loss_first"], rel=1e-5)
    assert losses[-1].value == pytest.approx(found["loss_last"], rel=1e-5)
    assert read.Scalars("relative_norm/woman")[-1].value == pytest.approx(load(out).relative_norm, rel=1e-5)
    images = read.Images("woman/a doctor")
    assert [e.step for e in images] == [2, 4] and images[0].width == 2 * images[0].height


def test_an_attribute_has_one_run_with_the_images_of_every_module(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    flags = ["--report-to", "tensorboard", "--validation-prompt", "a doctor"]
    last_json(respodiff("train", "--attribute", "gender", "--json", *FAST, *flags, "--out", str(tmp_path / "all")))
    tags = events(tmp_path / "all" / "gender.tensorboard").Tags()
    assert {"relative_norm/woman", "relative_norm/man", "loss"} <= {*tags["scalars"]}
    assert sorted(tags["images"]) == ["man/a doctor", "woman/a doctor"]


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_trackio_and_wandb_by_their_common_interface(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    library = SimpleNamespace(
        init=lambda **given: calls.append(("init", given)),
        log=lambda values, step: calls.append(("log", values, step)),
        finish=lambda: calls.append(("finish",)),
        Image=lambda image: ("image", image.size),
    )
    monkeypatch.setitem(sys.modules, name, library)
    flags = ["--report-to", name, "--validation-prompt", "a doctor"]
    last_json(respodiff(*WOMAN, *flags, "--out", str(tmp_path / "m.safetensors")))
    assert calls[0] == ("init", {"project": "respodiff", "name": "woman"}) and calls[-1] == ("finish",)
    logged = [(step, values) for kind, *rest in calls[1:-1] for values, step in [rest] if kind == "log"]
    assert [step for step, values in logged if "loss" in values] == [1, 2, 3, 4]
    pictures = [values["woman/a doctor"] for _, values in logged if "woman/a doctor" in values]
    assert len(pictures) == 4 and all(kind == "image" and size[0] == 2 * size[1] for kind, size in pictures)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.safetensors", "m.safetensors.run.toml"]


def test_a_method_with_other_adapters_is_reported_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept()
    monkeypatch.setattr(tracking, "open_tracker", lambda *_: kept)
    monkeypatch.setattr(tracking, "backend", lambda *_: None)
    own = ["--iterations", "2", *(part for k, v in TINY.items() if k != "refresh_every" for part in ("--set", f"{k}={v}"))]
    flags = ["--report-to", "wandb", "--validation-prompt", "a doctor", "--validation-every", "2"]
    command = ["train", "--method", "slider", "--concept", "woman", "--json", *own]
    found = last_json(respodiff(*command, *flags, "--out", str(tmp_path / "a.safetensors")))
    plain = last_json(respodiff(*command, "--out", str(tmp_path / "b.safetensors")))
    assert found["modules"][0]["digest"] == plain["modules"][0]["digest"]
    assert [(kind, step) for kind, _, step in kept.said] == [("scalars", 1), ("scalars", 2), ("images", 2)]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--report-to", "mlflow"], ["report_to is 'mlflow'; allowed: tensorboard, trackio, wandb"]),
        (["--validation-prompt", "a doctor"], ["--validation-prompt is given without --report-to"]),
        (["--report-to", "wandb", "--validation-every", "2"], ["--validation-every is given without --validation-prompt"]),
        (["--report-to", "trackio"], ["needs the package trackio", "pip install 'respodiff[trackio]'"]),
    ],
)
def test_what_is_refused_before_a_training(flags: list[str], said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    monkeypatch.setattr("respodiff.cli.train.open_model", None)
    refused(respodiff(*WOMAN, *flags, "--out", str(tmp_path / "m.safetensors")), *said)
    assert not list(tmp_path.iterdir())


def test_a_prompt_that_the_model_cannot_take_stops_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=opened.append))
    flags = ["--report-to", "wandb", "--validation-prompt", "a doctor " * 40]
    refused(respodiff(*WOMAN, *flags, "--out", str(tmp_path / "m.safetensors")), "tokens")
    assert not list(tmp_path.iterdir()) and not opened


def test_images_lie_side_by_side() -> None:
    both = tracking._beside(Image.new("RGB", (2, 3), "red"), Image.new("RGB", (2, 3), "blue"))
    assert both.size == (4, 3) and both.getpixel((1, 0)) == (255, 0, 0) and both.getpixel((2, 2)) == (0, 0, 255)
