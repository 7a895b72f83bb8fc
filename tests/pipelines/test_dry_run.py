from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks.dry_run import write_configs
from tests.command import respodiff
from tests.tiny_models import TINY_PIPELINES

from respodiff.pipelines.bottleneck import site_shape
from respodiff.pipelines.dry_run import dry_run
from respodiff.pipelines.registry import Unsupported, backbone, site_of


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusion3Pipeline", "SanaPipeline", "CogView4Pipeline"])
def test_site_shape_and_bytes_are_those_of_the_loaded_pipeline(name: str, tmp_path: Path) -> None:
    pipe = TINY_PIPELINES[name]()
    pipe.save_pretrained(tmp_path)
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    found, model = dry_run(tmp_path, "float32"), backbone(pipe)
    assert (found["pipeline"], found["site"]) == (name, site_of(pipe))
    assert found["shape"] == list(site_shape(model, site=site_of(pipe)))
    parts = {part: m for part, m in pipe.components.items() if isinstance(m, torch.nn.Module)}
    assert {p["name"]: p["bytes"] for p in found["parts"]} == {k: 4 * sum(p.numel() for p in m.parameters()) for k, m in parts.items()}
    assert found["bytes"] == sum(p["bytes"] for p in found["parts"]) == 2 * dry_run(tmp_path)["bytes"]


def test_what_cannot_be_built_or_steered_is_told(tmp_path: Path) -> None:
    flux = {"transformer": ("diffusers", "FluxTransformer2DModel", {"num_layers": "many"})}
    with pytest.raises(ValueError, match=r"part 'transformer' of model .* cannot be built"):
        dry_run(write_configs(tmp_path / "broken", "FluxPipeline", flux))
    with pytest.raises(Unsupported, match="pipeline KandinskyPipeline"):
        dry_run(write_configs(tmp_path / "other", "KandinskyPipeline", {}))
    with pytest.raises(ValueError, match="dtype is 'int3'"):
        dry_run("embedded", "int3")


def test_the_verb_says_it(tmp_path: Path) -> None:
    done = respodiff("doctor", "--model", "embedded", "--dry-run", "--json")
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["site"] == "mid_block" and found["shape"] == [256, 4, 4] and found["checks"] == {}


@pytest.mark.parametrize("flags", [("--quantize", "nf4"), ("--lora", "x.safetensors"), ("--offload", "group"), ("--variant", "fp16")])
def test_what_a_dry_run_cannot_count_is_refused(flags: tuple[str, str]) -> None:
    done = respodiff("doctor", "--model", "embedded", "--dry-run", *flags)
    assert done.returncode == 2 and flags[0].strip("-") in done.stderr and done.stderr.count("\n") == 1
