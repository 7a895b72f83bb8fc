from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DConditionModel, UNet2DModel
from tests.tiny_models import sd

from command import last_json, respodiff
from method_tools import WOMAN
from respodiff.methods.registry import get_method, load
from respodiff.steering.convert import OFFICIAL_BASE, RAM_KEY, SAM_KEY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("authors") / "unet.pth"
    generator = torch.Generator().manual_seed(0)
    torch.save({k: torch.rand(1280 * 64, 10, generator=generator) for k in (RAM_KEY, SAM_KEY)}, path)
    return path


# --- doctor ---


def test_doctor_of_a_healthy_model() -> None:
    found = last_json(respodiff("doctor", "--json"))
    assert found["supported"] and found["pipeline"] == "StableDiffusionPipeline"
    assert found["site"] == "mid_block" and found["shape"] == [256, 4, 4]
    assert len(found["checks"]) == 5 and all(c["passed"] for c in found["checks"].values())
    assert "conditional rows alone are shifted: row 1 of 2" in respodiff("doctor").stdout


def test_doctor_of_an_unsupported_model(tmp_path: Path) -> None:
    unet = UNet2DModel(8, 3, 3, block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
    done = respodiff("doctor", "--model", str(tmp_path), "--json")
    found = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 1 and not found["supported"] and found["pipeline"] == "DDPMPipeline"
    assert "to add one, put its row" in found["reason"]
    assert respodiff("doctor", "--model", str(tmp_path / "absent")).returncode == 2


def test_doctor_fails_when_a_check_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("respodiff.steering.steer.row_blocks", lambda *_: {})
    done = respodiff("doctor")
    assert done.returncode == 1 and "FAILED a module changes the image" in done.stdout


# --- sites ---


def test_sites_ranks_every_block_and_names_the_default(tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("respodiff.cli.models.open_model", lambda *_: tiny_pipe)
    monkeypatch.setattr("respodiff.training.sites.SUBJECTS", ("a doctor", "a nurse"))
    done = respodiff("sites", "--attribute", "gender", "--json")
    found = last_json(done)
    assert {r["site"] for r in found["ranking"]} == {"down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"}
    assert (found["default"], found["chance"]) == ("mid_block", 0.5) and found["unet_forwards"] > 100
    assert all(set(r[key]) == {"mean", "low", "high", "n"} for r in found["ranking"] for key in ("readable", "along", "against"))
    assert "readable" in done.stderr and len(done.stdout.splitlines()) == 1
    done = respodiff("sites", "--attribute", "gender", "--seed", "1")
    assert "without --site train takes mid_block" in done.stdout and "up_blocks.1" in done.stdout and "up_blocks.1" not in done.stderr
    assert respodiff("sites", "--attribute", "height").returncode == 2


# --- convert ---


def test_convert_there_and_back(released: Path, tmp_path: Path) -> None:
    out = tmp_path / "woman.safetensors"
    found = last_json(respodiff("convert", str(released), "--concept", "woman", "--base", "someone/sd", "--out", str(out), "--json"))
    assert (found["module"], found["concept"], found["shape"]) == (str(out), "woman", [1280, 8, 8])
    assert found["digest"] == load(out).digest and load(out).header.base_model == "someone/sd"
    done = respodiff("convert", str(released), "--concept", "man", "--out", str(tmp_path / "man.safetensors"))
    assert load(tmp_path / "man.safetensors").header.base_model == OFFICIAL_BASE and OFFICIAL_BASE in done.stderr
    back = last_json(respodiff("convert", str(out), "--to", "pt", "--out", str(tmp_path / "woman.pt"), "--json"))
    assert back["digest"] == found["digest"]
    tensors = torch.load(tmp_path / "woman.pt", weights_only=True)
    assert torch.equal(tensors[SAM_KEY][:, 0], load(out).sam.flatten())


def test_convert_the_vectors_of_q16(tmp_path: Path) -> None:
    vectors = np.ones((2, 8), np.float16)
    (tmp_path / "prompts.p").write_bytes(pickle.dumps(vectors, 3))
    done = respodiff("convert", str(tmp_path / "prompts.p"), "--q16", "--out", str(tmp_path / "q16.safetensors"), "--json")
    assert last_json(done)["shapes"] == {"prompts": [2, 8]}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "no concept given; use --concept NAME"),
        (("--concept", "tall", "--base", "x"), "concept 'tall' has no known prompts; give --target TEXT"),
        (("--concept", "tall", "--base", "x", "--target", "a tall person"), "no known column among 10"),
        (("--concept", "white", "--base", "x"), "column 3 of official files"),
        (("--to", "onnx"), "--to is 'onnx'; allowed: module, pt, peft"),
    ],
)
def test_convert_refuses_with_what_to_do(released: Path, tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    done = respodiff("convert", str(released), "--out", str(tmp_path / "x.safetensors"), *flags)
    assert done.returncode == 2 and message in " ".join(done.stderr.split())
    assert not (tmp_path / "x.safetensors").exists()


def test_convert_of_a_concept_of_ones_own(released: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    own = ("--concept", "tall", "--target", "a tall person", "--column", "9")
    last_json(respodiff("convert", str(released), *own, "--base", "x", "--out", str(out), "--json"))
    assert load(out).header.target == "a tall person" and load(out).header.train["converted"]["column"] == 9


def test_convert_a_slider_to_a_lora_and_a_lora_to_a_slider(tmp_path: Path) -> None:
    module, lora, back = (tmp_path / f"{name}.safetensors" for name in ("woman", "lora", "back"))
    pipe = sd()
    pipe.save_pretrained(tmp_path / "sd")
    settings = get_method("slider").settings(iterations=1, batch=1, steps=2, rollouts=1, rollout_batch=1, lr=0.05)
    made = get_method("slider").fit(pipe, WOMAN, settings)
    made.save(module)
    found = last_json(respodiff("convert", str(module), "--to", "peft", "--out", str(lora), "--json"))
    assert found == {"module": str(lora), "digest": made.digest, "concept": "woman", "layers": len(made.tensors) // 2}
    own = ("--concept", "tall", "--target", "a tall person")
    found = last_json(respodiff("convert", str(lora), *own, "--base", str(tmp_path / "sd"), "--out", str(back), "--json"))
    assert found["concept"] == "tall" and found["layers"] == len(made.tensors) // 2
    assert load(back).digest == found["digest"] and load(back).header.base_digest == made.header.base_digest
    done = respodiff("convert", str(lora), *own, "--base", "embedded", "--out", str(tmp_path / "x.safetensors"))
    assert done.returncode == 2 and "no layer of this model takes" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("name", "ours", "attribute"), [("female", "woman", "gender"), ("asianrace", "asian", "race"), ("antisexual",) + ("sexual",) * 2]
)
def test_sdisc_names_stand_for_ours(tmp_path: Path, name: str, ours: str, attribute: str) -> None:
    torch.save({RAM_KEY: torch.ones(1280, 8)}, tmp_path / "sdisc.pth")
    out = tmp_path / "x.safetensors"
    last_json(respodiff("convert", str(tmp_path / "sdisc.pth"), "--concept", name, "--base", "x", "--out", str(out), "--json"))
    found = last_json(respodiff("inspect", str(out), "--json"))
    assert (found["concept"], found["attribute"], found["method"]) == (ours, attribute, "sdisc")


# --- fuse ---


def test_fuse_writes_a_unet_or_a_checkpoint(make_module: Any, tmp_path: Path) -> None:
    path = make_module(shape=(256, 4, 4)).save(tmp_path / "woman.safetensors")
    done = respodiff("fuse", "--module", str(path), "--out", str(tmp_path / "unet"))
    assert done.returncode == 2 and "--channel-mean" in done.stderr
    found = last_json(respodiff("fuse", "--module", str(path), "--out", str(tmp_path / "unet"), "--channel-mean", "--scale", "2", "--json"))
    assert 0.5 < found["energy_lost"]["woman"] < 1 and found["scale"] == 2 and found["model"] == str(tmp_path / "unet")
    assert 0.1 < found["difference"] < 10
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet", low_cpu_mem_usage=False)
    assert unet.config.block_out_channels[-1] == 256
