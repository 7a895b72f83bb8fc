"""Steering against a drawing loop written by hand on a tiny pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from tests.drawing import contexts
from torch import Tensor

from respodiff.methods.registry import load
from respodiff.steering.forms import make_form
from respodiff.steering.fuse import channel_delta
from respodiff.steering.module import ConceptModule
from respodiff.steering.serialization import Header
from respodiff.steering.steer import capture_h, steer

SHAPE = (64, 4, 4)
STEPS = 3


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def module_of(name: str, seed: int = 0, shape: tuple[int, int, int] = SHAPE, timesteps: tuple[int, int] = (0, 1000)) -> ConceptModule:
    """A module that changes images visibly, SAM included."""
    ram, sam = (3 * randn(*shape, seed=seed + i) for i in (0, 1))
    return ConceptModule.of(ram, sam, Header(name, "a woman", "a person", timesteps=timesteps))


def draw(pipe: Any, n: int, guidance: float = 3.0) -> Tensor:
    more = {"num_images_per_prompt": n, "guidance_scale": guidance, "num_inference_steps": STEPS, "output_type": "latent"}
    return pipe("a doctor", latents=randn(n, 4, 8, 8, seed=3), **more).images


def loop(pipe: Any, rows: list[list[tuple[ConceptModule, float]]], guidance: float = 3.0) -> Tensor:
    """The drawing loop by hand, every image on its own: guidance around a model whose conditional call is shifted."""
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(STEPS)
    empty, doctor = contexts(pipe, ["", "a doctor"]).split(1)
    out = []
    for z, row in zip(randn(len(rows), 4, 8, 8, seed=3).split(1), rows, strict=True):
        for t in scheduler.timesteps:
            acting = [(m, s) for m, s in row if m.header.timesteps[0] <= t < m.header.timesteps[1]]
            delta = sum((s * (m.ram + m.sam) for m, s in acting), start=torch.zeros(1))
            uncond = pipe.unet(z, t, encoder_hidden_states=empty).sample
            handle = pipe.unet.mid_block.register_forward_hook(lambda _m, _a, h, delta=delta: h + delta)
            cond = pipe.unet(z, t, encoder_hidden_states=doctor).sample
            handle.remove()
            z = scheduler.step(uncond + guidance * (cond - uncond), t, z).prev_sample
        out.append(z)
    return torch.cat(out)


@pytest.mark.parametrize("changes", [{}, {"shape": (64, 1, 1)}, {"timesteps": (400, 1000)}])
@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_steering_equals_the_loop_by_hand(tiny_pipe: Any, changes: dict[str, Any], scale: float) -> None:
    module, before = module_of("woman", **changes), draw(tiny_pipe, 2)
    with steer(tiny_pipe, module, scale=scale):
        found = draw(tiny_pipe, 2)
    assert torch.allclose(found, loop(tiny_pipe, [[(module, scale)]] * 2), atol=1e-4)
    with steer(tiny_pipe, module.scale(scale)):
        assert torch.allclose(draw(tiny_pipe, 2), found, atol=1e-4)
    assert torch.equal(draw(tiny_pipe, 2), before) and (found - before).abs().max() > 1e-2


def test_a_mixed_batch_equals_the_loop_by_hand(tiny_pipe: Any) -> None:
    a, b, early = module_of("a"), module_of("b", seed=10), module_of("early", seed=20, timesteps=(400, 1000))
    rows: list[list[ConceptModule]] = [[a], [], [b, early], [early], [a, b], [a, a]]
    plain = draw(tiny_pipe, 6)
    with steer(tiny_pipe, rows):
        found = draw(tiny_pipe, 6)
    assert torch.allclose(found, loop(tiny_pipe, [[(m, 1.0) for m in row] for row in rows]), atol=1e-4)
    assert torch.equal(found[1], plain[1]), "the unsteered image keeps its bits"
    with steer(tiny_pipe, rows):
        assert torch.equal(draw(tiny_pipe, 6), found)


def test_several_modules_with_scales_are_added_up(tiny_pipe: Any) -> None:
    a, b = module_of("a"), module_of("b", seed=10)
    with steer(tiny_pipe, [[a, b.scale(-0.5)]]):
        found = draw(tiny_pipe, 1)
    assert torch.allclose(found, loop(tiny_pipe, [[(a, 1.0), (b, -0.5)]]), atol=1e-4)


def test_scale_zero_adds_nothing(tiny_pipe: Any) -> None:
    plain = draw(tiny_pipe, 1)
    with steer(tiny_pipe, module_of("woman"), scale=0.0):
        assert torch.equal(draw(tiny_pipe, 1), plain)


def test_h_of_a_compiled_model_cannot_be_read(tiny_pipe: Any) -> None:
    tiny_pipe.unet.compile(backend="eager")
    with (
        pytest.raises(ValueError, match="the model is compiled, and its h cannot be read for assign_at"),
        capture_h(tiny_pipe, print),
    ):
        pass


# --- forms that read h ---


def form_module(name: str, form: str, seed: int = 0, timesteps: tuple[int, int] = (0, 1000)) -> ConceptModule:
    """A module of small networks with random weights."""
    ram, sam = (make_form(form, SHAPE) for _ in range(2))
    for i, p in enumerate([*ram.parameters(), *sam.parameters()]):
        p.data = randn(*p.shape, seed=seed + i) / 4
    return ConceptModule.of(ram, sam, Header(name, "a woman", "a person", timesteps=timesteps))


@pytest.mark.parametrize("form", ["mlp", "conv"])
def test_a_form_that_reads_h_equals_the_loop_by_hand(tiny_pipe: Any, form: str) -> None:
    module = form_module("woman", form, timesteps=(400, 1000)).scale(1.5)
    ram, sam = module.forms()
    scheduler = DDIMScheduler.from_config(tiny_pipe.scheduler.config)
    scheduler.set_timesteps(STEPS)
    empty, doctor = contexts(tiny_pipe, ["", "a doctor"]).split(1)
    z = randn(1, 4, 8, 8, seed=3)
    for t in scheduler.timesteps:
        uncond = tiny_pipe.unet(z, t, encoder_hidden_states=empty).sample
        handle = tiny_pipe.unet.mid_block.register_forward_hook(lambda _m, _a, h, t=t: h + 1.5 * (t >= 400) * (ram(h, t) + sam(h, t)))
        cond = tiny_pipe.unet(z, t, encoder_hidden_states=doctor).sample
        handle.remove()
        z = scheduler.step(uncond + 3.0 * (cond - uncond), t, z).prev_sample
    plain = draw(tiny_pipe, 1)
    with steer(tiny_pipe, module):
        found = draw(tiny_pipe, 1)
    assert torch.allclose(found, z, atol=1e-4) and (found - plain).abs().max() > 1e-2


def test_forms_and_constants_share_a_batch_and_an_image(tiny_pipe: Any) -> None:
    rows: list[list[ConceptModule]] = [[form_module("a", "mlp")], [], [module_of("b"), form_module("c", "conv", 9)], [module_of("b")]]
    plain = draw(tiny_pipe, 4)
    with steer(tiny_pipe, rows):
        found = draw(tiny_pipe, 4)
    assert torch.equal(found[1], plain[1])
    for i in (0, 2, 3):
        with steer(tiny_pipe, [rows[i] if j == i else None for j in range(4)]):
            assert torch.allclose(draw(tiny_pipe, 4)[i], found[i], atol=1e-4)


def test_a_form_is_saved_and_has_no_tensors_of_its_own(tiny_pipe: Any, tmp_path: Path) -> None:
    module = form_module("woman", "conv").scale(2.0)
    found = load(module.save(tmp_path / "m.safetensors"))
    assert isinstance(found, ConceptModule) and found.digest == module.digest and found.shape == (64, 1, 1) and found.form == "conv"
    for call in (lambda: found.ram, found.channels, lambda: channel_delta([found])):
        with pytest.raises(ValueError, match="is of form 'conv', which has no tensor"):
            call()
    other = ConceptModule.of(make_form("mlp", SHAPE), make_form("mlp", SHAPE), found.header)
    with pytest.raises(ValueError, match="ram is of form 'mlp', but sam of form 'conv'"):
        ConceptModule.of(other.forms()[0], found.forms()[0], found.header)
    tiny_pipe.unet.compile(backend="eager")
    with pytest.raises(ValueError, match="the model is compiled, and modules whose form reads h need hooks"), steer(tiny_pipe, found):
        pass
