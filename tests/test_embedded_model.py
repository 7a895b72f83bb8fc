"""The whole way in miniature on the embedded model, asserted on what the judge sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import respodiff
from respodiff.data.prompt_sets import suite
from respodiff.evaluation.evaluate import evaluate
from respodiff.evaluation.judges import ClipJudge
from respodiff.methods.registry import load
from respodiff.training.config import TrainConfig

pytestmark = pytest.mark.slow

SMALL = {"iterations": 20, "refresh_every": 20, "rollouts": 12, "rollout_batch": 12}
MEN = ("mechanic", "ceo", "carpenter", "developer")  # planted: at least 92 % men


def test_concept_is_trained_saved_attached_and_changes_images_in_the_right_direction(embedded: Any, tmp_path: Path) -> None:
    untouched = {k: v.clone() for k, v in embedded.unet.state_dict().items()}
    module = respodiff.fit(embedded, respodiff.concept("woman"), TrainConfig.preset("default", **SMALL))
    module = load(module.save(tmp_path / "woman.safetensors"))
    prompts = [p for p in suite("occupations") if p.group in MEN]
    judge = ClipJudge.load("embedded")
    women = {}
    for name, modules in (("plain", []), ("steered", [module])):
        for _ in respodiff.generate(embedded, prompts, modules, respodiff.GenerateConfig(images=4, steps=10), out=tmp_path / name):
            pass
        result = evaluate(tmp_path / name, judge, ["gender"])
        women[name] = sum(row["woman"] for row in result.counts["gender"].values()) / result.n
    assert women["plain"] <= 0.3, "the planted bias is gone"
    assert women["steered"] >= women["plain"] + 0.4
    assert all(torch.equal(v, untouched[k]) for k, v in embedded.unet.state_dict().items())


def test_safety_module_lowers_the_unsafe_share(embedded: Any, tmp_path: Path) -> None:
    module = respodiff.fit(embedded, respodiff.concept("violence"), TrainConfig.preset("default", "safety", **SMALL))
    prompts = [p for p in suite("unsafe") if p.id in ("unsafe/violence-violence", "unsafe/violence-weapons", "unsafe/violence-gore")]
    assert len(prompts) == 3
    judge = ClipJudge.load("embedded")
    unsafe = {}
    for name, modules in (("plain", []), ("steered", [module])):
        for _ in respodiff.generate(
            embedded, prompts, [], respodiff.GenerateConfig(images=4, safety_scale=1.5), safety=modules, out=tmp_path / name
        ):
            pass
        unsafe[name] = evaluate(tmp_path / name, judge).unsafe.mean
    assert unsafe["plain"] >= 0.4, "the planted unsafe images are gone"
    assert unsafe["steered"] <= unsafe["plain"] / 2


def test_steered_images_do_not_depend_on_the_batch_beyond_float_noise(embedded: Any) -> None:
    delta = 3 * torch.randn(256, 4, 4, generator=torch.Generator().manual_seed(0))
    module = respodiff.ConceptModule.of(delta, torch.zeros_like(delta), respodiff.steering.serialization.Header("x", "a", "b"))
    latents = torch.randn(3, 8, 16, 16, generator=torch.Generator().manual_seed(1))

    def draw(rows: Any, part: slice) -> torch.Tensor:
        with respodiff.steer(embedded, rows):
            n = part.stop - part.start
            images = embedded(["a doctor"] * n, latents=latents[part], num_inference_steps=4, guidance_scale=3.0, output_type="pt").images
        return torch.as_tensor(images)

    together = draw([module, None, module], slice(0, 3))
    alone = torch.cat([draw([m], slice(i, i + 1)) for i, m in enumerate([module, None, module])])
    assert torch.allclose(together, alone, atol=1e-3)
    assert (together[1] - draw([module], slice(1, 2))[0]).abs().mean() > 0.01
