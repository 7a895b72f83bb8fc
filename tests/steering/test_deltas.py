"""Steering by forms that depend on h or the timestep, against a hook of the test's own on a tiny pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FluxPipeline
from tests.tiny_models import flux, sd3
from torch import Tensor

from respodiff.methods.base import applied
from respodiff.pipelines.bottleneck import site_module
from respodiff.pipelines.registry import backbone, spec_of
from respodiff.pipelines.text_encoding import encode_prompts
from respodiff.steering.lifecycle import Steered
from respodiff.steering.module import ConceptModule, Header
from respodiff.steering.steer import steer

SHAPE = (64, 4, 4)
STEPS = 3


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def module_of(form: str, seed: int = 0, shape: tuple[int, int, int] = SHAPE, **header: str) -> ConceptModule:
    """A module of a form that changes images visibly, SAM included."""
    full = (4, *shape) if form == "binned" else shape
    ram, sam = (3 * randn(*full, seed=seed + i) for i in (0, 1))
    names = ("ram_a", "ram_b", "sam_a", "sam_b") if form == "lowrank" else ()
    maps = {k: randn(shape[0], 3, seed=seed + i) / 8 for i, k in enumerate(names, 2)}
    return ConceptModule(ram, sam, Header(form, "a woman", "a person", **header), maps)


def by_hand(module: ConceptModule, h: Tensor, t: float, scale: float = 1.0) -> Tensor:
    """What a module adds to h (B, C, H, W): the equations of the forms, written out."""
    whole = module.ram + module.sam
    out = whole[int(4 * t / 1000)] if module.ram.ndim == 4 else whole
    out = out.expand(len(h), *out.shape)
    for part in ("ram", "sam") if module.maps else ():
        out = out + torch.einsum("ck,dk,bdyx->bcyx", module.maps[f"{part}_a"], module.maps[f"{part}_b"], h)
    return scale * out


def draw(pipe: Any, n: int, guidance: float = 3.0) -> Tensor:
    more = {"num_images_per_prompt": n, "guidance_scale": guidance, "num_inference_steps": STEPS, "output_type": "latent"}
    return pipe("a doctor", latents=randn(n, 4, 8, 8, seed=3), **more).images


def loop(pipe: Any, rows: list[list[tuple[ConceptModule, float]]], guidance: float = 3.0) -> Tensor:
    """The drawing loop by hand, every image on its own: guidance around a model whose conditional call is shifted."""
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(STEPS)
    empty, doctor = encode_prompts(pipe, ["", "a doctor"]).split(1)
    out = []
    for z, row in zip(randn(len(rows), 4, 8, 8, seed=3).split(1), rows, strict=True):
        for t in scheduler.timesteps:

            def added(_m: Any, _a: Any, h: Tensor, row: Any = row, t: Any = t) -> Tensor:
                return h + sum((by_hand(m, h, float(t), s) for m, s in row), start=torch.zeros_like(h))

            uncond = pipe.unet(z, t, encoder_hidden_states=empty).sample
            handle = pipe.unet.mid_block.register_forward_hook(added)
            cond = pipe.unet(z, t, encoder_hidden_states=doctor).sample
            handle.remove()
            z = scheduler.step(uncond + guidance * (cond - uncond), t, z).prev_sample
        out.append(z)
    return torch.cat(out)


@pytest.mark.parametrize("form", ["constant", "binned", "lowrank"])
@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_steering_adds_what_the_form_says_at_every_step(tiny_pipe: Any, form: str, scale: float) -> None:
    module, before = module_of(form), draw(tiny_pipe, 2)
    with steer(tiny_pipe, module, scale=scale):
        found = draw(tiny_pipe, 2)
    assert torch.allclose(found, loop(tiny_pipe, [[(module, scale)]] * 2), atol=1e-4)
    with steer(tiny_pipe, module.scale(scale)):
        assert torch.allclose(draw(tiny_pipe, 2), found, atol=1e-4)
    assert torch.equal(draw(tiny_pipe, 2), before) and (found - before).abs().max() > 1e-2


def test_the_timestep_matters(tiny_pipe: Any) -> None:
    binned = module_of("binned")
    with steer(tiny_pipe, binned):
        found = draw(tiny_pipe, 1)
    for k in range(4):
        with steer(tiny_pipe, ConceptModule(binned.ram[k], binned.sam[k], binned.header)):
            assert not torch.allclose(draw(tiny_pipe, 1), found, atol=1e-3)


def test_a_mixed_batch_draws_every_image_as_if_alone(tiny_pipe: Any) -> None:
    constant, binned, lowrank = (module_of(form, seed=10 * i) for i, form in enumerate(("constant", "binned", "lowrank")))
    rows: list[list[ConceptModule]] = [[binned], [], [lowrank, constant], [constant], [binned, lowrank], [lowrank, lowrank]]
    plain = draw(tiny_pipe, 6)
    with steer(tiny_pipe, rows):
        found = draw(tiny_pipe, 6)
    assert torch.allclose(found, loop(tiny_pipe, [[(m, 1.0) for m in row] for row in rows]), atol=1e-4)
    assert torch.equal(found[1], plain[1]), "the unsteered image keeps its bits"
    with applied(tiny_pipe, rows):
        assert torch.equal(draw(tiny_pipe, 6), found)


def test_modules_of_several_forms_are_added_up_for_all_images(tiny_pipe: Any) -> None:
    constant, binned, lowrank = (module_of(form, seed=10 * i) for i, form in enumerate(("constant", "binned", "lowrank")))
    with Steered(tiny_pipe) as modules:
        for m in (constant, binned, lowrank):
            modules.load(m)
        modules.set({"constant": 1.0, "binned": 0.5, "lowrank": -1.0})
        found = draw(tiny_pipe, 1)
    assert torch.allclose(found, loop(tiny_pipe, [[(constant, 1.0), (binned, 0.5), (lowrank, -1.0)]]), atol=1e-4)


def test_scale_zero_adds_nothing(tiny_pipe: Any) -> None:
    plain = draw(tiny_pipe, 1)
    with steer(tiny_pipe, module_of("lowrank"), scale=0.0):
        assert torch.equal(draw(tiny_pipe, 1), plain)


def test_another_image_size_resizes_r_with_one_warning(tiny_pipe: Any) -> None:
    module = module_of("binned", shape=(64, 2, 2))
    with pytest.warns(UserWarning, match=r"module of \(2, 2\) is resized to the bottleneck \(4, 4\)") as caught, steer(tiny_pipe, module):
        found = draw(tiny_pipe, 2)
    assert len(caught) == 1
    with steer(tiny_pipe, module.resize(4, 4)):
        assert torch.allclose(draw(tiny_pipe, 2), found, atol=1e-5)
    with steer(tiny_pipe, module_of("lowrank", shape=(64, 1, 1))):  # one number a channel fits every size
        draw(tiny_pipe, 1)


def test_a_compiled_model_takes_bins_and_refuses_what_reads_h(tiny_pipe: Any) -> None:
    module = module_of("binned")
    with steer(tiny_pipe, module):
        expected = draw(tiny_pipe, 2)
    tiny_pipe.unet.compile(backend="eager")
    with (
        pytest.raises(ValueError, match="can be read neither by a module of form 'lowrank' nor for assign_at"),
        steer(tiny_pipe, module_of("lowrank")),
    ):
        pass
    with pytest.warns(UserWarning, match="compiles again"), steer(tiny_pipe, module):
        assert torch.allclose(draw(tiny_pipe, 2), expected, atol=1e-4)


@contextmanager
def tokens(pipe: Any) -> Iterator[list[tuple[Tensor, float]]]:
    """Image streams behind the site as the next block gets them, with the timestep that the pipeline's own scheduler is at."""
    seen: list[tuple[Tensor, float]] = []
    model = backbone(pipe)
    scale = 1000 if isinstance(pipe, FluxPipeline) else 1
    handles = [
        model.register_forward_pre_hook(
            lambda _m, _a, kw: seen.append((torch.zeros(0), float(kw["timestep"][0]) * scale)), with_kwargs=True
        )
    ]
    site = site_module(model, spec_of(pipe).site(model))
    handles.append(site.register_forward_hook(lambda _m, _a, out: seen.append((out[1].clone(), seen.pop()[1]))))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("make", [sd3, flux])
def test_transformers_get_the_bin_of_their_timestep_and_the_map_of_every_token(make: Any) -> None:
    pipe = make()
    model = backbone(pipe)
    width = model.config.num_attention_heads * model.config.attention_head_dim
    call = {"num_inference_steps": 4, "output_type": "latent", "height": 32, "width": 32, "guidance_scale": 1.0}
    for form in ("binned", "lowrank"):
        module = module_of(form, shape=(width, 1, 1), site=spec_of(pipe).site(model))
        with tokens(pipe) as plain:
            pipe("a doctor", generator=torch.Generator().manual_seed(0), **call)
        with steer(pipe, module), tokens(pipe) as steered:  # this hook comes after the steering
            pipe("a doctor", generator=torch.Generator().manual_seed(0), **call)
        (h, t), (shifted, _) = plain[0], steered[0]
        expected = by_hand(module, h.transpose(1, 2)[..., None], min(t, 999.0))[..., 0].transpose(1, 2)
        assert torch.allclose(shifted - h, expected.expand_as(h), atol=1e-3)
        assert len({int(4 * min(t, 999.0) / 1000) for _, t in steered}) >= 3
